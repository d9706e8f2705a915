// SPDX-License-Identifier: Apache-2.0
//! How every dstack daemon behaves on the bus and under systemd.
//!
//! A daemon's `main` reads top to bottom:
//!
//! 1. [`cli`]: `--help`, `--version`, `--bus-introspect=PATH` and nothing else
//! 2. [`logging`]: the journal, or standard error when there is none
//! 3. [`config`]: fragments -> merged input -> validated settings
//! 4. [`sockets`]: listeners by their `FileDescriptorName=`
//! 5. [`state`]: adopt what an earlier run left
//! 6. [`bus`]: connect, export all objects, and only then request the name
//! 7. [`lifecycle`]: `READY=1`, `STATUS=`, watchdog from the engine's loop, `STOPPING=1`
//!
//! Beside them: [`access`] asks polkit, [`jobs`] are long calls with progress, [`asking`] waits for those of another daemon, [`errors`] gives each daemon its D-Bus
//! errors, [`credentials`] reads secrets, [`sealing`] encrypts them for root's programs, [`log_control`] is `org.freedesktop.LogControl1`, and [`api`] holds the D-Bus
//! interfaces that clients use.

pub mod access;
pub mod api;
pub mod asking;
pub mod bus;
pub mod cli;
pub mod config;
pub mod credentials;
pub mod errors;
pub mod jobs;
pub mod lifecycle;
pub mod log_control;
pub mod logging;
pub mod sealing;
pub mod sockets;
pub mod state;
