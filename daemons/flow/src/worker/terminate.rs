// SPDX-License-Identifier: Apache-2.0
//! Ending TLS. The instance is dialled once the handshake is over, so that who cannot finish one reaches no app.

use super::pump::{Broken, pass, read};
use super::refuse::Refuse;
use super::{BUFFER, Next, Worker};
use crate::conn::{Conn, Parts, Phase};
use crate::io::{Io, receive, send};
use crate::session::Session;
use crate::slab::Token;
use dstack_core::client_hello::ClientHello;

/// Largest beginning of a TLS record that waits for its rest.
const PARTIAL_MAX: usize = 20 * 1024;
/// Room for what was received, behind the beginning of a record.
pub const RECEIVED: usize = PARTIAL_MAX + BUFFER;

impl Worker {
    /// Begins a handshake with the hello that has come.
    pub(super) fn terminate(
        &mut self,
        token: Token,
        conn: &mut Conn,
        http2: bool,
        hello: &ClientHello,
    ) -> Next {
        if let Err(why) = self.candidates(conn) {
            return self.refuse(conn, why);
        }
        if !self.is_its_turn(token, conn) {
            return Next::Keep;
        }
        let name = hello.server_name.as_deref().unwrap_or_default();
        let session = match &self.view.tls {
            Some(tls) if tls.covers(name) => Session::new(tls.config(http2, &hello.alpn)),
            _ => return self.refuse(conn, Refuse::NoCertificate),
        };
        let Ok(session) = session else {
            self.counters.tls_failed += 1;
            return Next::Close;
        };
        conn.session = Some(Box::new(session));
        conn.enter(Phase::Handshake, self.now);
        let mut opening = std::mem::take(&mut conn.opening);
        match self.shake(conn, &mut opening) {
            Ok(()) => self.handshake(token, conn),
            Err(next) => next,
        }
    }

    /// Whether a handshake may begin now; otherwise it stands in line, under the deadline of its hello.
    fn is_its_turn(&mut self, token: Token, conn: &mut Conn) -> bool {
        let in_line = conn.phase == Phase::Queue;
        if !in_line && (self.handshakes == 0 || !self.queue.is_empty()) {
            conn.phase = Phase::Queue;
            self.queue.push_back(token);
            return false;
        }
        self.handshakes = self.handshakes.saturating_sub(1);
        true
    }

    /// Begins handshakes that stand in line, as many as this turn may have.
    pub(super) fn queued(&mut self) {
        while self.handshakes > 0
            && let Some(token) = self.queue.pop_front()
        {
            self.with(token, |worker, conn| match conn.phase {
                Phase::Queue => worker.follow(token, conn),
                _ => Next::Keep,
            });
        }
    }

    /// Goes on with the handshake as far as the client allows.
    pub(super) fn handshake(&mut self, token: Token, conn: &mut Conn) -> Next {
        loop {
            if !self.flush_client(conn) {
                self.counters.early_close += 1;
                return Next::Close;
            }
            if conn.session.as_ref().is_some_and(|session| session.established) {
                return self.shaken(token, conn);
            }
            if conn.down.is_pending() || !conn.client_ready.readable {
                return Next::Keep;
            }
            let partial = conn.session.as_mut().map(|session| std::mem::take(&mut session.partial));
            let mut bytes = partial.unwrap_or_default();
            match receive(&conn.client, self.received.get_mut(..BUFFER).unwrap_or_default()) {
                Io::Moved(count) => {
                    bytes.extend_from_slice(self.received.get(..count).unwrap_or_default());
                    conn.client_ready.readable = count == BUFFER || conn.client_ready.ending;
                }
                Io::Blocked => conn.client_ready.readable = false,
                Io::End | Io::Failed => {
                    self.counters.early_close += 1;
                    return Next::Close;
                }
            }
            if let Err(next) = self.shake(conn, &mut bytes) {
                return next;
            }
        }
    }

    /// Gives bytes to the session; what it says to the client waits in `down`, what the client says to the app in
    /// `opening`.
    fn shake(&mut self, conn: &mut Conn, bytes: &mut [u8]) -> Result<(), Next> {
        let Some(session) = conn.session.as_mut() else { return Err(Next::Close) };
        let used = session.open(bytes, &mut conn.opening, &mut conn.down.held);
        let rest = used.as_ref().map(|used| bytes.get(*used..).unwrap_or_default());
        match rest {
            Ok(rest) if rest.len() <= PARTIAL_MAX && conn.opening.len() <= BUFFER => {
                session.partial = rest.to_vec();
                conn.up.ended = session.ended;
                Ok(())
            }
            _ => {
                self.counters.tls_failed += 1;
                let words = std::mem::take(&mut conn.down.held);
                Err(self.farewell(conn, &words))
            }
        }
    }

    /// Sends what the handshake has to say; `false` when the client is gone.
    fn flush_client(&mut self, conn: &mut Conn) -> bool {
        while conn.client_ready.writable && conn.down.at < conn.down.held.len() {
            match send(&conn.client, conn.down.held.get(conn.down.at..).unwrap_or_default()) {
                Io::Moved(count) => conn.down.at += count,
                Io::Blocked => conn.client_ready.writable = false,
                Io::End | Io::Failed => return false,
            }
        }
        if !conn.down.is_pending() {
            (conn.down.held, conn.down.at) = (Vec::new(), 0);
        }
        true
    }

    /// The handshake is over.
    fn shaken(&mut self, token: Token, conn: &mut Conn) -> Next {
        self.counters.resumed += u64::from(conn.session.as_ref().is_some_and(|session| session.resumed()));
        self.dial(token, conn)
    }

    /// Takes records of the client and passes what they carry to the app; returns the bytes that were read.
    pub(super) fn unseal(&mut self, conn: &mut Conn) -> Result<usize, Broken> {
        let mut out = Vec::new();
        let room = self.up_to_record(conn);
        let Some(mut parts) = conn.parts(crate::conn::Way::Up) else { return Err(Broken) };
        let count = self.unseal_parts(&mut parts, room, &mut out);
        if count.is_err() {
            // The reason, if there is one and the client's socket has room; a reset says the rest.
            let _ = send(&conn.client, &out);
        }
        let count = count?;
        conn.down.held.append(&mut out);
        Ok(count)
    }

    fn unseal_parts(
        &mut self,
        parts: &mut Parts<'_>,
        room: usize,
        out: &mut Vec<u8>,
    ) -> Result<usize, Broken> {
        let partial = parts.session.as_mut().map(|session| std::mem::take(&mut session.partial));
        let partial = partial.unwrap_or_default();
        let (head, tail) = self.received.split_at_mut_checked(partial.len()).ok_or(Broken)?;
        head.copy_from_slice(&partial);
        let count = read(parts, tail.get_mut(..room).unwrap_or_default())?;
        let bytes = self.received.get_mut(..partial.len() + count).unwrap_or_default();
        let Some(session) = parts.session.as_mut() else { return Err(Broken) };
        self.plain.clear();
        let used = session.open(bytes, &mut self.plain, out);
        let rest = used.as_ref().map(|used| bytes.get(*used..).unwrap_or_default());
        let Some(rest) = rest.ok().filter(|rest| rest.len() <= PARTIAL_MAX) else {
            self.counters.tls_broken += 1;
            return Err(Broken);
        };
        // All that TLS 1.2 itself has to say in an open session is no to another handshake.
        self.counters.renegotiations += u64::from(!out.is_empty() && session.is_tls12() && !session.ended);
        session.partial = rest.to_vec();
        parts.lane.ended |= session.ended;
        pass(parts, &self.plain, self.now)?;
        Ok(count)
    }

    /// Seals what the app says; returns the bytes that were read.
    pub(super) fn seal(&mut self, parts: &mut Parts<'_>) -> Result<usize, Broken> {
        let count = read(parts, self.received.get_mut(..BUFFER).unwrap_or_default())?;
        if count == 0 {
            return Ok(0);
        }
        let Some(session) = parts.session.as_mut() else { return Err(Broken) };
        let plain = self.received.get(..count).unwrap_or_default();
        let length = session.seal(plain, &mut self.sealed).map_err(|_| Broken)?;
        let sealed = self.sealed.get(..length).unwrap_or_default();
        pass(parts, sealed, self.now)?;
        Ok(count)
    }
}
