// SPDX-License-Identifier: Apache-2.0
//! What the workers and the link to the control plane share.

use crate::conn::Front;
use crate::io::Io;
use crate::names::{Known, Names};
use crate::table::Table;
use crate::tls::Tls;
use crate::wheel::{Tick, tick};
use arc_swap::ArcSwap;
use dstack_core::flow::{Config, Counters, Target};
use dstack_sys::ktls::Support;
use rustix::event::EventfdFlags;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Wakes a thread that polls.
#[derive(Debug)]
pub struct Waker(OwnedFd);

impl Waker {
    /// A waker.
    ///
    /// # Errors
    /// The error of `eventfd(2)`.
    pub fn new() -> io::Result<Self> {
        Ok(Self(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Wakes.
    pub fn wake(&self) {
        // It fails only when 2^64-2 wakings were not seen, and then one is due anyway.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Forgets the wakings until now.
    pub fn clear(&self) {
        // Nothing to read is as good.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What control has said, at one moment.
#[derive(Debug, Default)]
pub struct View {
    /// Settings.
    pub config: Config,
    /// Instances.
    pub table: Arc<Table>,
    /// Certificates; `None` before the first.
    pub tls: Option<Arc<Tls>>,
}

/// What others see of a worker.
#[derive(Debug)]
pub struct Seat {
    /// Wakes it.
    pub waker: Waker,
    /// Its connections.
    pub open: AtomicU32,
    counters: Mutex<Counters>,
    /// Connections that another worker has accepted for it.
    handed: Mutex<Vec<(Front, OwnedFd)>>,
}

/// All of it.
#[derive(Debug)]
pub struct Shared {
    /// The newest view.
    pub view: ArcSwap<View>,
    /// The workers.
    pub seats: Vec<Seat>,
    /// No more clients are accepted.
    pub draining: AtomicBool,
    /// Whether the control plane is connected.
    pub control: AtomicBool,
    /// Wakes the thread of the control link.
    pub waker: Waker,
    /// What the kernel can do of TLS.
    pub ktls: Support,
    names: Mutex<Names>,
    questions: Mutex<Vec<String>>,
    start: Instant,
}

/// A lock whose holder cannot leave the value half changed, whatever happened to it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// For so many workers, on a kernel that can do so much of TLS.
    ///
    /// # Errors
    /// When there are no descriptors.
    pub fn new(workers: usize, ktls: Support) -> io::Result<Self> {
        let seat = |_| {
            let (open, counters, handed) = Default::default();
            Ok(Seat { waker: Waker::new()?, open, counters, handed })
        };
        Ok(Self {
            view: ArcSwap::default(),
            seats: (0..workers).map(seat).collect::<io::Result<_>>()?,
            draining: AtomicBool::new(false),
            control: AtomicBool::new(false),
            waker: Waker::new()?,
            ktls,
            names: Mutex::default(),
            questions: Mutex::default(),
            start: Instant::now(),
        })
    }

    /// The present moment.
    #[must_use]
    pub fn now(&self) -> Tick {
        tick(self.start.elapsed())
    }

    /// Publishes a view.
    pub fn publish(&self, view: View) {
        self.view.store(Arc::new(view));
        self.wake_all();
    }

    /// Lets no more clients in.
    pub fn drain(&self) {
        self.draining.store(true, Relaxed);
        self.wake_all();
    }

    /// Wakes all workers.
    pub fn wake_all(&self) {
        self.seats.iter().for_each(|seat| seat.waker.wake());
    }

    /// Where a custom domain leads; asks the control plane if need be.
    pub fn name(&self, name: &str, now: Tick) -> Known {
        let known = lock(&self.names).lookup(name, now, self.control.load(Relaxed));
        if known == (Known::Wait { ask: true }) {
            lock(&self.questions).push(name.to_owned());
            self.waker.wake();
        }
        known
    }

    /// Takes an answer of the control plane; [`Self::wake_all`] tells the workers.
    pub fn answer(&self, name: &str, target: Option<Target>, ttl: u32) {
        lock(&self.names).answer(name, target, ttl, self.now());
    }

    /// The questions since the last call.
    pub fn questions(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.questions))
    }

    /// All questions without answer.
    pub fn open_questions(&self) -> Vec<String> {
        lock(&self.questions).clear();
        lock(&self.names).asked_again(self.now())
    }

    /// The sum of what the workers counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        self.seats.iter().for_each(|seat| sum.add(&lock(&seat.counters)));
        sum
    }
}

impl Seat {
    /// Publishes what the worker counted.
    pub fn count(&self, counters: &Counters) {
        *lock(&self.counters) = *counters;
    }

    /// Gives a connection to the worker.
    pub fn hand(&self, front: Front, client: OwnedFd) {
        lock(&self.handed).push((front, client));
        self.waker.wake();
    }

    /// The connections given to the worker.
    pub fn handed(&self) -> Vec<(Front, OwnedFd)> {
        std::mem::take(&mut lock(&self.handed))
    }
}

impl Io {
    /// Whether more may follow at once: nothing is missing and nothing is wrong.
    #[must_use]
    pub const fn is_moved(self) -> bool {
        matches!(self, Self::Moved(_))
    }
}
