// SPDX-License-Identifier: Apache-2.0
//! The link to the control plane: it may go away at any time, and what it said stays in force.

use crate::shared::{Shared, View};
use crate::table::Table;
use crate::tls::{Tickets, Tls, TlsError};
use dstack_core::flow::{self, Config, Decoder, FrameError, FromFlow, InstanceStats, Parsed, Stats, ToFlow};
use dstack_core::ids::InstanceId;
use rustix::event::PollFlags;
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// First and longest pause before connecting again.
const PAUSE: std::ops::RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(2);
/// How often numbers are sent.
const STATS: Duration = Duration::from_secs(3);
/// Most bytes that wait for a control plane that does not read.
const UNSENT_MAX: usize = 4 * 1024 * 1024;
/// Bytes that are read at a time.
const PIECE: usize = 256 * 1024;

/// Why the link is of no use any more.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The control plane says what is no frame.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// The control plane has closed it.
    #[error("it closed the connection")]
    Closed,
    /// The control plane does not read.
    #[error("it does not read what it is told")]
    Stuck,
}

/// A live connection to the control plane.
#[derive(Debug)]
struct Link {
    stream: UnixStream,
    decoder: Decoder,
    unsent: Vec<u8>,
}

/// What is known, and the way to more.
#[derive(Debug)]
pub struct Control {
    path: Option<PathBuf>,
    generation: u64,
    shared: Arc<Shared>,
    tickets: Tickets,
    config: Option<Config>,
    table: Option<Arc<Table>>,
    tls: Option<Arc<Tls>>,
    link: Option<Link>,
    retry: Instant,
    pause: Duration,
    next_stats: Instant,
    told: (flow::Counters, HashMap<InstanceId, InstanceStats>),
}

/// Writes a line to the journal, with its severity as syslog numbers them.
pub fn log(severity: u8, text: &str) {
    eprintln!("<{severity}>{text}");
}

impl Control {
    /// A control without link; it connects to `path` when polled, or never.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(path: Option<PathBuf>, generation: u64, shared: Arc<Shared>) -> Result<Self, TlsError> {
        let now = Instant::now();
        Ok(Self {
            path,
            generation,
            shared,
            tickets: Tickets::new()?,
            config: None,
            table: None,
            tls: None,
            link: None,
            retry: now,
            pause: *PAUSE.start(),
            next_stats: now + STATS,
            told: Default::default(),
        })
    }

    /// Whether enough is known to accept clients.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        self.config.is_some() && self.table.is_some()
    }

    /// The socket to poll and for what, when there is a link.
    #[must_use]
    pub fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let link = self.link.as_ref()?;
        let write = if link.unsent.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        Some((link.stream.as_fd(), PollFlags::IN | write))
    }

    /// How long nothing is due.
    #[must_use]
    pub fn patience(&self) -> Option<Duration> {
        self.path.as_ref()?;
        let due = if self.link.is_some() { self.next_stats } else { self.retry };
        Some(due.saturating_duration_since(Instant::now()))
    }

    /// Does all that is due.
    pub fn turn(&mut self) {
        if self.path.is_some() && self.link.is_none() && Instant::now() >= self.retry {
            self.connect();
        }
        if let Err(error) = self.exchange() {
            log(
                4,
                &format!("The control plane is gone: {error}; going on with what it said, and trying again"),
            );
            self.drop_link();
        }
    }

    fn drop_link(&mut self) {
        self.link = None;
        self.shared.control.store(false, Relaxed);
        self.retry = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(*PAUSE.end());
    }

    fn connect(&mut self) {
        let Some(path) = &self.path else { return };
        let stream =
            UnixStream::connect(path).and_then(|stream| stream.set_nonblocking(true).map(|()| stream));
        let Ok(stream) = stream else { return self.drop_link() };
        self.link = Some(Link { stream, decoder: Decoder::default(), unsent: Vec::new() });
        self.pause = *PAUSE.start();
        self.shared.control.store(true, Relaxed);
        self.told = Default::default();
        let pid = std::process::id();
        self.say(&FromFlow::Hello { version: flow::PROTOCOL, generation: self.generation, pid });
        for name in self.shared.open_questions() {
            self.say(&FromFlow::Name { name });
        }
    }

    /// Queues a frame, when there is a link.
    fn say(&mut self, message: &FromFlow) {
        let Some(link) = &mut self.link else { return };
        match flow::format(message) {
            Ok(frame) => link.unsent.extend_from_slice(&frame),
            Err(error) => log(3, &format!("A frame for the control plane cannot be made: {error}")),
        }
    }

    fn exchange(&mut self) -> Result<(), LinkError> {
        if self.link.is_none() {
            return Ok(());
        }
        for name in self.shared.questions() {
            self.say(&FromFlow::Name { name });
        }
        if Instant::now() >= self.next_stats {
            self.next_stats = Instant::now() + STATS;
            self.say_stats();
        }
        self.receive()?;
        self.send()
    }

    fn send(&mut self) -> Result<(), LinkError> {
        let Some(link) = &mut self.link else { return Ok(()) };
        while !link.unsent.is_empty() {
            match (&link.stream).write(&link.unsent) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(count) => drop(link.unsent.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        if link.unsent.len() > UNSENT_MAX { Err(LinkError::Stuck) } else { Ok(()) }
    }

    /// Takes all that has come, and publishes once what came of it.
    fn receive(&mut self) -> Result<(), LinkError> {
        let Some(mut link) = self.link.take() else { return Ok(()) };
        let (mut changed, outcome) = self.drain(&mut link);
        if outcome.is_ok() {
            self.link = Some(link);
        }
        changed &= self.is_ready();
        if changed {
            self.publish();
        }
        outcome
    }

    /// Reads until nothing is left; whether something changed, and whether the link is well.
    fn drain(&mut self, link: &mut Link) -> (bool, Result<(), LinkError>) {
        let mut piece = Zeroizing::new(vec![0; PIECE]); // keys pass through it
        let mut changed = false;
        loop {
            match (&link.stream).read(&mut piece) {
                Ok(0) => return (changed, Err(LinkError::Closed)),
                Ok(count) => link.decoder.push(piece.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return (changed, Ok(())),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return (changed, Err(error.into())),
            }
            loop {
                match link.decoder.next_frame() {
                    Ok(Some(body)) => changed |= self.frame(body),
                    Ok(None) => break,
                    Err(error) => return (changed, Err(error.into())),
                }
            }
        }
    }

    fn frame(&mut self, body: &[u8]) -> bool {
        match flow::parse(body) {
            Ok(Parsed::Known(message)) => self.apply(message),
            Ok(Parsed::Unknown(kind)) => {
                log(
                    5,
                    &format!("The control plane said {kind:?}, which this version does not know; skipped"),
                );
                false
            }
            Err(error) => {
                log(3, &format!("The control plane sent what cannot be used; skipped: {error}"));
                false
            }
        }
    }

    /// Takes over what control says; whether the view has changed.
    pub fn apply(&mut self, message: ToFlow) -> bool {
        let before = self.table.clone().unwrap_or_default();
        match message {
            ToFlow::Config(config) => self.config = Some(config),
            ToFlow::Certificates(all) => match Tls::new(&all, &self.tickets, self.shared.ktls.any()) {
                Ok((tls, errors)) => {
                    errors.iter().for_each(|error| log(3, &format!("A certificate is not used: {error}")));
                    self.tls = Some(Arc::new(tls));
                }
                Err(error) => log(3, &format!("The certificates stay as they were: {error}")),
            },
            ToFlow::Routes { instances } => self.table = Some(Arc::new(Table::of(instances, &before))),
            ToFlow::RouteDelta { upsert, remove } => {
                self.table = Some(Arc::new(before.changed(upsert, &remove)));
            }
            ToFlow::Drain { instance } => match before.drained(instance) {
                Some(table) => self.table = Some(Arc::new(table)),
                None => return false,
            },
            ToFlow::NameAnswer { name, target, ttl } => {
                self.shared.answer(&name, target, ttl);
                self.shared.wake_all();
                return false;
            }
        }
        true
    }

    /// Tells the workers.
    pub fn publish(&self) {
        let config = self.config.clone().unwrap_or_default();
        let table = self.table.clone().unwrap_or_default();
        self.shared.publish(View { config, table, tls: self.tls.clone() });
    }

    fn say_stats(&mut self) {
        let counters = self.shared.counters();
        let all = self.table.as_ref().map(|table| table.stats()).unwrap_or_default();
        let known = &self.told.1;
        let news: Vec<_> = all.iter().filter(|now| known.get(&now.instance) != Some(now)).copied().collect();
        if news.is_empty() && counters == self.told.0 {
            return;
        }
        self.told = (counters, all.into_iter().map(|stats| (stats.instance, stats)).collect());
        self.say(&FromFlow::Stats(Box::new(Stats { counters, instances: news })));
    }

    /// Says the last words of a data plane without connections.
    pub fn drained(&mut self) {
        self.say_stats();
        self.say(&FromFlow::Drained {});
        if let Some(link) = &self.link {
            // The process ends next: these words may wait a moment, and are lost if nobody reads them.
            let _ = link.stream.set_nonblocking(false);
            let _ = link.stream.set_write_timeout(Some(Duration::from_secs(1)));
        }
        if let Err(error) = self.send() {
            log(4, &format!("The control plane did not hear that all is drained: {error}"));
        }
    }
}
