// SPDX-License-Identifier: Apache-2.0
//! The dstack command line: deploys apps, manages VMs and images, reads logs, checks the host.
//!
//! [`cli`] holds the arguments (man pages and completions are made from it), [`client`] speaks to teepod over D-Bus,
//! [`jobs`] follows what it does, and each command has a module that turns arguments into calls and answers into text.

pub mod agent;
pub mod answer;
pub mod app;
pub mod cert;
pub mod cli;
pub mod cli_cert;
pub mod cli_ct;
pub mod cli_deploy;
pub mod cli_init;
pub mod cli_kms;
pub mod cli_proxy;
pub mod client;
pub mod compose;
pub mod console;
pub mod ct;
pub mod deploy;
pub mod doctor;
pub mod dotenv;
pub mod errors;
pub mod events;
pub mod identity;
pub mod image;
pub mod ingress;
pub mod init;
pub mod jobs;
pub mod journal;
pub mod kms;
pub mod kms_rpc;
pub mod kms_trust;
pub mod logs;
pub mod measure;
pub mod measure_cli;
pub mod output;
pub mod pin;
pub mod places;
pub mod prepare;
pub mod progress;
pub mod provider;
pub mod proxy;
pub mod quantity;
pub mod realm;
pub mod run;
pub mod secrets;
pub mod trust;
pub mod upgrade;
pub mod verify;
pub mod verify_chain;
pub mod verify_cli;
pub mod verify_input;
pub mod verify_report;
pub mod vm;

pub use run::main;
