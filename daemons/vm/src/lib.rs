// SPDX-License-Identifier: Apache-2.0
//! dstack-vm: the main process of one VM's unit (`dstack-vm@<name>.service`).
//!
//! One thread, one poll loop. [`engine`] decides everything and does no I/O; [`run`] feeds it events and carries out
//! its actions; the other modules are the ends that it talks to: QEMU ([`qmp`], [`console`], [`hypervisor`]), the guest
//! ([`guest`], [`shutdown`], [`relay`]), systemd ([`notify`], [`journal`]) and teepod ([`home`]). teepod may be away at any time.

pub mod console;
pub mod disk;
pub mod end;
pub mod engine;
pub mod guest;
pub mod home;
pub mod hub;
pub mod hypervisor;
pub mod journal;
pub mod lines;
pub mod net;
pub mod notify;
pub mod probe;
pub mod qmp;
pub mod relay;
pub mod run;
pub mod setup;
pub mod shutdown;
mod stop;
pub mod timeline;
