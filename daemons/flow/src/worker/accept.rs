// SPDX-License-Identifier: Apache-2.0
//! Accepting: fair between workers, and bounded.
//!
//! All workers wait on the same sockets and the kernel wakes one, so a busy worker leaves clients to the others. Since
//! the same one may be woken again and again, a worker that has many more connections than another hands some over.

use super::{LISTENER, NO_SLOT, Next, Worker};
use crate::conn::{Conn, Front};
use crate::slab::{Side, Token};
use crate::wheel::{Tick, ticks};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;

/// How long accepting pauses when there are no descriptors, milliseconds.
const PAUSE_MS: u64 = 100;
/// Age at which a half-open connection makes room for another when there are too many of all kinds, milliseconds.
const STALE_MS: u64 = 1_000;
/// Most clients that are accepted in one turn while handshakes stand in line.
const ACCEPTS: usize = 16;
/// How many connections more than another a worker may have, beside an eighth.
const UNEVEN: u32 = 32;
/// Most bytes of openings per worker; beyond it the oldest half-open connection is closed.
const OPENINGS_MAX: usize = 64 * 1024 * 1024;

/// Whether clients are accepted.
#[derive(Debug)]
pub struct Accepting {
    on: bool,
    /// When it is tried again.
    resumes: Option<Tick>,
    /// Most connections.
    most: usize,
}

impl Accepting {
    pub const fn new(most: usize) -> Self {
        Self { on: false, resumes: None, most }
    }

    pub const fn is_on(&self) -> bool {
        self.on
    }

    pub const fn resumes(&self) -> Option<Tick> {
        self.resumes
    }
}

impl Worker {
    /// Watches the listeners, unless it must not.
    pub(super) fn resume_accepting(&mut self) {
        self.accepting.resumes = None;
        if self.accepting.on || self.shared.draining.load(Relaxed) {
            return;
        }
        if self.is_full() && !self.evict(ticks(STALE_MS)) {
            self.accepting.resumes = Some(self.now.saturating_add(ticks(PAUSE_MS)));
            return;
        }
        self.accepting.on = true;
        for (number, listener) in (0..=Side::MAX).zip(&self.listeners) {
            let data = Token { slot: NO_SLOT, generation: LISTENER }.pack(number);
            if self.poller.listener(&*listener.fd, data).is_err() {
                self.accepting.resumes = Some(self.now.saturating_add(ticks(PAUSE_MS)));
            }
        }
        if self.accepting.resumes.is_some() {
            self.stop_accepting();
        }
    }

    /// Leaves the listeners to others for good: they close with the last who has them.
    pub(super) fn leave_listeners(&mut self) {
        self.stop_accepting();
        self.accepting.resumes = None;
        self.listeners.clear();
    }

    /// Leaves the listeners to others.
    fn stop_accepting(&mut self) {
        self.accepting.on = false;
        self.listeners.iter().for_each(|listener| self.poller.forget(&*listener.fd));
    }

    fn pause(&mut self) {
        self.counters.fd_exhausted += 1;
        self.stop_accepting();
        self.accepting.resumes = Some(self.now.saturating_add(ticks(PAUSE_MS)));
    }

    /// Accepts one client; the next event brings the next. While turns are long, each accepts several.
    pub(super) fn accept(&mut self, number: Side) {
        for _ in 0..ACCEPTS {
            if !self.accept_one(number) || self.queue.is_empty() {
                return;
            }
        }
    }

    /// Accepts one client; whether there may be another.
    fn accept_one(&mut self, number: Side) -> bool {
        let Some(listener) = self.listeners.get(usize::from(number)) else { return false };
        let front = listener.front;
        match rustix::net::accept_with(&*listener.fd, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok(client) => {
                self.counters.accepted += 1;
                self.seat_client(front, client);
                self.accepting.on
            }
            Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                self.pause();
                self.evict(0);
                false
            }
            // Another worker was faster. When that took the socket's timeout, somebody has made the socket block.
            Err(Errno::AGAIN) => {
                let _ = rustix::io::ioctl_fionbio(&*listener.fd, true);
                false
            }
            // The client is gone.
            Err(_) => false,
        }
    }

    /// Keeps a client, or gives it to the next worker, which has far fewer.
    fn seat_client(&mut self, front: Front, client: OwnedFd) {
        let mine = u32::try_from(self.conns.len()).unwrap_or(u32::MAX);
        let seats = &self.shared.seats;
        let others = seats.iter().enumerate().filter(|(index, _)| *index != self.index);
        let least = others.map(|(_, seat)| (seat.open.load(Relaxed), seat)).min_by_key(|(open, _)| *open);
        match least {
            Some((open, seat)) if mine > open + open / 8 + UNEVEN => {
                seat.open.fetch_add(1, Relaxed);
                seat.hand(front, client);
            }
            _ => self.begin(front, client),
        }
    }

    /// Begins a connection.
    pub(super) fn begin(&mut self, front: Front, client: OwnedFd) {
        self.make_room();
        let Some(token) = self.conns.reserve() else { return };
        self.half.push_back(token);
        self.counters.half_open += 1;
        self.conns.put(token, Box::new(Conn::new(client, front, self.now)));
        self.with(token, |worker, conn| {
            // What has come is looked at first: then watching it does not tell of it again.
            if worker.hello(token, conn) == Next::Close {
                return Next::Close;
            }
            match worker.poller.connection(&conn.client, token.pack(0)) {
                Ok(()) => Next::Keep,
                Err(_) => Next::Close,
            }
        });
    }

    /// Closes the oldest half-open connections when there are too many, or connections of all kinds.
    fn make_room(&mut self) {
        while let Some(oldest) = self.half.front().copied() {
            if self.conns.get(oldest).is_some_and(|conn| conn.is_half_open()) {
                break;
            }
            self.half.pop_front();
        }
        let share = (self.view.config.half_open as usize / self.shared.seats.len().max(1)).max(1);
        if self.half.len() > share {
            self.half.retain(|token| self.conns.get(*token).is_some_and(|conn| conn.is_half_open()));
        }
        let over = self.half.len() >= share || self.buffered > OPENINGS_MAX;
        let full = self.is_full();
        let evicted = if over { self.evict(0) } else { full && self.evict(ticks(STALE_MS)) };
        if full && !evicted {
            self.pause();
        }
    }

    /// Whether this worker has its share of the descriptors, and the others theirs.
    fn is_full(&self) -> bool {
        let most = self.accepting.most;
        let others = || {
            let others = self.shared.seats.iter().enumerate().filter(|(index, _)| *index != self.index);
            others.map(|(_, seat)| seat.open.load(Relaxed) as usize).sum::<usize>()
        };
        self.conns.len() >= most && self.conns.len() + others() >= most * self.shared.seats.len()
    }

    /// Closes the oldest half-open connection, when it is of that age.
    fn evict(&mut self, age: Tick) -> bool {
        while let Some(oldest) = self.half.front().copied() {
            let half_open = self.conns.get(oldest).filter(|conn| conn.is_half_open());
            if half_open.is_some_and(|conn| conn.started.saturating_add(age) > self.now) {
                return false;
            }
            let half_open = half_open.is_some();
            self.half.pop_front();
            if half_open {
                self.counters.evicted += 1;
                self.with(oldest, |_, conn| {
                    conn.abort();
                    Next::Close
                });
                return true;
            }
        }
        false
    }
}
