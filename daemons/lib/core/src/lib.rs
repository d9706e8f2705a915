// SPDX-License-Identifier: Apache-2.0
//! Pure types, parsers and formats: no async, no I/O, no `unsafe`.
//!
//! - [`ids`]: names and identifiers, parsed at the edge
//! - [`compose`]: `app-compose.json`, the measured description of an app
//! - [`env`]: names of environment variables an app may set
//! - [`env_signature`]: who sent an encrypted environment
//! - [`spec`]: the shape of a VM, as teepod stores it and dstack-vm reads it
//! - [`image`]: `metadata.json` and `sha256sum.txt` of a guest image
//! - [`event_log`]: the events behind RTMR3
//! - [`ccel`]: the firmware's event log
//! - [`luks`], [`ext4`], [`epoch`]: the LUKS2 header of a data disk, the file system in it, and which boot wrote it last
//! - [`config_disk`]: the tar that carries the host's inputs into the guest
//! - [`kms_address`]: where a key service may be
//! - [`boot`]: the lines a guest sends about its boot
//! - [`csr`]: how a guest asks for a certificate
//! - [`upgrade`]: statements of an app's owner about its compose files
//! - [`client_hello`], [`sni`], [`http_head`]: where a connection wants to go
//! - [`proxy_header`]: who a proxied connection comes from
//! - [`flow`]: the frames between tproxy's control plane and its data plane
//! - [`home`]: the packets between teepod and a running dstack-vm
//! - [`qemu`]: the command line of QEMU
//! - [`qemu_probe`]: what a host can run
//! - [`measure`]: what a TD measures before its kernel runs
//! - [`quote_sim_wire`]: frames between a guest and the simulated TEE
//! - [`wireguard`]: keys, networks and peers, and the protocol of a user-space daemon

pub mod boot;
pub mod ccel;
pub mod client_hello;
pub mod compose;
pub mod config_disk;
pub mod csr;
pub mod env;
pub mod env_signature;
pub mod epoch;
pub mod event_log;
pub mod ext4;
pub mod flow;
pub mod home;
pub mod http_head;
pub mod ids;
pub mod image;
pub mod kms_address;
pub mod limits;
pub mod luks;
pub mod measure;
pub mod proxy_header;
pub mod qemu;
pub mod qemu_probe;
pub mod quote_sim_wire;
pub mod registrations;
pub mod sni;
pub mod spec;
pub mod upgrade;
pub mod wireguard;
