// SPDX-License-Identifier: Apache-2.0
//! `vm console`: the terminal and the VM's serial port, tied together.

use crate::client::Client;
use crate::errors::Failure;
use crate::output::note;
use rustix::termios::{self, OptionalActions, Termios};
use std::io::{IsTerminal, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// Ctrl-].
const ESCAPE: u8 = 0x1d;
/// The escape must be typed three times within this time, as with machinectl.
const ESCAPE_TIME: Duration = Duration::from_secs(1);

/// Ties the terminal to the console until either side ends.
///
/// # Errors
/// When the VM does not run or the stream breaks.
pub async fn run(client: &Client, name: &str) -> Result<(), Failure> {
    client.needs_local("vm console")?;
    let fd: zbus::OwnedFd = client.change("OpenConsole", &(name,)).await?;
    let broken = |e: std::io::Error| Failure::new(format!("the console of {name} broke: {e}"));
    let stream = StdUnixStream::from(OwnedFd::from(fd));
    stream.set_nonblocking(true).map_err(broken)?;
    let stream = UnixStream::from_std(stream).map_err(broken)?;
    note(&format!("connected to the console of {name}; press Ctrl-] three times within a second to leave"));
    let raw = Raw::enter();
    let result = tie(stream).await.map_err(broken);
    drop(raw);
    note("\nleft the console");
    result
}

/// The terminal in raw mode; it is put back when this ends.
struct Raw(Termios);

impl Raw {
    fn enter() -> Option<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let before = termios::tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(&stdin, OptionalActions::Drain, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.0);
    }
}

async fn tie(stream: UnixStream) -> std::io::Result<()> {
    let (mut from_vm, mut to_vm) = stream.into_split();
    let mut typed = keyboard();
    let mut escape = Escape::default();
    let mut buffer = vec![0; 8192];
    loop {
        tokio::select! {
            read = from_vm.read(&mut buffer) => {
                let length = read?;
                let Some(bytes) = buffer.get(..length).filter(|b| !b.is_empty()) else { return Ok(()) };
                let mut out = std::io::stdout().lock();
                out.write_all(bytes).and_then(|()| out.flush())?;
            }
            keys = typed.recv() => match keys {
                Some(keys) if escape.seen(&keys, Instant::now()) => return Ok(()),
                Some(keys) => to_vm.write_all(&keys).await?,
                // Standard input ended; go on showing what the VM says.
                None => typed = silent(),
            }
        }
    }
}

/// Standard input by a thread, since a terminal cannot be read without blocking.
fn keyboard() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(length) = std::io::stdin().lock().read(&mut buffer) {
            let bytes = buffer.get(..length).unwrap_or_default().to_vec();
            if bytes.is_empty() || sender.blocking_send(bytes).is_err() {
                return;
            }
        }
    });
    receiver
}

/// A keyboard on which nobody ever types.
fn silent() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(1);
    // Keeping the sender keeps the channel open.
    std::mem::forget(sender);
    receiver
}

/// Counts escapes.
#[derive(Default)]
struct Escape {
    times: Vec<Instant>,
}

impl Escape {
    fn seen(&mut self, keys: &[u8], now: Instant) -> bool {
        for key in keys {
            if *key == ESCAPE {
                self.times.push(now);
            } else {
                self.times.clear();
            }
        }
        self.times.retain(|t| now.duration_since(*t) <= ESCAPE_TIME);
        self.times.len() >= 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_escapes_in_time_leave() {
        let now = Instant::now();
        let later = now + Duration::from_secs(2);
        let mut escape = Escape::default();
        assert!(!escape.seen(&[ESCAPE, ESCAPE], now));
        assert!(!escape.seen(b"x", now));
        assert!(!escape.seen(&[ESCAPE, ESCAPE], now));
        assert!(!escape.seen(&[ESCAPE], later));
        assert!(!escape.seen(&[ESCAPE], later));
        assert!(escape.seen(&[ESCAPE], later));
    }
}
