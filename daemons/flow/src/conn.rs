// SPDX-License-Identifier: Apache-2.0
//! One connection: a client, perhaps an instance, and what is between them.

use crate::io::Pipe;
use crate::kernel::Kernel;
use crate::session::Session;
use crate::slab::Side;
use crate::table::{AppLease, Entry, InstanceLease};
use crate::wheel::{Tick, ticks};
use dstack_core::flow::{Target, Timeouts};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// How long attempts may be without an answer before another instance is tried beside them, milliseconds. Whoever is gone
/// from the tunnel says nothing, not even no.
pub const STAGGER_MS: u64 = 500;

/// By which door a client came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Front {
    /// TLS, ended here or passed through as the name says.
    Ingress,
    /// TLS, always passed through.
    Passthrough,
    /// Plain HTTP.
    Http,
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The ClientHello or HTTP head is not whole.
    Hello,
    /// The control plane is asked where the name leads.
    Name,
    /// The hello is whole, and its handshake stands in line.
    Queue,
    /// TLS is being set up with the client.
    Handshake,
    /// Instances are being tried.
    Dial,
    /// Bytes flow.
    Open,
    /// All is said; the client is given time to read it.
    Linger,
}

/// What is known of a socket.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ready {
    /// There may be something to read.
    pub readable: bool,
    /// There may be room to write.
    pub writable: bool,
    /// The peer has ended its direction, or the connection is broken: reading will tell.
    pub ending: bool,
    /// Both directions have ended, or the connection is broken.
    pub hung_up: bool,
}

/// One direction of the flow.
#[derive(Debug, Default)]
pub struct Lane {
    /// Bytes that the receiver has not taken, from `at` on.
    pub held: Vec<u8>,
    /// Bytes of `held` that were sent.
    pub at: usize,
    /// A pipe, only while bytes are in it.
    pub pipe: Option<Pipe>,
    /// Bytes in the pipe.
    pub in_pipe: usize,
    /// The sender has said all.
    pub ended: bool,
    /// The receiver knows.
    pub done: bool,
    /// Large amounts are coming: they go by a pipe.
    pub splicing: bool,
    /// Bytes spliced since the sender was last empty.
    pub burst: usize,
    /// Since when the receiver takes nothing; 0 when it does.
    pub blocked: Tick,
}

impl Lane {
    /// Whether bytes wait for the receiver.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.in_pipe > 0 || self.at < self.held.len()
    }
}

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the client to the app.
    Up,
    /// From the app to the client.
    Down,
}

/// An attempt to reach an instance.
#[derive(Debug)]
pub struct Attempt {
    /// The socket.
    pub fd: OwnedFd,
    /// Its number among the connection's sockets.
    pub side: Side,
    /// Whom it tries to reach.
    pub entry: Arc<Entry>,
    /// When it began.
    pub since: Tick,
}

/// A connection.
#[derive(Debug)]
pub struct Conn {
    /// The client.
    pub client: OwnedFd,
    /// The instance, once it was reached.
    pub server: Option<OwnedFd>,
    /// Number of the instance's socket.
    pub server_side: Side,
    /// The door.
    pub front: Front,
    /// How far it is.
    pub phase: Phase,
    /// What the client has sent and no instance has got.
    pub opening: Vec<u8>,
    /// Bytes that must be there before the opening is worth another look.
    pub needed: usize,
    /// The custom domain that is being asked.
    pub name: Option<Box<str>>,
    /// Where it goes.
    pub target: Option<Target>,
    /// The client's socket.
    pub client_ready: Ready,
    /// The instance's socket.
    pub server_ready: Ready,
    /// From client to instance.
    pub up: Lane,
    /// From instance to client.
    pub down: Lane,
    /// TLS, when it ends here.
    pub session: Option<Box<Session>>,
    /// TLS, once the kernel has taken it over.
    pub kernel: Option<Box<Kernel>>,
    /// When it is looked again whether the kernel has passed on the last bytes to the client; 0 when nothing waits.
    pub drains: Tick,
    /// Counts for the app.
    pub app: Option<AppLease>,
    /// Counts for the instance.
    pub instance: Option<InstanceLease>,
    /// Instances being tried.
    pub attempts: Vec<Attempt>,
    /// Instances to try when those fail, or do not answer soon.
    pub rest: std::vec::IntoIter<Arc<Entry>>,
    /// When the last attempt began.
    pub tried: Tick,
    /// When it was accepted.
    pub started: Tick,
    /// When its phase began.
    pub since: Tick,
    /// When a byte moved last.
    pub active: Tick,
    /// When its timer fires; others are old.
    pub timer: Tick,
    /// Bytes of the opening that the worker has counted.
    pub counted: usize,
}

/// One direction of a connection, with all that moving bytes takes.
#[derive(Debug)]
pub struct Parts<'a> {
    /// Who sends.
    pub source: &'a OwnedFd,
    /// Who receives.
    pub sink: &'a OwnedFd,
    /// The sender's socket.
    pub source_ready: &'a mut Ready,
    /// The receiver's socket.
    pub sink_ready: &'a mut Ready,
    /// The direction.
    pub lane: &'a mut Lane,
    /// TLS, when it ends here.
    pub session: Option<&'a mut Session>,
    /// TLS of the kernel, when it makes records of what is sent here.
    pub kernel: Option<&'a mut Kernel>,
}

impl Conn {
    /// A client that has just been accepted.
    #[must_use]
    pub fn new(client: OwnedFd, front: Front, now: Tick) -> Self {
        Self {
            client,
            server: None,
            server_side: 0,
            front,
            phase: Phase::Hello,
            opening: Vec::new(),
            needed: 0,
            name: None,
            target: None,
            client_ready: Ready { readable: true, writable: true, ..Ready::default() },
            server_ready: Ready::default(),
            up: Lane::default(),
            down: Lane::default(),
            session: None,
            kernel: None,
            drains: 0,
            app: None,
            instance: None,
            attempts: Vec::new(),
            rest: Vec::new().into_iter(),
            tried: now,
            started: now,
            since: now,
            active: now,
            timer: 0,
            counted: 0,
        }
    }

    /// Goes on to a phase.
    pub const fn enter(&mut self, phase: Phase, now: Tick) {
        self.phase = phase;
        self.since = now;
    }

    /// Whether it has not reached an app, or no longer has one.
    #[must_use]
    pub const fn is_half_open(&self) -> bool {
        !matches!(self.phase, Phase::Open)
    }

    /// One direction; `None` before an instance was reached.
    pub fn parts(&mut self, way: Way) -> Option<Parts<'_>> {
        let server = self.server.as_ref()?;
        let session = self.session.as_deref_mut();
        Some(match way {
            Way::Up => Parts {
                source: &self.client,
                sink: server,
                source_ready: &mut self.client_ready,
                sink_ready: &mut self.server_ready,
                lane: &mut self.up,
                session,
                kernel: None,
            },
            Way::Down => Parts {
                source: server,
                sink: &self.client,
                source_ready: &mut self.server_ready,
                sink_ready: &mut self.client_ready,
                lane: &mut self.down,
                session,
                kernel: self.kernel.as_deref_mut(),
            },
        })
    }

    /// Makes closing tell both sides that something was cut: by a reset.
    pub fn abort(&self) {
        // A socket that cannot be told so is closed in the ordinary way.
        let _ = rustix::net::sockopt::set_socket_linger(&self.client, Some(Duration::ZERO));
        if let Some(server) = &self.server {
            let _ = rustix::net::sockopt::set_socket_linger(server, Some(Duration::ZERO));
        }
    }

    /// When it must have got further.
    #[must_use]
    pub fn deadline(&self, timeouts: &Timeouts) -> Tick {
        let after = |start: Tick, limit: u64| start.saturating_add(ticks(limit));
        match self.phase {
            Phase::Hello | Phase::Queue | Phase::Handshake => after(self.since, timeouts.handshake),
            Phase::Dial if !self.rest.as_slice().is_empty() => {
                after(self.since, timeouts.connect).min(after(self.tried, STAGGER_MS))
            }
            Phase::Name | Phase::Dial => after(self.since, timeouts.connect),
            Phase::Linger => after(self.since, timeouts.shutdown),
            Phase::Open => {
                let idle = timeouts.idle.map(|limit| after(self.active, limit));
                let total = timeouts.total.map(|limit| after(self.started, limit));
                let write = timeouts.write.and_then(|limit| self.blocked().map(|since| after(since, limit)));
                let drains = (self.drains > 0).then_some(self.drains);
                [idle, total, write, drains].into_iter().flatten().min().unwrap_or(Tick::MAX)
            }
        }
    }

    /// Since when one side takes nothing.
    #[must_use]
    pub fn blocked(&self) -> Option<Tick> {
        [self.up.blocked, self.down.blocked].into_iter().filter(|since| *since > 0).min()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn conn() -> Conn {
        let (client, _) = rustix::pipe::pipe().unwrap();
        Conn::new(client, Front::Ingress, 100)
    }

    #[test]
    fn each_phase_has_its_deadline() {
        let (mut conn, times) =
            (conn(), Timeouts { write: Some(7_000), handshake: 4_000, ..Timeouts::default() });
        assert_eq!(conn.deadline(&times), 100 + ticks(4_000));
        for (phase, limit) in
            [(Phase::Name, 5_000), (Phase::Dial, 5_000), (Phase::Handshake, 4_000), (Phase::Linger, 5_000)]
        {
            conn.enter(phase, 200);
            assert_eq!(conn.deadline(&times), 200 + ticks(limit), "{phase:?}");
        }
        conn.enter(Phase::Open, 300);
        conn.active = 400;
        assert_eq!(conn.deadline(&times), 400 + ticks(600_000));
        (conn.up.blocked, conn.down.blocked) = (500, 450);
        assert_eq!(conn.deadline(&times), 450 + ticks(7_000));
        let never = Timeouts { idle: None, write: None, total: None, ..times };
        assert_eq!(conn.deadline(&never), Tick::MAX);
    }

    #[test]
    fn p31_the_idle_time_counts_both_directions() {
        let mut conn = conn();
        conn.enter(Phase::Open, 100);
        (conn.up.ended, conn.up.done, conn.active) = (true, true, 90_000);
        assert_eq!(conn.deadline(&Timeouts { total: None, ..Timeouts::default() }), 90_000 + ticks(600_000));
    }
}
