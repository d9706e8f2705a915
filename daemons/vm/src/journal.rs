// SPDX-License-Identifier: Apache-2.0
//! Writes to the journal by its native protocol, so that every line carries the VM it belongs to.

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;

/// `MESSAGE_ID=` of a guest that is ready.
pub const READY: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e01";
/// `MESSAGE_ID=` of a boot that failed in the guest.
pub const BOOT_FAILED: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e02";
/// `MESSAGE_ID=` of a guest that was ended because it did not get ready in time.
pub const BOOT_TIMEOUT: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e02";
/// `MESSAGE_ID=` of a VM that ended by a failure: panic, crash, or a host that cannot run it.
pub const VM_FAILED: &str = "8f2d6c1e3b0a4d5f9c7e1a2b3c4d5e04";

const SOCKET: &str = "/run/systemd/journal/socket";

/// Priority of a journal record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Something failed.
    Error,
    /// Something is odd.
    Warning,
    /// Something happened.
    Info,
}

impl Priority {
    const fn number(self) -> u8 {
        match self {
            Self::Error => 3,
            Self::Warning => 4,
            Self::Info => 6,
        }
    }
}

/// The journal, or standard error where there is none.
#[derive(Debug)]
pub struct Journal {
    socket: Option<UnixDatagram>,
    /// Fields of every record, `KEY=value\n`.
    fields: String,
}

impl Journal {
    /// Writes records with these fields: `DSTACK_VM`, `DSTACK_APP`. Goes to the journal if standard error does
    /// (`$JOURNAL_STREAM`), else to standard error.
    #[must_use]
    pub fn open(fields: &[(&str, &str)]) -> Self {
        let connected = || {
            let socket = UnixDatagram::unbound()?;
            socket.connect(SOCKET)?;
            socket.set_nonblocking(true)?;
            io::Result::Ok(socket)
        };
        let wanted = std::env::var_os("JOURNAL_STREAM").is_some();
        let fields = fields.iter().map(|(key, value)| format!("{key}={}\n", one_line(value))).collect();
        Self { socket: if wanted { connected().ok() } else { None }, fields }
    }

    /// Writes one record of dstack-vm itself.
    pub fn log(&self, priority: Priority, message_id: Option<&str>, text: &str) {
        let id = message_id.map(|id| format!("MESSAGE_ID={id}\n")).unwrap_or_default();
        self.write(priority, "dstack-vm", &id, text);
    }

    /// Writes one line of the guest's console.
    pub fn console(&self, text: &str) {
        self.write(Priority::Info, "console", "DSTACK_STREAM=console\n", text);
    }

    fn write(&self, priority: Priority, identifier: &str, more: &str, text: &str) {
        let record = record(priority, identifier, &self.fields, more, text);
        // A full journal must not stop the VM; a lost record is the lesser evil.
        let sent = self.socket.as_ref().is_some_and(|socket| socket.send(record.as_bytes()).is_ok());
        if !sent {
            let _ = writeln!(io::stderr(), "{identifier}: {}", one_line(text));
        }
    }
}

fn record(priority: Priority, identifier: &str, fields: &str, more: &str, text: &str) -> String {
    let (number, text) = (priority.number(), one_line(text));
    format!("MESSAGE={text}\nPRIORITY={number}\nSYSLOG_IDENTIFIER={identifier}\n{fields}{more}")
}

/// A line end would begin another field.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r', '\0'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_becomes_a_field() {
        let text = record(Priority::Error, "dstack-vm", "DSTACK_VM=a\n", "", "x\nPRIORITY=0");
        assert_eq!(text, "MESSAGE=x PRIORITY=0\nPRIORITY=3\nSYSLOG_IDENTIFIER=dstack-vm\nDSTACK_VM=a\n");
    }
}
