// SPDX-License-Identifier: Apache-2.0
//! Processes of a test.

use std::process::Child;

/// A process that is killed, and waited for, when it is dropped.
#[derive(Debug)]
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
