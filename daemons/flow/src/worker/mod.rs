// SPDX-License-Identifier: Apache-2.0
//! One event loop: it owns its connections, and nobody else touches them.
//!
//! A connection is taken out of the slab while something is done to it, so a defect that panics ends that connection
//! and no other.

mod accept;
mod dial;
mod ktls;
mod pump;
mod refuse;
mod route;
mod terminate;

use crate::conn::{Conn, Front, Phase, Ready};
use crate::io::{Pipe, Poller};
use crate::shared::{Seat, Shared, View};
use crate::slab::{Side, Slab, Token};
use crate::wheel::{TICK_MS, Tick, Wheel};
use dstack_core::flow::Counters;
use refuse::Refuse;
use rustix::event::epoll;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Bytes that are copied at a time.
const BUFFER: usize = 64 * 1024;
/// TLS handshakes that are begun in one turn: while one is (0.1 ms, with RSA 1 ms), all other connections wait.
const HANDSHAKES: usize = 1;
/// Events that are taken at a time.
const EVENTS: usize = 256;
/// Slot of events that are about no connection.
const NO_SLOT: u32 = u32::MAX;
/// Generation, with [`NO_SLOT`], of a listener's event.
const LISTENER: u32 = 0;
/// Generation, with [`NO_SLOT`], of the waker's event.
const WAKER: u32 = 1;

/// A listening socket, shared by all workers.
#[derive(Debug, Clone)]
pub struct Listener {
    /// The socket.
    pub fd: Arc<OwnedFd>,
    /// The door it is.
    pub front: Front,
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Keep,
    Close,
}

/// A worker.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    index: usize,
    listeners: Vec<Listener>,
    poller: Poller,
    view: Arc<View>,
    conns: Slab<Box<Conn>>,
    wheel: Wheel,
    now: Tick,
    counters: Counters,
    /// Accepted connections, the oldest first; those that are open or gone are skipped.
    half: VecDeque<Token>,
    /// Connections that had their turn and have more to move.
    again: Vec<Token>,
    /// Connections whose handshakes stand in line.
    queue: VecDeque<Token>,
    /// Handshakes that may still begin in this turn.
    handshakes: usize,
    /// Connections by the custom domain that they wait for.
    waiting: HashMap<Box<str>, Vec<Token>>,
    pipes: Vec<Pipe>,
    /// What was received.
    received: Box<[u8]>,
    /// What is to be sent.
    sealed: Box<[u8]>,
    /// What TLS carried.
    plain: Vec<u8>,
    accepting: accept::Accepting,
    /// Bytes of openings.
    buffered: usize,
}

impl Worker {
    /// A worker at a seat; it accepts from the listeners once it runs.
    ///
    /// # Errors
    /// When there are no descriptors.
    pub fn new(shared: Arc<Shared>, index: usize, listeners: Vec<Listener>, most: usize) -> io::Result<Self> {
        let now = shared.now();
        Ok(Self {
            view: shared.view.load_full(),
            index,
            listeners,
            poller: Poller::new()?,
            conns: Slab::default(),
            wheel: Wheel::new(now),
            now,
            counters: Counters::default(),
            half: VecDeque::new(),
            again: Vec::new(),
            queue: VecDeque::new(),
            handshakes: HANDSHAKES,
            waiting: HashMap::new(),
            pipes: Vec::new(),
            received: vec![0; terminate::RECEIVED].into(),
            sealed: vec![0; crate::session::sealed_max(BUFFER)].into(),
            plain: Vec::with_capacity(BUFFER),
            accepting: accept::Accepting::new(most),
            buffered: 0,
            shared,
        })
    }

    /// Runs until it was told to drain and its last connection has ended.
    ///
    /// # Errors
    /// When the system refuses to wait for events.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        if let Some(seat) = self.seat() {
            self.poller.wake(&seat.waker, Token { slot: NO_SLOT, generation: WAKER }.pack(0))?;
        }
        self.resume_accepting();
        loop {
            self.poller.wait(&mut events, self.patience())?;
            self.now = self.shared.now();
            self.handshakes = HANDSHAKES;
            for event in &events {
                let (flags, data) = (event.flags, event.data);
                self.event(data.u64(), flags);
            }
            self.turns();
            self.queued();
            self.timers();
            self.publish();
            if self.shared.draining.load(Relaxed) && self.conns.is_empty() && !self.accepting.is_on() {
                return Ok(());
            }
        }
    }

    fn seat(&self) -> Option<&Seat> {
        self.shared.seats.get(self.index)
    }

    /// How long nothing is due.
    fn patience(&self) -> Option<Duration> {
        if !self.again.is_empty() || !self.queue.is_empty() {
            return Some(Duration::ZERO);
        }
        let next = [self.wheel.next(), self.accepting.resumes()].into_iter().flatten().min()?;
        let ahead = u64::from(next.saturating_sub(self.shared.now()));
        Some(Duration::from_millis(ahead * TICK_MS + 1))
    }

    fn event(&mut self, data: u64, flags: epoll::EventFlags) {
        let (token, side) = Token::unpack(data);
        match (token.slot, token.generation) {
            (NO_SLOT, LISTENER) => self.accept(side),
            (NO_SLOT, _) => self.woken(),
            _ => self.with(token, |worker, conn| worker.socket_event(token, conn, side, flags)),
        }
    }

    /// Does something to a connection; whatever happens, only this connection is at stake.
    fn with(&mut self, token: Token, act: impl FnOnce(&mut Self, &mut Conn) -> Next) {
        let Some(mut conn) = self.conns.take(token) else { return };
        let (counted, half_open) = (conn.counted, conn.is_half_open());
        let done = catch_unwind(AssertUnwindSafe(|| {
            let next = act(self, &mut conn);
            (conn, next)
        }));
        match done {
            Ok((conn, Next::Keep)) => {
                self.counters.half_open += u64::from(conn.is_half_open());
                self.keep(token, conn);
            }
            Ok((_, Next::Close)) => self.forget(token, counted),
            Err(_) => {
                self.counters.panics += 1;
                self.forget(token, counted);
            }
        }
        self.counters.half_open = self.counters.half_open.saturating_sub(u64::from(half_open));
    }

    fn keep(&mut self, token: Token, mut conn: Box<Conn>) {
        self.buffered = self.buffered.saturating_sub(conn.counted) + conn.opening.capacity();
        conn.counted = conn.opening.capacity();
        self.arm(token, &mut conn);
        self.conns.put(token, conn);
    }

    fn forget(&mut self, token: Token, counted: usize) {
        self.buffered = self.buffered.saturating_sub(counted);
        self.conns.free(token);
    }

    /// Arms a timer, unless one fires early enough.
    fn arm(&mut self, token: Token, conn: &mut Conn) {
        let deadline = conn.deadline(&self.view.config.timeouts);
        if conn.timer == 0 || deadline < conn.timer {
            conn.timer = self.wheel.arm(deadline, token);
        }
    }

    fn socket_event(&mut self, token: Token, conn: &mut Conn, side: Side, flags: epoll::EventFlags) -> Next {
        if side == 0 {
            note(&mut conn.client_ready, flags);
        } else if side == conn.server_side && conn.server.is_some() {
            note(&mut conn.server_ready, flags);
        } else {
            return self.attempt_event(token, conn, side, flags);
        }
        self.advance(token, conn)
    }

    /// Goes as far as what has arrived allows.
    fn advance(&mut self, token: Token, conn: &mut Conn) -> Next {
        let gone = conn.client_ready.hung_up && !matches!(conn.phase, Phase::Open | Phase::Linger);
        if gone {
            self.counters.early_close += 1;
            return Next::Close;
        }
        match conn.phase {
            Phase::Hello => self.hello(token, conn),
            Phase::Handshake => self.handshake(token, conn),
            // What the client sends stays in its socket.
            Phase::Queue | Phase::Name | Phase::Dial => Next::Keep,
            Phase::Open => self.pump(token, conn),
            Phase::Linger => self.linger(conn),
        }
    }

    /// Lets connections that had more than their share go on.
    fn turns(&mut self) {
        for token in std::mem::take(&mut self.again) {
            self.with(token, |worker, conn| worker.advance(token, conn));
        }
    }

    /// Another thread has something to say.
    fn woken(&mut self) {
        let Some(seat) = self.seat() else { return };
        seat.waker.clear();
        let handed = seat.handed();
        self.view = self.shared.view.load_full();
        for (front, client) in handed {
            self.begin(front, client);
        }
        if self.shared.draining.load(Relaxed) {
            self.leave_listeners();
        }
        self.named();
    }

    fn timers(&mut self) {
        let mut fired = Vec::new();
        self.wheel.advance(self.now, &mut fired);
        for (at, token) in fired {
            self.with(token, |worker, conn| worker.timer(token, conn, at));
        }
        if self.accepting.resumes().is_some_and(|at| at <= self.now) {
            self.resume_accepting();
        }
    }

    fn timer(&mut self, token: Token, conn: &mut Conn, at: Tick) -> Next {
        if conn.timer != at {
            return Next::Keep; // an old one
        }
        conn.timer = 0;
        let timeouts = &self.view.config.timeouts;
        if conn.deadline(timeouts) > self.now {
            return Next::Keep;
        }
        match conn.phase {
            Phase::Hello => self.hello_timeout(conn),
            Phase::Queue | Phase::Handshake => {
                self.counters.handshake_timeout += 1;
                Next::Close
            }
            Phase::Name => {
                self.counters.name_timeout += 1;
                self.refuse(conn, Refuse::Timeout)
            }
            Phase::Dial => self.dial_timeout(token, conn),
            Phase::Open => self.open_timeout(token, conn),
            Phase::Linger => Next::Close,
        }
    }

    fn publish(&mut self) {
        let open = self.conns.len() as u64;
        self.counters.open = open;
        self.counters.ktls_offered = u64::from(self.index == 0 && self.shared.ktls.any());
        if let Some(seat) = self.seat() {
            seat.open.store(u32::try_from(open).unwrap_or(u32::MAX), Relaxed);
            seat.count(&self.counters);
        }
    }
}

/// Takes an event over into what is known of a socket.
fn note(ready: &mut Ready, flags: epoll::EventFlags) {
    let broken = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
    let ending = broken || flags.contains(epoll::EventFlags::RDHUP);
    ready.readable |= ending || flags.contains(epoll::EventFlags::IN);
    ready.writable |= broken || flags.contains(epoll::EventFlags::OUT);
    ready.ending |= ending;
    ready.hung_up |= broken;
}
