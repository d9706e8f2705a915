// SPDX-License-Identifier: Apache-2.0
//! From the first bytes of a client to where it goes.

use super::refuse::Refuse;
use super::{BUFFER, Next, Worker};
use crate::conn::{Conn, Front, Phase};
use crate::io::{Io, receive};
use crate::names::Known;
use crate::slab::Token;
use dstack_core::client_hello::{self, ClientHello, HelloError};
use dstack_core::flow::Target;
use dstack_core::sni::{self, Mode, Route, RouteError};
use dstack_core::{client_hello::PREFIX_MAX, http_head};

/// What the first bytes say.
enum Opening {
    /// Not enough.
    Partial,
    /// Where to, what to do with TLS, and the hello.
    To(Target, Mode, Option<ClientHello>),
    /// Whatever this domain's owner says.
    Custom(String),
    /// Nowhere.
    Refused(Refuse),
}

impl Worker {
    /// Reads the opening and acts on it once it is whole.
    pub(super) fn hello(&mut self, token: Token, conn: &mut Conn) -> Next {
        while conn.client_ready.readable && conn.opening.len() < PREFIX_MAX {
            let room =
                self.received.get_mut(..BUFFER.min(PREFIX_MAX - conn.opening.len())).unwrap_or_default();
            let size = room.len();
            match receive(&conn.client, room) {
                Io::Moved(count) => {
                    conn.client_ready.readable = count == size || conn.client_ready.ending;
                    conn.opening.extend_from_slice(room.get(..count).unwrap_or_default());
                }
                Io::Blocked => conn.client_ready.readable = false,
                // It has asked, and says no more. Reading would tell so again, which a handshake must hear.
                Io::End if !conn.opening.is_empty() && self.look(conn).is_whole() => {
                    conn.up.ended = true;
                    break;
                }
                Io::End | Io::Failed => {
                    self.counters.early_close += 1;
                    return Next::Close;
                }
            }
        }
        if conn.opening.len() < conn.needed.max(1) {
            return Next::Keep;
        }
        self.follow(token, conn)
    }

    /// Acts on the opening as far as it is there.
    pub(super) fn follow(&mut self, token: Token, conn: &mut Conn) -> Next {
        match self.look(conn) {
            Opening::Partial => Next::Keep,
            Opening::Refused(why) => self.refuse(conn, why),
            Opening::To(target, mode, hello) => self.lead(token, conn, target, mode, hello),
            Opening::Custom(name) => self.custom(token, conn, &name),
        }
    }

    fn look(&mut self, conn: &mut Conn) -> Opening {
        if conn.front == Front::Http {
            return match http_head::parse(&conn.opening) {
                Ok(http_head::Progress::NeedMore) => Opening::Partial,
                Ok(http_head::Progress::Done { host, .. }) => self.by_name(conn.front, &host, None),
                Err(http_head::HeadError::TooLarge) => Opening::Refused(Refuse::HeadTooLarge),
                Err(_) => Opening::Refused(Refuse::BadRequest),
            };
        }
        match client_hello::parse(&conn.opening) {
            Ok(client_hello::Progress::NeedMore(needed)) => {
                conn.needed = needed;
                Opening::Partial
            }
            Ok(client_hello::Progress::Done(hello)) => match hello.server_name.clone() {
                Some(name) => self.by_name(conn.front, &name, Some(hello)),
                None => Opening::Refused(Refuse::NoName),
            },
            Err(HelloError::ServerName) => Opening::Refused(Refuse::UnknownName),
            Err(_) => Opening::Refused(Refuse::NotTls),
        }
    }

    fn by_name(&self, front: Front, name: &str, hello: Option<ClientHello>) -> Opening {
        let route = |base: &String| match front {
            Front::Ingress => sni::route(name, base),
            Front::Passthrough => sni::route_passthrough(name, base),
            Front::Http => sni::route_http(name, base, self.view.config.tappd_port),
        };
        let under = |found: &Result<Route, RouteError>| !matches!(found, Ok(Route::Custom(_)));
        match self.view.config.base_domains.iter().map(route).find(under) {
            Some(Ok(Route::App { id, port, mode })) => Opening::To(Target { id, port }, mode, hello),
            Some(_) => Opening::Refused(Refuse::UnknownName),
            // A custom domain's owner names a TLS port.
            None if front == Front::Http => Opening::Refused(Refuse::UnknownName),
            None => Opening::Custom(name.trim_end_matches('.').to_owned()),
        }
    }

    fn lead(
        &mut self,
        token: Token,
        conn: &mut Conn,
        target: Target,
        mode: Mode,
        hello: Option<ClientHello>,
    ) -> Next {
        conn.target = Some(target);
        match (mode, hello) {
            (Mode::Passthrough, _) | (_, None) => self.dial(token, conn),
            (mode, Some(hello)) => self.terminate(token, conn, mode == Mode::TerminateHttp2, &hello),
        }
    }

    fn custom(&mut self, token: Token, conn: &mut Conn, name: &str) -> Next {
        match self.shared.name(name, self.now) {
            Known::Answer(None) => self.refuse(conn, Refuse::UnknownName),
            Known::Answer(Some(target)) => {
                conn.target = Some(target);
                self.dial(token, conn)
            }
            Known::Full => {
                self.counters.name_timeout += 1;
                self.refuse(conn, Refuse::Timeout)
            }
            Known::Wait { ask } => {
                self.counters.name_lookups += u64::from(ask);
                let name: Box<str> = name.into();
                self.waiting.entry(name.clone()).or_default().push(token);
                conn.name = Some(name);
                conn.enter(Phase::Name, self.now);
                Next::Keep
            }
        }
    }

    /// Looks whether names that connections wait for are known by now.
    pub(super) fn named(&mut self) {
        let names: Vec<Box<str>> = self.waiting.keys().cloned().collect();
        for name in names {
            let waits = |worker: &Self, token: &Token| {
                worker.conns.get(*token).is_some_and(|conn| conn.name.is_some())
            };
            let tokens = self.waiting.remove(&name).unwrap_or_default();
            let tokens: Vec<Token> = tokens.into_iter().filter(|token| waits(self, token)).collect();
            if tokens.is_empty() {
                continue;
            }
            if matches!(self.shared.name(&name, self.now), Known::Wait { .. } | Known::Full) {
                self.waiting.insert(name, tokens);
                continue;
            }
            for token in tokens {
                self.with(token, |worker, conn| {
                    conn.name = None;
                    worker.custom(token, conn, &name)
                });
            }
        }
    }

    pub(super) fn hello_timeout(&mut self, conn: &mut Conn) -> Next {
        self.counters.hello_timeout += 1;
        if conn.front == Front::Http && !conn.opening.is_empty() {
            return self.refuse(conn, Refuse::Slow);
        }
        Next::Close
    }
}

impl Opening {
    const fn is_whole(&self) -> bool {
        !matches!(self, Self::Partial)
    }
}
