// SPDX-License-Identifier: Apache-2.0
//! The boot's status file: every step of the boot appends its lines here, `dstack-status` streams them to the host.
//!
//! One line is one `write` with `O_APPEND`, so lines of several processes never mix.

use dstack_core::boot::{Failure, Line, Stage};
use dstack_core::ids::InstanceId;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The file, opened for each line.
#[derive(Debug, Clone)]
pub struct Status(PathBuf);

impl Status {
    /// The status file at `path`; it is made by the first line.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self(path.into())
    }

    /// A stage begins.
    pub fn stage(&self, stage: Stage) {
        self.tell(Line::Stage(stage));
    }

    /// Work done within the stage.
    pub fn progress(&self, done: u32, total: u32) {
        self.tell(Line::Progress { done, total });
    }

    /// The instance id of this guest.
    pub fn instance(&self, id: InstanceId) {
        self.tell(Line::Instance(id));
    }

    /// The boot cannot go on for now, and keeps trying.
    pub fn waiting(&self, failure: Failure) {
        self.tell(Line::Waiting(failure));
    }

    /// The boot failed.
    pub fn error(&self, failure: Failure) {
        self.tell(Line::Error(failure));
    }

    /// The app is up.
    pub fn ready(&self) {
        self.tell(Line::Ready);
    }

    /// The guest shuts down.
    pub fn stopping(&self) {
        self.tell(Line::Stopping);
    }

    /// Why the boot failed: the last `ERROR`, else a guess from the last stage for a process that died silently.
    ///
    /// # Errors
    /// The error of reading the file.
    pub fn failure(&self, step: Step) -> io::Result<(Failure, Reported)> {
        Ok(verdict(&std::fs::read(&self.0)?, step))
    }

    /// Appends; a boot that works must not fail for want of a status line, so an error only reaches the journal.
    fn tell(&self, line: Line) {
        if let Err(error) = self.append(line) {
            eprintln!("cannot append to {}: {error}", self.0.display());
        }
    }

    fn append(&self, line: Line) -> io::Result<()> {
        let mut file = self.open()?;
        file.write_all(format!("{line}\n").as_bytes())
    }

    /// Readable by dstack-status whatever the umask of the first writer is.
    fn open(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.append(true).custom_flags(libc_nofollow());
        match options.open(&self.0) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let file = options.create(true).mode(0o644).open(&self.0)?;
                file.set_permissions(Permissions::from_mode(0o644))?;
                Ok(file)
            }
            other => other,
        }
    }
}

/// `O_NOFOLLOW` as the standard library wants it.
fn libc_nofollow() -> i32 {
    i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default()
}

/// Whether a failure is in the file already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reported {
    /// The step that failed wrote it.
    Yes,
    /// Nobody did.
    No,
}

/// Whose failure is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// dstack-prepare's or data.mount's.
    Prepare,
    /// Docker's or dstack-app's.
    App,
}

/// Reads the outcome from the file's bytes.
#[must_use]
pub fn verdict(bytes: &[u8], step: Step) -> (Failure, Reported) {
    let lines = bytes.split(|b| *b == b'\n').filter_map(|l| Line::parse(l).ok().flatten());
    let mut guess = (Failure::Internal, Reported::No);
    for line in lines {
        guess = match line {
            Line::Error(failure) => (failure, Reported::Yes),
            // The stage begins when dstack-prepare ends, and the disk is mounted before Docker starts.
            Line::Stage(Stage::Docker) if step == Step::App => (Failure::DockerFailed, Reported::No),
            Line::Stage(Stage::Docker | Stage::Disk) => (Failure::DiskFailed, Reported::No),
            Line::Stage(_) | Line::Ready => (Failure::Internal, Reported::No),
            _ => guess,
        };
    }
    guess
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_appended_whole_and_world_readable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let writers: Vec<_> = (0..8)
            .map(|n| {
                let status = Status::new(&path);
                std::thread::spawn(move || (0..50).for_each(|i| status.progress(i, n)))
            })
            .collect();
        writers.into_iter().for_each(|w| w.join().unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 400);
        assert!(text.lines().all(|l| matches!(Line::parse(l.as_bytes()), Ok(Some(Line::Progress { .. })))));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o644);
    }

    #[test]
    fn a_silent_death_is_blamed_on_its_stage() {
        let (app, prepare) = (Step::App, Step::Prepare);
        for (text, step, expected) in [
            ("", prepare, (Failure::Internal, Reported::No)),
            ("STAGE config\nSTAGE disk\n", prepare, (Failure::DiskFailed, Reported::No)),
            ("STAGE disk\nSTAGE docker\n", prepare, (Failure::DiskFailed, Reported::No)),
            ("STAGE disk\nSTAGE docker\n", app, (Failure::DockerFailed, Reported::No)),
            ("STAGE docker\nSTAGE pull\nPROGRESS 1 2\n", app, (Failure::Internal, Reported::No)),
            ("STAGE pull\nERROR pull-failed\n", app, (Failure::PullFailed, Reported::Yes)),
        ] {
            assert_eq!(verdict(text.as_bytes(), step), expected, "{text}");
        }
    }
}
