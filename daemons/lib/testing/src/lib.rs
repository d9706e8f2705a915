// SPDX-License-Identifier: Apache-2.0
//! What tests of several daemons share: processes that end with the test, a private bus with a polkit on it, the questions
//! that every D-Bus interface is asked, and a disk that fills up.
//!
//! It is a `dev-dependency` only. Like a test it stops at the first surprise, so its functions panic where others
//! would return an error.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod bus;
pub mod disk;
pub mod interface;
pub mod polkit;
pub mod process;
