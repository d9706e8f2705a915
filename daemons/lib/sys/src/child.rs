// SPDX-License-Identifier: Apache-2.0
//! Child processes that cannot outlive their parent, with chosen descriptors.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Starts a child that the kernel kills when the calling *thread* ends, so call it from the main thread. It inherits
/// the descriptors of `inherit` under their own numbers and no other but the standard three, and has no signal
/// blocked.
///
/// # Errors
/// The error of `fork(2)`, `exec(2)` or the settings between.
pub fn spawn(command: &mut Command, inherit: &[BorrowedFd<'_>]) -> io::Result<Child> {
    let parent = rustix::process::getpid();
    let keep: Vec<RawFd> = inherit.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: the closure runs between fork and exec and only makes async-signal-safe calls: prctl, getppid,
    // sigemptyset, sigprocmask, fcntl. It does not allocate: `keep` was made before.
    unsafe {
        command.pre_exec(move || {
            bind_to(parent)?;
            unblock_signals()?;
            keep.iter().try_for_each(|fd| keep_open(*fd))
        })
    };
    command.spawn()
}

/// A pidfd of a child: readable when it has ended.
///
/// # Errors
/// The error of `pidfd_open(2)`.
pub fn pidfd(child: &Child) -> io::Result<OwnedFd> {
    let gone = || io::Error::new(io::ErrorKind::NotFound, "no such process");
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Asks the kernel to kill this process when its parent ends, and fails if it has ended already.
fn bind_to(parent: Pid) -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes one integer and touches no memory.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
}

fn unblock_signals() -> io::Result<()> {
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set that sigprocmask then reads; the old set is not wanted.
    let rc = unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut())
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn keep_open(fd: RawFd) -> io::Result<()> {
    // SAFETY: F_SETFD takes one integer and touches no memory.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;

    #[test]
    fn inherits_only_what_is_named() {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (_other, hidden) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let script = format!(
            "echo yes >&{}; [ -e /proc/self/fd/{} ] || echo hidden >&{}",
            write.as_raw_fd(),
            hidden.as_raw_fd(),
            write.as_raw_fd()
        );
        let mut command = Command::new("/bin/bash");
        command.arg("-c").arg(script);
        let mut child = spawn(&mut command, &[write.as_fd()]).unwrap();
        drop(write);
        let fd = pidfd(&child).unwrap();
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], None).unwrap();
        assert!(child.wait().unwrap().success());
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "yes\nhidden\n");
    }

    #[test]
    fn a_missing_program_is_an_error() {
        assert!(spawn(&mut Command::new("/nonexistent"), &[]).is_err());
    }
}
