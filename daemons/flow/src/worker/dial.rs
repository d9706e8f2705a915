// SPDX-License-Identifier: Apache-2.0
//! Reaching an instance: several are tried at once, the first to answer wins, and one that fails or is silent makes room
//! for the next. Only addresses of the routing table are dialled.

use super::refuse::Refuse;
use super::{Next, Worker};
use crate::conn::{Attempt, Conn, Front, Phase, Ready, STAGGER_MS};
use crate::slab::{Side, Token};
use crate::table::{Entry, Refusal};
use crate::wheel::ticks;
use dstack_core::proxy_header;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

impl From<Refusal> for Refuse {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unknown => Self::UnknownName,
            Refusal::NoInstance => Self::NoInstance,
            Refusal::Port => Self::Port,
            Refusal::Full => Self::Full,
        }
    }
}

/// Begins to connect; the socket tells when it is connected.
fn connect(to: SocketAddr) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    rustix::net::sockopt::set_tcp_nodelay(&fd, true)?;
    match rustix::net::connect(&fd, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(fd),
        Err(error) => Err(error.into()),
    }
}

impl Worker {
    /// The instances for a connection's target.
    pub(super) fn candidates(&self, conn: &Conn) -> Result<Vec<Arc<Entry>>, Refuse> {
        let target = conn.target.ok_or(Refuse::UnknownName)?;
        let most = self.view.config.connections_per_app;
        Ok(self.view.table.pick(target.id, target.port, most, self.now)?)
    }

    /// Begins to reach an instance.
    pub(super) fn dial(&mut self, token: Token, conn: &mut Conn) -> Next {
        let candidates = match self.candidates(conn) {
            Ok(candidates) => candidates,
            Err(why) => return self.refuse(conn, why),
        };
        let lease = candidates.first().map(|entry| entry.lease(self.view.config.connections_per_app));
        match lease {
            Some(Ok(lease)) => conn.app = Some(lease),
            _ => return self.refuse(conn, Refuse::Full),
        }
        conn.rest = candidates.into_iter();
        conn.enter(Phase::Dial, self.now);
        let wanted = match self.view.config.connect_top_n {
            0 => usize::MAX,
            most => most as usize,
        };
        while conn.attempts.len() < wanted && self.try_next(token, conn) {}
        if conn.attempts.is_empty() { self.refuse(conn, Refuse::Unreachable) } else { Next::Keep }
    }

    /// Tries one more instance; `false` when there is none left.
    fn try_next(&mut self, token: Token, conn: &mut Conn) -> bool {
        let Some(port) = conn.target.map(|target| target.port) else { return false };
        conn.tried = self.now;
        for entry in conn.rest.by_ref() {
            let side = conn.server_side.saturating_add(1);
            conn.server_side = side;
            let fd = connect(SocketAddr::new(entry.instance.address, port));
            let watched = fd.and_then(|fd| self.poller.connection(&fd, token.pack(side)).map(|()| fd));
            match watched {
                Ok(fd) => {
                    conn.attempts.push(Attempt { fd, side, entry, since: self.now });
                    return true;
                }
                Err(error) => {
                    self.counters.connect_failed += 1;
                    // Our own lack of descriptors says nothing about the instance.
                    if matches!(error.raw_os_error(), Some(code) if code == Errno::MFILE.raw_os_error()) {
                        self.counters.fd_exhausted += 1;
                    } else {
                        entry.failed(self.now);
                    }
                }
            }
        }
        false
    }

    /// An attempt has an answer.
    pub(super) fn attempt_event(
        &mut self,
        token: Token,
        conn: &mut Conn,
        side: Side,
        flags: epoll::EventFlags,
    ) -> Next {
        let Some(at) = conn.attempts.iter().position(|attempt| attempt.side == side) else {
            return Next::Keep;
        };
        if flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP) {
            conn.attempts.swap_remove(at).entry.failed(self.now);
            self.counters.connect_failed += 1;
            self.try_next(token, conn);
            return if conn.attempts.is_empty() {
                self.refuse(conn, Refuse::Unreachable)
            } else {
                Next::Keep
            };
        }
        if !flags.contains(epoll::EventFlags::OUT) {
            return Next::Keep;
        }
        let won = conn.attempts.swap_remove(at);
        let mut ready = Ready { writable: true, ..Ready::default() };
        super::note(&mut ready, flags);
        conn.server_ready = ready;
        self.join(token, conn, won)
    }

    /// Joins the client to the instance that answered first.
    fn join(&mut self, token: Token, conn: &mut Conn, won: Attempt) -> Next {
        let port = conn.target.map_or(0, |target| target.port);
        conn.up.held = match self.header(conn, &won.entry, port) {
            Ok(mut header) if !header.is_empty() => {
                header.extend_from_slice(&conn.opening);
                conn.opening = Vec::new();
                header
            }
            Ok(_) => std::mem::take(&mut conn.opening),
            Err(_) => {
                self.counters.early_close += 1;
                return Next::Close;
            }
        };
        self.counters.bytes_up += conn.up.held.len() as u64;
        match (conn.front, &conn.session) {
            (Front::Http, _) => self.counters.http += 1,
            (_, Some(_)) => self.counters.terminated += 1,
            _ => self.counters.passed_through += 1,
        }
        conn.instance = Some(won.entry.connected());
        (conn.server, conn.server_side) = (Some(won.fd), won.side);
        for lost in std::mem::take(&mut conn.attempts) {
            // Who has been silent for so long is tried last by the next clients.
            if lost.since.saturating_add(ticks(STAGGER_MS)) <= self.now {
                lost.entry.failed(self.now);
            }
        }
        conn.rest = Vec::new().into_iter();
        conn.enter(Phase::Open, self.now);
        conn.active = self.now;
        self.pump(token, conn)
    }

    /// The PROXY protocol header, when the instance wants one at this port.
    fn header(&self, conn: &Conn, entry: &Entry, port: u16) -> io::Result<Vec<u8>> {
        if !self.view.config.proxy_protocol || !entry.instance.proxy_protocol.contains(&port) {
            return Ok(Vec::new());
        }
        let known = |address: Result<SocketAddr, Errno>| address.map_err(io::Error::from);
        let peer = rustix::net::getpeername(&conn.client)?.ok_or(Errno::NOTCONN)?;
        let client = known(SocketAddr::try_from(peer))?;
        let listener = known(SocketAddr::try_from(rustix::net::getsockname(&conn.client)?))?;
        Ok(proxy_header::format(client, listener))
    }

    /// Nobody has answered: another is tried, or it is over.
    pub(super) fn dial_timeout(&mut self, token: Token, conn: &mut Conn) -> Next {
        let limit = ticks(self.view.config.timeouts.connect);
        if conn.since.saturating_add(limit) > self.now {
            self.try_next(token, conn);
            return Next::Keep;
        }
        self.counters.connect_timeout += 1;
        for attempt in conn.attempts.drain(..) {
            attempt.entry.failed(self.now);
        }
        self.refuse(conn, Refuse::Timeout)
    }
}
