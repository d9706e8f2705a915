// SPDX-License-Identifier: Apache-2.0
//! TLS that the kernel takes over (kTLS), once a session has shown that much goes over it.
//!
//! Both directions change at one moment: when all that rustls has sealed is in the socket, and all that was read from it
//! has been opened. Reading stops at the end of a record for that.

use super::pump::{Broken, pass};
use super::{BUFFER, Worker};
use crate::conn::{Conn, Parts, Way};
use crate::kernel::{Asked, Kernel, Wrong, alert, is_wanted};
use crate::wheel::ticks;
use dstack_sys::ktls;
use rustix::io::Errno;
use std::io;

/// How soon it is looked again whether the kernel has passed on the last bytes, milliseconds: no event tells.
const DRAIN_MS: u64 = 20;

impl Worker {
    /// Whether a session should go over to the kernel, and nothing but the rest of a record stands in the way.
    fn is_due(&self, conn: &Conn) -> bool {
        let bulk = conn.session.as_ref().filter(|session| session.is_bulk());
        bulk.is_some_and(|session| is_wanted(session, self.shared.ktls, self.view.config.ktls))
            && !(conn.down.is_pending() || conn.down.ended || conn.client_ready.ending)
    }

    /// Whether a session goes over to the kernel now.
    pub(super) fn is_handed_over(&self, conn: &Conn) -> bool {
        conn.session.as_ref().is_some_and(|session| session.partial.is_empty()) && self.is_due(conn)
    }

    /// How much is read of the client's records: to the end of one, when the session is to go over then.
    pub(super) fn up_to_record(&self, conn: &Conn) -> usize {
        let missing = conn.session.as_ref().map_or(0, |session| session.missing());
        if (1..BUFFER).contains(&missing) && self.is_due(conn) { missing } else { BUFFER }
    }

    /// Hands a session over.
    pub(super) fn hand_over(&mut self, conn: &mut Conn) -> Result<(), Broken> {
        let prepared = ktls::attach(&conn.client).and_then(|()| ktls::written(&conn.client));
        let Ok(base) = prepared else {
            // Nothing has changed.
            conn.session.as_mut().into_iter().for_each(|session| session.stays = true);
            return Ok(());
        };
        let Some(session) = conn.session.take() else { return Err(Broken) };
        let kernel = Kernel::new(*session, &conn.client, base, self.shared.ktls);
        conn.kernel = Some(Box::new(self.whole(kernel)?));
        self.counters.ktls += 1;
        // What has come meanwhile was not told of.
        (conn.client_ready.readable, conn.down.splicing) = (true, true);
        Ok(())
    }

    /// Counts what the kernel could not do.
    fn whole<T>(&mut self, outcome: io::Result<T>) -> Result<T, Broken> {
        outcome.map_err(|_| {
            self.counters.ktls_failed += 1;
            Broken
        })
    }

    /// Takes what the kernel has opened and passes it to the app; returns the bytes of data.
    pub(super) fn records(&mut self, conn: &mut Conn) -> Result<usize, Broken> {
        let buffer = self.received.get_mut(..BUFFER).unwrap_or_default();
        let (count, kind) = match ktls::receive(&conn.client, buffer) {
            Ok(received) => received,
            Err(error) => return self.no_record(conn, &error),
        };
        let body = self.received.get(..count).unwrap_or_default();
        let (Some(kernel), true) = (&mut conn.kernel, kind != ktls::DATA) else {
            conn.kernel.as_mut().into_iter().for_each(|kernel| kernel.heard());
            conn.up.ended = count == 0;
            let Some(mut parts) = conn.parts(Way::Up) else { return Err(Broken) };
            pass(&mut parts, body, self.now)?;
            return Ok(count);
        };
        match kernel.record(kind, body) {
            Ok(asked) => self.asked(conn, asked),
            Err(Wrong(why)) => Err(self.tls_broken(conn, why)),
        }
    }

    fn no_record(&mut self, conn: &mut Conn, error: &io::Error) -> Result<usize, Broken> {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::INTR) => Ok(0),
            Some(Errno::AGAIN) => {
                conn.client_ready.readable = false;
                Ok(0)
            }
            Some(Errno::BADMSG) => Err(self.tls_broken(conn, Some(alert::BAD_RECORD_MAC))),
            Some(Errno::MSGSIZE) => Err(self.tls_broken(conn, Some(alert::RECORD_OVERFLOW))),
            _ => Err(Broken),
        }
    }

    fn tls_broken(&mut self, conn: &mut Conn, why: Option<u8>) -> Broken {
        self.counters.tls_broken += 1;
        if let (Some(kernel), Some(why)) = (&mut conn.kernel, why) {
            // What was wrong with a record is an error of the socket too, until it is asked for.
            let _ = rustix::net::sockopt::socket_error(&conn.client);
            // If the client's socket has room; a reset says the rest.
            let _ = kernel.alert(&conn.client, why);
        }
        Broken
    }

    fn asked(&mut self, conn: &mut Conn, asked: Asked) -> Result<usize, Broken> {
        let Some(kernel) = &mut conn.kernel else { return Err(Broken) };
        match asked {
            Asked::Nothing => {}
            Asked::End => conn.up.ended = true,
            Asked::NewKeys => {
                let renewed = kernel.renew_receive(&conn.client);
                if renewed.is_err() {
                    let _ = kernel.alert(&conn.client, alert::INTERNAL_ERROR);
                }
                self.whole(renewed)?;
            }
            Asked::Renegotiation => {
                self.counters.renegotiations += 1;
                // Only this once; a client that takes nothing meanwhile has no right to it.
                kernel.refuse_handshake(&conn.client).map_err(|_| Broken)?;
            }
        }
        Ok(0)
    }

    /// Changes our keys, when the client has asked for it or they are worn; `false` when that must wait.
    pub(super) fn renew(&mut self, parts: &mut Parts<'_>) -> Result<bool, Broken> {
        let Some(kernel) = &mut parts.kernel else { return Ok(true) };
        self.whole(kernel.spare(parts.sink))?;
        if !kernel.owes || kernel.closed {
            return Ok(true);
        }
        let renewed = match parts.sink_ready.writable {
            true => kernel.renew_transmit(parts.sink),
            false => Err(io::ErrorKind::WouldBlock.into()),
        };
        self.told(parts, renewed)
    }

    /// What came of telling the client something; `false` when there was no room.
    fn told(&mut self, parts: &mut Parts<'_>, outcome: io::Result<()>) -> Result<bool, Broken> {
        let told = match outcome {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                parts.sink_ready.writable = false;
                parts.lane.blocked =
                    if parts.lane.blocked == 0 { self.now.max(1) } else { parts.lane.blocked };
                return Ok(false);
            }
            // Gone, not refused.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Broken),
            other => self.whole(other),
        };
        told.map(|()| {
            parts.lane.blocked = 0;
            true
        })
    }

    /// Ends the kernel's session on the way down; `false` until TCP has got all of it.
    pub(super) fn say_end(&mut self, conn: &mut Conn) -> Result<bool, Broken> {
        let Some(mut parts) = conn.parts(Way::Down) else { return Err(Broken) };
        if parts.lane.done {
            return Ok(true);
        }
        let Some(kernel) = &mut parts.kernel else { return Ok(true) };
        if !kernel.closed {
            let told = kernel.close(parts.sink);
            if !self.told(&mut parts, told)? {
                return Ok(false);
            }
        }
        let Some(kernel) = &mut parts.kernel else { return Err(Broken) };
        let seen = kernel.seen;
        match kernel.is_drained(parts.sink) {
            Ok(true) => {
                (parts.lane.blocked, conn.drains) = (0, 0);
                return Ok(true);
            }
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(Broken),
            _ => {}
        }
        let moves = kernel.seen != seen || parts.lane.blocked == 0;
        parts.lane.blocked = if moves { self.now.max(1) } else { parts.lane.blocked };
        conn.drains = self.now.saturating_add(ticks(DRAIN_MS)).max(1);
        Ok(false)
    }
}
