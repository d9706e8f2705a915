// SPDX-License-Identifier: Apache-2.0
//! One child at a time, while the unit may be told to stop at any moment.

use crate::command::{Program, feed};
use dstack_sys::signal::Signals;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus, Stdio};

/// Longest line of a child's output that is looked at, bytes; longer ones pass in pieces.
const LINE_MAX: usize = 4096;

/// Tells that the unit is to stop.
pub trait Stop: AsFd {
    /// Whether it was asked to since the last call.
    ///
    /// # Errors
    /// The error of asking the kernel.
    fn asked(&self) -> io::Result<bool>;
}

impl Stop for Signals {
    fn asked(&self) -> io::Result<bool> {
        Ok(self.next()?.is_some())
    }
}

/// How a child ended.
#[derive(Debug)]
pub enum End {
    /// By itself.
    Exited(ExitStatus),
    /// Because the unit was told to stop; the child has ended too.
    Stopped,
}

/// A running child in a process group of its own.
#[derive(Debug)]
pub struct Running {
    child: Child,
    ended: OwnedFd,
}

impl Running {
    /// Starts `program`. Both its outputs go where this process's standard output goes, to the journal: standard
    /// error of the unit is kept for fixed sentences (T18). With `lines` its standard error is read by [`Self::wait`].
    ///
    /// # Errors
    /// The error of starting it.
    pub fn start(program: &Program, lines: bool) -> io::Result<Self> {
        let mut command = program.command();
        let output = io::stdout().as_fd().try_clone_to_owned()?;
        command.process_group(0).stderr(if lines { Stdio::piped() } else { output.into() });
        let mut child = dstack_sys::child::spawn(&mut command, &[])?;
        feed(&mut child, program.input.as_ref());
        let ended = dstack_sys::child::pidfd(&child)?;
        Ok(Self { child, ended })
    }

    /// Waits for the child's end or the unit's. `on_line` gets the lines of its standard error, if they were asked for.
    ///
    /// # Errors
    /// The error of waiting.
    pub fn wait(mut self, stop: &dyn Stop, on_line: &mut dyn FnMut(&str)) -> io::Result<End> {
        let pipe = self.child.stderr.take().map(OwnedFd::from);
        if let Some(pipe) = &pipe {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        let mut lines = Lines { pipe, rest: Vec::new() };
        let mut stopped = false;
        while !self.turn(&mut lines, stop, &mut stopped, on_line)? {}
        lines.read(on_line)?;
        let status = self.child.wait()?;
        Ok(if stopped { End::Stopped } else { End::Exited(status) })
    }

    /// One turn of the loop; `true` when the child has ended.
    fn turn(
        &self,
        lines: &mut Lines,
        stop: &dyn Stop,
        stopped: &mut bool,
        on_line: &mut dyn FnMut(&str),
    ) -> io::Result<bool> {
        let mut fds = vec![
            PollFd::new(&self.ended, PollFlags::IN),
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
        ];
        fds.extend(lines.pipe.as_ref().map(|p| PollFd::new(p, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ended = fds.first().is_some_and(|fd| !fd.revents().is_empty());
        drop(fds);
        lines.read(on_line)?;
        if stop.asked()? {
            *stopped = true;
            self.terminate()?;
        }
        Ok(ended)
    }

    fn terminate(&self) -> io::Result<()> {
        let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) else { return Ok(()) };
        match kill_process_group(group, Signal::TERM) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// Cuts a pipe's bytes into lines.
struct Lines {
    pipe: Option<OwnedFd>,
    rest: Vec<u8>,
}

impl Lines {
    /// Reads what is there now.
    fn read(&mut self, on_line: &mut dyn FnMut(&str)) -> io::Result<()> {
        while let Some(pipe) = &self.pipe {
            let mut buffer = [0; LINE_MAX];
            match rustix::io::read(pipe, &mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(n) => self.rest.extend_from_slice(buffer.get(..n).unwrap_or_default()),
                Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
            self.cut(on_line);
        }
        Ok(())
    }

    fn cut(&mut self, on_line: &mut dyn FnMut(&str)) {
        while let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            on_line(String::from_utf8_lossy(&line).trim_end());
        }
        if self.rest.len() > LINE_MAX || (self.pipe.is_none() && !self.rest.is_empty()) {
            on_line(&String::from_utf8_lossy(&std::mem::take(&mut self.rest)));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::BorrowedFd;

    fn shell(script: &str) -> Program {
        Program::new("bash", &["-c", script])
    }

    /// Stops when its other end is written to.
    struct Asked(io::PipeReader);

    impl AsFd for Asked {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    impl Stop for Asked {
        fn asked(&self) -> io::Result<bool> {
            rustix::io::ioctl_fionbio(&self.0, true)?;
            Ok(matches!((&self.0).read(&mut [0]), Ok(1)))
        }
    }

    #[test]
    fn lines_and_status_arrive() {
        let mut seen = Vec::new();
        let program = shell("printf 'a\\nb\\nlast' >&2; head -c 10000 /dev/zero | tr '\\0' x >&2; exit 3");
        let (read, _write) = io::pipe().unwrap();
        let running = Running::start(&program, true).unwrap();
        let end = running.wait(&Asked(read), &mut |l| seen.push(l.to_owned()));
        assert!(matches!(end.unwrap(), End::Exited(s) if s.code() == Some(3)));
        assert_eq!(seen.iter().map(String::len).sum::<usize>(), 2 + 4 + 10_000);
        assert_eq!(seen.first().map(String::as_str), Some("a"));
    }

    #[test]
    fn a_stop_reaches_the_whole_group() {
        let (read, mut write) = io::pipe().unwrap();
        let program = shell("trap 'echo bye >&2; exit 0' TERM; echo up >&2; sleep 60 & wait");
        let running = Running::start(&program, true).unwrap();
        let mut seen = Vec::new();
        let end = running.wait(&Asked(read), &mut |line| {
            if line == "up" {
                write.write_all(b"x").unwrap();
            }
            seen.push(line.to_owned());
        });
        assert!(matches!(end.unwrap(), End::Stopped));
        assert_eq!(seen, ["up", "bye"]);
    }
}
