// SPDX-License-Identifier: Apache-2.0
//! What the operating system offers and no safe crate wraps: the only crate with `unsafe`.
//!
//! - [`fds`]: descriptors inherited from systemd, told apart by name
//! - [`vsock`]: streams between host and guest, by the kernel or by a vhost-user process
//! - [`seqpacket`]: packets with descriptors beside them
//! - [`peer`]: who is at the other end of a Unix socket
//! - [`borrow`]: descriptors of values that offer only a number
//! - [`child`]: child processes that cannot outlive their parent
//! - [`signal`]: signals as a descriptor for a poll loop
//! - [`ktls`]: TLS records by the kernel
//! - [`tap`]: attaching to a persistent tap device
//!
//! No function here blocks on a descriptor that is non-blocking: it reports [`std::io::ErrorKind::WouldBlock`], so the
//! same functions serve a plain `poll(2)` loop and tokio's `AsyncFd`.
#![allow(unsafe_code)]

pub mod borrow;
pub mod child;
pub mod fds;
pub mod ktls;
pub mod peer;
pub mod seqpacket;
pub mod signal;
mod socket;
pub mod tap;
pub mod vsock;
