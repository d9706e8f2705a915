// SPDX-License-Identifier: Apache-2.0
//! Moving bytes both ways, without ever waiting.
//!
//! Small amounts are copied through the worker's buffer (two calls); once a buffer comes full, the sender is emptied
//! through a pipe, which the kernel passes on without copying. A pipe and a buffer belong to a connection only while its
//! receiver is too slow for what has been read, and nothing more is read until that is gone. TLS that the kernel has
//! taken over is like plain bytes on the way down, and record by record on the way up.

use super::{BUFFER, Next, Worker};
use crate::conn::{Conn, Parts, Phase, Way};
use crate::io::{Io, Pipe, receive, send};
use crate::slab::Token;
use crate::wheel::Tick;
use rustix::net::Shutdown;

/// Bytes that one direction moves before other connections have their turn.
const QUOTA: usize = 1 << 20;
/// Most pipes that a worker keeps ready.
const PIPES_MAX: usize = 32;

/// A side is broken: the connection ends by a reset.
#[derive(Debug)]
pub struct Broken;

/// Whether a direction has come to rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// An event will tell when it goes on.
    Yes,
    /// It had its share.
    HasMore,
}

impl Worker {
    /// Moves what can be moved.
    pub(super) fn pump(&mut self, token: Token, conn: &mut Conn) -> Next {
        for way in [Way::Up, Way::Down] {
            match self.pump_way(conn, way) {
                Ok(Rest::Yes) => {}
                Ok(Rest::HasMore) => self.again.push(token),
                Err(Broken) => return self.broken(conn),
            }
        }
        // TLS may have put something into the other direction.
        let owes = conn.kernel.as_ref().is_some_and(|kernel| kernel.owes);
        let answer = (conn.down.is_pending() || owes) && conn.client_ready.writable;
        if answer && self.pump_way(conn, Way::Down).is_err() {
            return self.broken(conn);
        }
        if conn.up.done && conn.down.done {
            return Next::Close;
        }
        // Nobody reads a side any more that has said all; if it breaks, only the event tells.
        let lost =
            (conn.client_ready.hung_up && conn.up.done) || (conn.server_ready.hung_up && conn.down.done);
        if lost { self.broken(conn) } else { Next::Keep }
    }

    fn broken(&mut self, conn: &Conn) -> Next {
        self.counters.reset += 1;
        conn.abort();
        Next::Close
    }

    fn pump_way(&mut self, conn: &mut Conn, way: Way) -> Result<Rest, Broken> {
        let mut moved = 0;
        let rest = loop {
            if self.is_handed_over(conn) {
                self.hand_over(conn)?;
            }
            let records = conn.kernel.is_some() && way == Way::Up;
            let Some(mut parts) = conn.parts(way) else { break Rest::Yes };
            if !self.flush(&mut parts)? {
                break Rest::Yes;
            }
            if parts.lane.ended {
                if self.finish(conn, way)? {
                    continue;
                }
                break Rest::Yes;
            }
            if !parts.source_ready.readable || !parts.sink_ready.writable {
                break Rest::Yes;
            }
            if moved >= QUOTA {
                break Rest::HasMore;
            }
            moved += match (parts.session.is_some(), way) {
                (true, Way::Up) => self.unseal(conn)?,
                (true, Way::Down) => self.seal(&mut parts)?,
                _ if records => self.records(conn)?,
                (false, _) if parts.lane.splicing => self.splice(&mut parts)?,
                (false, _) => self.copy(&mut parts)?,
            };
        };
        if moved > 0 {
            conn.active = self.now;
            match way {
                Way::Up => self.counters.bytes_up += moved as u64,
                Way::Down => self.counters.bytes_down += moved as u64,
            }
        }
        Ok(rest)
    }

    /// Sends what waits; whether all is gone.
    pub(super) fn flush(&mut self, parts: &mut Parts<'_>) -> Result<bool, Broken> {
        if !self.renew(parts)? {
            return Ok(false);
        }
        while parts.lane.is_pending() {
            let lane = &mut *parts.lane;
            if !parts.sink_ready.writable {
                lane.blocked = if lane.blocked == 0 { self.now.max(1) } else { lane.blocked };
                return Ok(false);
            }
            let sent = match (&lane.pipe, lane.held.get(lane.at..)) {
                (Some(pipe), _) if lane.in_pipe > 0 => pipe.drain(parts.sink, lane.in_pipe),
                (_, rest) => send(parts.sink, rest.unwrap_or_default()),
            };
            match sent {
                Io::Moved(count) => {
                    match lane.in_pipe {
                        0 => lane.at += count,
                        _ => lane.in_pipe = lane.in_pipe.saturating_sub(count),
                    }
                    if let Some(kernel) = &mut parts.kernel {
                        kernel.sent(count);
                    }
                }
                Io::Blocked => {
                    parts.sink_ready.writable = false;
                    if lane.blocked == 0 {
                        lane.blocked = self.now.max(1);
                    }
                    return Ok(false);
                }
                Io::End | Io::Failed => return Err(Broken),
            }
            lane.blocked = 0;
        }
        let lane = &mut *parts.lane;
        if !lane.held.is_empty() {
            (lane.held, lane.at) = (Vec::new(), 0);
        }
        if let Some(pipe) = lane.pipe.take()
            && self.pipes.len() < PIPES_MAX
        {
            self.pipes.push(pipe);
        }
        Ok(true)
    }

    /// Tells the receiver that nothing more comes; `true` when there is something to send first.
    fn finish(&mut self, conn: &mut Conn, way: Way) -> Result<bool, Broken> {
        if let (Way::Down, Some(session)) = (way, &mut conn.session)
            && !session.closed
        {
            // When the session is beyond saying it, the end of the stream has to do.
            let _ = session.close(&mut conn.down.held);
            return Ok(conn.down.is_pending());
        }
        if way == Way::Down && !self.say_end(conn)? {
            return Ok(false);
        }
        let other_done = match way {
            Way::Up => conn.down.done,
            Way::Down => conn.up.done,
        };
        let Some(parts) = conn.parts(way) else { return Err(Broken) };
        // When both are done, closing says it.
        if !parts.lane.done && !other_done && rustix::net::shutdown(parts.sink, Shutdown::Write).is_err() {
            return Err(Broken);
        }
        parts.lane.done = true;
        Ok(false)
    }

    /// Copies one buffer; returns how many bytes were read.
    fn copy(&mut self, parts: &mut Parts<'_>) -> Result<usize, Broken> {
        let buffer = self.received.get_mut(..BUFFER).unwrap_or_default();
        let count = read(parts, buffer)?;
        parts.lane.splicing = count == BUFFER;
        parts.lane.burst = 0;
        let bytes = self.received.get(..count).unwrap_or_default();
        pass(parts, bytes, self.now)?;
        Ok(count)
    }

    /// Fills a pipe, which [`Self::flush`] empties; returns how many bytes were read.
    fn splice(&mut self, parts: &mut Parts<'_>) -> Result<usize, Broken> {
        let Some(pipe) = self.pipes.pop().or_else(|| Pipe::new().ok()) else {
            // No descriptors: copying needs none.
            parts.lane.splicing = false;
            return Ok(0);
        };
        let outcome = pipe.fill(parts.source);
        let lane = &mut *parts.lane;
        match outcome {
            Io::Moved(count) => {
                (lane.pipe, lane.in_pipe) = (Some(pipe), count);
                lane.burst = lane.burst.saturating_add(count);
                return Ok(count);
            }
            Io::Blocked => {
                parts.source_ready.readable = false;
                lane.splicing = lane.burst >= BUFFER;
                lane.burst = 0;
            }
            Io::End => lane.ended = true,
            Io::Failed => return Err(Broken),
        }
        self.pipes.push(pipe);
        Ok(0)
    }

    pub(super) fn open_timeout(&mut self, token: Token, conn: &mut Conn) -> Next {
        let timeouts = self.view.config.timeouts.clone();
        let over = |start: Tick, limit: Option<u64>| {
            limit.is_some_and(|limit| start.saturating_add(crate::wheel::ticks(limit)) <= self.now)
        };
        let blocked = conn.blocked().is_some_and(|since| over(since, timeouts.write));
        let drains = conn.drains > 0 && conn.drains <= self.now && !blocked;
        conn.drains = 0;
        if over(conn.started, timeouts.total) {
            self.counters.total_timeout += 1;
        } else if over(conn.active, timeouts.idle) {
            self.counters.idle_timeout += 1;
        } else if drains {
            return self.pump(token, conn);
        } else {
            // The kernel tells of room late, when a third of its buffer is free: a slow receiver is not a dead one.
            if self.nudge(conn).is_ok_and(|moved| moved) {
                // What has made room must be filled again: no event tells of room that was never missed.
                return self.pump(token, conn);
            }
            self.counters.write_timeout += 1;
        }
        conn.abort();
        Next::Close
    }

    /// Tries to send to those that seem to take nothing; whether all of them took something.
    fn nudge(&mut self, conn: &mut Conn) -> Result<bool, Broken> {
        let mut all = true;
        for way in [Way::Up, Way::Down] {
            let Some(mut parts) = conn.parts(way) else { return Ok(false) };
            let before = parts.lane.blocked;
            if before == 0 {
                continue;
            }
            let waiting = parts.lane.held.len().saturating_sub(parts.lane.at) + parts.lane.in_pipe;
            (parts.lane.blocked, parts.sink_ready.writable) = (0, true);
            self.flush(&mut parts)?;
            let left = parts.lane.held.len().saturating_sub(parts.lane.at) + parts.lane.in_pipe;
            if left == waiting {
                parts.lane.blocked = before;
                all = false;
            }
        }
        debug_assert!(conn.phase == Phase::Open);
        conn.active = self.now;
        Ok(all)
    }
}

/// Reads once and notes what that says of the sender; 0 when nothing came.
pub fn read(parts: &mut Parts<'_>, buffer: &mut [u8]) -> Result<usize, Broken> {
    let size = buffer.len();
    match receive(parts.source, buffer) {
        Io::Moved(count) => {
            // A short read has emptied it; an event tells of more, unless the end was already told.
            parts.source_ready.readable = count == size || parts.source_ready.ending;
            Ok(count)
        }
        Io::Blocked => {
            parts.source_ready.readable = false;
            Ok(0)
        }
        Io::End => {
            parts.lane.ended = true;
            Ok(0)
        }
        Io::Failed => Err(Broken),
    }
}

/// Sends at once what the receiver takes, and keeps the rest. Nothing else may wait.
pub fn pass(parts: &mut Parts<'_>, bytes: &[u8], now: Tick) -> Result<(), Broken> {
    if bytes.is_empty() {
        return Ok(());
    }
    let sent = match send(parts.sink, bytes) {
        Io::Moved(count) => count,
        Io::Blocked => 0,
        Io::End | Io::Failed => return Err(Broken),
    };
    if let Some(kernel) = &mut parts.kernel {
        kernel.sent(sent);
    }
    if sent < bytes.len() {
        parts.lane.held = bytes.get(sent..).unwrap_or_default().to_vec();
        parts.lane.at = 0;
        parts.lane.blocked = now.max(1);
        parts.sink_ready.writable = false;
    }
    Ok(())
}
