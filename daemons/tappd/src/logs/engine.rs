// SPDX-License-Identifier: Apache-2.0
//! Serves readers of the journal: one thread for all of them, asleep in the kernel while nothing is written.
//!
//! libsystemd's journal must stay on the thread that opened it, so readers are tasks of that one thread. Each waits for
//! its journal's descriptor, for its client to go away, and for the end of its time range.

use super::cursor::{CHUNK, Cursor, Filled};
use super::names::{NameError, Target};
use super::query::Query;
use super::reader::{JournalReader, Place};
use super::{format, names};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::LocalSet;

/// Most logs read at a time.
pub const READERS_MAX: usize = 32;
/// Chunks that wait for a slow client.
const CHUNKS_MAX: usize = 4;
/// A client that takes nothing for this long loses its reader.
const STALL_MAX: Duration = Duration::from_secs(60);

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The name means no container.
    #[error(transparent)]
    Name(#[from] NameError),
    /// [`READERS_MAX`] are being read.
    #[error("{READERS_MAX} logs are being read already; end one of them")]
    Busy,
    /// The journal cannot be read.
    #[error("the journal cannot be read: {0}")]
    Journal(#[from] io::Error),
    /// The thread ended, because the daemon stops.
    #[error("the agent is stopping")]
    Stopping,
}

enum Job {
    Names(oneshot::Sender<io::Result<Vec<String>>>),
    Read { target: Target, query: Query, out: mpsc::Sender<Vec<u8>>, slot: OwnedSemaphorePermit },
}

/// A handle on the thread; it ends when the last handle and reader are gone.
#[derive(Debug, Clone)]
pub struct Logs {
    jobs: mpsc::Sender<Job>,
    slots: Arc<Semaphore>,
    stop: watch::Sender<bool>,
}

impl Logs {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there can be no thread or no event loop.
    pub fn start(place: Place) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel(READERS_MAX);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = watch::channel(false);
        std::thread::Builder::new()
            .name("logs".into())
            .spawn(move || LocalSet::new().block_on(&runtime, serve(place, queue, stopped)))?;
        Ok(Self { jobs, slots: Arc::new(Semaphore::new(READERS_MAX)), stop })
    }

    /// Ends all following, so that the daemon can stop.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Opens a container's log. `others` are containers that may not have written yet.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn open(
        &self,
        name: &str,
        query: Query,
        others: impl Future<Output = Vec<String>>,
    ) -> Result<mpsc::Receiver<Vec<u8>>, LogError> {
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| LogError::Busy)?;
        let target = self.resolve(name, others).await?;
        let (out, chunks) = mpsc::channel(CHUNKS_MAX);
        self.jobs.send(Job::Read { target, query, out, slot }).await.map_err(|_| LogError::Stopping)?;
        Ok(chunks)
    }

    async fn resolve(
        &self,
        name: &str,
        others: impl Future<Output = Vec<String>>,
    ) -> Result<Target, LogError> {
        let name = names::checked(name)?;
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Job::Names(reply)).await.map_err(|_| LogError::Stopping)?;
        let mut known = answer.await.map_err(|_| LogError::Stopping)??;
        if !known.iter().any(|k| k == name) {
            let others = others.await;
            known.extend(others.into_iter().filter(|o| names::checked(o).is_ok()));
            known.sort_unstable();
            known.dedup();
        }
        Ok(names::resolve(name, &known)?)
    }
}

async fn serve(place: Place, mut queue: mpsc::Receiver<Job>, stopped: watch::Receiver<bool>) {
    let mut readers = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = readers.join_next() => {}
            job = queue.recv() => match job {
                None => return,
                // A client that no longer waits for its names is no failure.
                Some(Job::Names(reply)) => drop(reply.send(place.names())),
                Some(Job::Read { target, query, out, slot }) => {
                    let place = place.clone();
                    let client = Client { out, stopped: stopped.clone() };
                    readers.spawn_local(async move {
                        read(&place, &target, query, client).await;
                        drop(slot);
                    });
                }
            }
        }
    }
}

/// Reads one log to its end; a failure becomes the last line.
async fn read(place: &Place, target: &Target, query: Query, mut client: Client) {
    if let Err(error) = pump(place, target, query, &mut client).await {
        let line = format::error(&LogError::Journal(error).to_string());
        // The client may be gone; nobody is left to tell.
        let _ = client.send(line).await;
    }
}

async fn pump(place: &Place, target: &Target, query: Query, client: &mut Client) -> io::Result<()> {
    let follow = query.follow;
    let end = query.until.filter(|_| follow);
    let reader = JournalReader::open(place, target)?;
    let changes = if follow { Some(changes(reader.watch()?)?) } else { None };
    let mut cursor = Cursor::new(reader, query)?;
    loop {
        let mut chunk = Vec::with_capacity(CHUNK / 8);
        let filled = cursor.fill(&mut chunk)?;
        let last = filled == Filled::Done || (filled == Filled::End && changes.is_none());
        if last {
            cursor.finish(&mut chunk);
        }
        if !chunk.is_empty() && !client.send(chunk).await || last {
            return Ok(());
        }
        match (&changes, filled) {
            (Some(changes), Filled::End) => {
                if !client.wait(changes, end).await? {
                    return Ok(());
                }
                cursor.reader().acknowledge()?;
            }
            _ => tokio::task::yield_now().await,
        }
    }
}

#[allow(
    deprecated,
    reason = "the deprecation is about values that do not own their descriptor; an OwnedFd does"
)]
fn changes(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, tokio::io::Interest::READABLE)
}

/// The other end of a reading.
struct Client {
    out: mpsc::Sender<Vec<u8>>,
    stopped: watch::Receiver<bool>,
}

impl Client {
    /// Whether the client took it.
    async fn send(&self, chunk: Vec<u8>) -> bool {
        matches!(tokio::time::timeout(STALL_MAX, self.out.send(chunk)).await, Ok(Ok(())))
    }

    /// Waits for a change; `false` when the client is gone, the time is over, or the daemon stops.
    async fn wait(&mut self, changes: &AsyncFd<OwnedFd>, end: Option<u64>) -> io::Result<bool> {
        let over = async {
            match end {
                Some(end) => tokio::time::sleep(until(end)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ready = changes.readable() => {
                ready?.clear_ready();
                Ok(true)
            }
            () = self.out.closed() => Ok(false),
            () = over => Ok(false),
            _ = self.stopped.wait_for(|stop| *stop) => Ok(false),
        }
    }
}

/// Time left until a moment in nanoseconds since 1970.
fn until(end: u64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Duration::from_nanos(end).saturating_sub(now)
}
