// SPDX-License-Identifier: Apache-2.0
//! How a VM has ended, and the exit status that tells systemd.

use crate::qmp::Reason;

/// Exit status after a guest's poweroff, or a stop that was asked for.
pub const EXIT_OK: u8 = 0;
/// Exit status after a failure: the unit restarts, within its start limit.
pub const EXIT_FAILURE: u8 = 1;
/// Exit status when the VM cannot be started as it is: `RestartPreventExitStatus=` in the unit.
pub const EXIT_CONFIG: u8 = 78;
/// Exit status after a guest's reboot: `RestartForceExitStatus=` in the unit.
pub const EXIT_RESET: u8 = 133;

/// What is known when QEMU is gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct End {
    /// The reason of QEMU's `SHUTDOWN` event, if there was one.
    pub reason: Option<Reason>,
    /// The guest's kernel panicked.
    pub panicked: bool,
    /// The guest was ready.
    pub ready: bool,
    /// systemd or machined asked for the end.
    pub asked: bool,
    /// The guest did not get ready in time, which is why it was ended.
    pub gave_up: bool,
}

impl End {
    /// The exit status.
    #[must_use]
    pub const fn status(self) -> u8 {
        if self.panicked || self.gave_up || matches!(self.reason, Some(Reason::GuestPanic)) {
            return EXIT_FAILURE;
        }
        match self.reason {
            _ if self.asked => EXIT_OK,
            Some(Reason::GuestShutdown) if self.ready => EXIT_OK,
            Some(Reason::GuestReset) => EXIT_RESET,
            _ => EXIT_FAILURE,
        }
    }

    /// The sentence for the log.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        if self.panicked || matches!(self.reason, Some(Reason::GuestPanic)) {
            return "the guest's kernel panicked; the console log above has its last words";
        }
        match self.reason {
            _ if self.gave_up => "the guest did not get ready in time and was ended",
            Some(Reason::GuestShutdown) if self.asked || self.ready => "the guest has powered off",
            Some(Reason::GuestShutdown) => "the guest has powered off before it was ready",
            Some(Reason::GuestReset) => "the guest reboots: a new QEMU is started",
            Some(Reason::HostQuit) if self.asked => "the guest did not shut down in time and was ended",
            _ if self.asked => "QEMU has ended",
            _ => "QEMU has ended by itself, which is a failure of the host",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses() {
        let end = End { ready: true, ..End::default() };
        let early = End::default();
        let cases = [
            (End { reason: Some(Reason::GuestShutdown), ..end }, 0),
            (End { reason: Some(Reason::GuestShutdown), ..early }, 1),
            (End { reason: Some(Reason::GuestShutdown), asked: true, ..early }, 0),
            (End { reason: Some(Reason::GuestReset), ..early }, 133),
            (End { reason: Some(Reason::GuestReset), ..end }, 133),
            (End { reason: Some(Reason::GuestPanic), ..end }, 1),
            (End { reason: Some(Reason::GuestShutdown), panicked: true, ..end }, 1),
            (End { reason: Some(Reason::HostSignal), ..end }, 1),
            (End { reason: Some(Reason::Other), ..end }, 1),
            (end, 1),
            (End { reason: Some(Reason::GuestShutdown), asked: true, ..end }, 0),
            (End { reason: Some(Reason::GuestReset), asked: true, ..end }, 0),
            (End { reason: Some(Reason::HostQuit), asked: true, ..end }, 0),
            (End { asked: true, ..end }, 0),
            (End { reason: Some(Reason::GuestPanic), asked: true, ..end }, 1),
            (End { reason: Some(Reason::HostQuit), gave_up: true, ..end }, 1),
            (End { reason: Some(Reason::GuestShutdown), gave_up: true, ..end }, 1),
        ];
        for (end, status) in cases {
            assert_eq!(end.status(), status, "{end:?}");
        }
    }
}
