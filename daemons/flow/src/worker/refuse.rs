// SPDX-License-Identifier: Apache-2.0
//! Ending a connection that reaches no app: with a word that the client understands, where there is one.

use super::{Next, Worker};
use crate::conn::{Conn, Front, Phase};
use crate::io::{Io, receive, send};
use rustix::net::Shutdown;

/// Most reads of what a refused client still sends, at a time.
const SWALLOWED_MAX: usize = 16;

/// Why a client does not reach an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refuse {
    NotTls,
    NoName,
    UnknownName,
    BadRequest,
    HeadTooLarge,
    Slow,
    NoCertificate,
    NoInstance,
    Port,
    Full,
    Unreachable,
    Timeout,
}

impl Refuse {
    /// Status line and sentence of an HTTP answer.
    const fn http(self) -> (&'static str, &'static str) {
        match self {
            Self::NotTls | Self::NoName | Self::BadRequest => {
                ("400 Bad Request", "The request is not one for a path, with one Host.")
            }
            Self::UnknownName | Self::NoCertificate => ("404 Not Found", "No app has this name."),
            Self::HeadTooLarge => ("431 Request Header Fields Too Large", "The request head is too large."),
            Self::Slow => ("408 Request Timeout", "The request head took too long."),
            Self::Port => ("403 Forbidden", "The app does not offer this port."),
            Self::NoInstance | Self::Full => ("503 Service Unavailable", "The app takes no connections now."),
            Self::Unreachable => ("502 Bad Gateway", "The app does not answer at this port."),
            Self::Timeout => ("504 Gateway Timeout", "The app did not answer in time."),
        }
    }

    /// TLS alert (RFC 8446 section 6) before a session is set up; none for what is not TLS.
    const fn alert(self) -> Option<u8> {
        match self {
            Self::NotTls | Self::BadRequest | Self::HeadTooLarge | Self::Slow => None,
            Self::NoName | Self::UnknownName | Self::NoCertificate => Some(112), // unrecognized_name
            Self::Port => Some(49),                                              // access_denied
            Self::NoInstance | Self::Full | Self::Unreachable | Self::Timeout => Some(80), // internal_error
        }
    }

    fn response(self) -> Vec<u8> {
        let (status, sentence) = self.http();
        let length = sentence.len() + 1;
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\
             Cache-Control: no-store\r\nConnection: close\r\n\r\n{sentence}\n"
        )
        .into_bytes()
    }
}

impl Worker {
    fn count_refused(&mut self, why: Refuse) {
        let counters = &mut self.counters;
        let counter = match why {
            Refuse::NotTls => &mut counters.not_tls,
            Refuse::NoName => &mut counters.no_name,
            Refuse::UnknownName => &mut counters.unknown_name,
            Refuse::BadRequest | Refuse::HeadTooLarge => &mut counters.bad_http,
            Refuse::NoCertificate => &mut counters.no_certificate,
            Refuse::NoInstance => &mut counters.no_instance,
            Refuse::Port => &mut counters.port_refused,
            Refuse::Full => &mut counters.app_full,
            // Counted where they were found.
            Refuse::Slow | Refuse::Unreachable | Refuse::Timeout => return,
        };
        *counter += 1;
    }

    /// Says why, gives everything back, and leaves the client a while to read it.
    pub(super) fn refuse(&mut self, conn: &mut Conn, why: Refuse) -> Next {
        self.count_refused(why);
        let mut words = std::mem::take(&mut conn.down.held);
        match &mut conn.session {
            Some(session) => {
                if session.speaks_http1() && session.established {
                    let response = why.response();
                    let sealed = session.seal(&response, &mut self.sealed).unwrap_or_default();
                    words.extend_from_slice(self.sealed.get(..sealed).unwrap_or_default());
                }
                // Without a session that can say so, the end of the stream has to do.
                let _ = session.close(&mut words);
            }
            None if conn.front == Front::Http => words = why.response(),
            None => words.extend(why.alert().into_iter().flat_map(|alert| [21, 3, 3, 0, 2, 2, alert])),
        }
        self.farewell(conn, &words)
    }

    /// Sends last words and ends our direction; what does not fit into the socket is lost.
    pub(super) fn farewell(&mut self, conn: &mut Conn, words: &[u8]) -> Next {
        conn.opening = Vec::new();
        (conn.app, conn.instance, conn.session, conn.name) = (None, None, None, None);
        (conn.attempts, conn.rest) = (Vec::new(), Vec::new().into_iter());
        if words.is_empty() || !send(&conn.client, words).is_moved() {
            return Next::Close;
        }
        if rustix::net::shutdown(&conn.client, Shutdown::Write).is_err() {
            return Next::Close;
        }
        conn.enter(Phase::Linger, self.now);
        self.linger(conn)
    }

    /// Swallows what the client still sends, so that closing does not take back what it was told.
    pub(super) fn linger(&mut self, conn: &mut Conn) -> Next {
        for _ in 0..SWALLOWED_MAX {
            if !conn.client_ready.readable {
                return Next::Keep;
            }
            match receive(&conn.client, &mut self.received) {
                Io::Moved(_) => {}
                Io::Blocked => conn.client_ready.readable = false,
                Io::End | Io::Failed => return Next::Close,
            }
        }
        Next::Close
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn responses_say_their_length() {
        for why in [Refuse::BadRequest, Refuse::UnknownName, Refuse::Full, Refuse::Timeout, Refuse::Slow] {
            let text = String::from_utf8(why.response()).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("Content-Length: {}", body.len())), "{text}");
        }
    }
}
