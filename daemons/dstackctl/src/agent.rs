// SPDX-License-Identifier: Apache-2.0
//! The polkit agent on the terminal, so that a call that needs a password can ask for it.

use rustix::pipe;
use std::fs::File;
use std::io::{IsTerminal, Read};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

/// `pkttyagent` for this process; it ends with this value.
#[derive(Debug)]
pub struct Agent(Child);

impl Agent {
    /// Starts the agent when there is somebody to ask: not for root, and only on a terminal.
    #[must_use]
    pub fn start() -> Option<Self> {
        let somebody = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        if !somebody || rustix::process::geteuid().is_root() {
            return None;
        }
        // The write end is inherited by the agent, which closes it once it is registered with polkit.
        let (ready, inherited) = pipe::pipe().ok()?;
        rustix::io::fcntl_setfd(ready.as_fd(), rustix::io::FdFlags::CLOEXEC).ok()?;
        let number = std::os::fd::AsRawFd::as_raw_fd(&inherited).to_string();
        let child = Command::new("pkttyagent")
            .args(["--notify-fd", &number, "--fallback"])
            .stdin(Stdio::null())
            .spawn()
            .ok()?;
        drop(inherited);
        let agent = Self(child);
        let mut nothing = Vec::new();
        File::from(ready).read_to_end(&mut nothing).ok()?;
        Some(agent)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.0.id().cast_signed()) {
            // SIGTERM lets it give the terminal back as it was; it is our child and not yet reaped.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.0.wait();
    }
}
