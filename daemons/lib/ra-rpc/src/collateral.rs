// SPDX-License-Identifier: Apache-2.0
//! Collateral by platform: in memory, on disk, and from where it is served.
//!
//! Collateral is signed, so neither the cache nor the server need be trusted. When nobody answers, what is cached goes
//! on being used; the verifier refuses it once it has expired.

use crate::floor::Floors;
use crate::peer::BoxFuture;
use dcap_qvl::intel::quote_fmspc;
use dcap_qvl::quote::Quote;
use dstack_core::quote_sim_wire::{self as wire, Certified, FRAME_MAX, Request};
use dstack_ra_tls::evidence::{COLLATERAL_MAX, Collateral, CollateralError, QUOTE_MAX};
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Mutex;

/// Most platforms that are cached: a peer may claim any platform, and each claim costs a request.
pub const PLATFORMS_MAX: usize = 64;
/// Age at which collateral is asked for again.
pub const REFRESH_AGE: Duration = Duration::from_secs(6 * 3600);
/// Time for an answer.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(15);
/// After a failed request the same platform is not asked for this long.
const RETRY: Duration = Duration::from_secs(60);

/// A kind of platform, as its quotes claim it: family, model, stepping, platform type, SKU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PlatformId(pub [u8; 6]);

impl PlatformId {
    /// The platform that a quote claims; a hint where to find collateral, and no more.
    ///
    /// # Errors
    /// [`SourceError::NoPlatform`].
    pub fn of(quote: &[u8]) -> Result<Self, SourceError> {
        if quote.len() > QUOTE_MAX {
            return Err(SourceError::NoPlatform);
        }
        let quote = Quote::parse(quote).map_err(|_| SourceError::NoPlatform)?;
        quote_fmspc(&quote).map(Self).map_err(|_| SourceError::NoPlatform)
    }
}

impl std::fmt::Display for PlatformId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// Why there is no collateral.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The quote names no platform.
    #[error("the quote names no platform")]
    NoPlatform,
    /// Nobody gave any, and none is cached.
    #[error("there is no collateral for platform {platform}: {reason}")]
    Unavailable {
        /// The platform.
        platform: PlatformId,
        /// Why.
        reason: String,
    },
}

/// Where collateral is served.
pub trait Fetch: Send + Sync + 'static {
    /// Collateral of a platform, as JSON.
    fn fetch(&self, platform: PlatformId) -> BoxFuture<'_, Result<Vec<u8>, String>>;
}

/// No server: the cache alone.
#[derive(Debug, Clone, Copy)]
pub struct Offline;

impl Fetch for Offline {
    fn fetch(&self, _platform: PlatformId) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        Box::pin(async { Err("no server is set up".to_owned()) })
    }
}

/// The simulated TEE's service of this host, by its Unix socket.
#[derive(Debug, Clone)]
pub struct QuoteSim(pub PathBuf);

impl QuoteSim {
    async fn ask(&self) -> io::Result<Certified> {
        let mut stream = UnixStream::connect(&self.0).await?;
        let frame = wire::frame(&Request::Collateral).map_err(io::Error::other)?;
        stream.write_all(&frame).await?;
        let mut head = [0; 4];
        stream.read_exact(&mut head).await?;
        let mut body = vec![0; wire::length(head, FRAME_MAX).map_err(io::Error::other)?];
        stream.read_exact(&mut body).await?;
        wire::parse_reply(&body).map_err(io::Error::other)
    }
}

impl Fetch for QuoteSim {
    fn fetch(&self, _platform: PlatformId) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        Box::pin(async {
            let certified = self.ask().await.map_err(|e| format!("{}: {e}", self.0.display()))?;
            serde_json::to_vec(&certified.collateral).map_err(|e| e.to_string())
        })
    }
}

#[derive(Clone)]
struct Entry {
    collateral: Arc<Collateral>,
    /// When it was asked for last, whatever came of it.
    asked: SystemTime,
    fetched: SystemTime,
}

/// Collateral by platform.
pub struct Cache {
    directory: Option<PathBuf>,
    fetch: Box<dyn Fetch>,
    entries: Mutex<HashMap<PlatformId, Entry>>,
    floors: Floors,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cache({:?})", self.directory)
    }
}

impl Cache {
    /// A cache with files in `directory`, or in memory alone.
    #[must_use]
    pub fn new(directory: Option<PathBuf>, fetch: impl Fetch) -> Self {
        let floors = Floors::load(directory.clone());
        Self { directory, fetch: Box::new(fetch), entries: Mutex::new(HashMap::new()), floors }
    }

    /// What was verified before, below which nothing falls.
    #[must_use]
    pub const fn floors(&self) -> &Floors {
        &self.floors
    }

    /// Collateral for a quote's platform: fresh where it can be had, cached otherwise.
    ///
    /// # Errors
    /// [`SourceError`] when nobody answers and none is cached.
    pub async fn get(&self, quote: &[u8], now: SystemTime) -> Result<Arc<Collateral>, SourceError> {
        self.of_platform(PlatformId::of(quote)?, now).await
    }

    /// The same for a platform.
    ///
    /// # Errors
    /// [`SourceError::Unavailable`].
    pub async fn of_platform(
        &self,
        platform: PlatformId,
        now: SystemTime,
    ) -> Result<Arc<Collateral>, SourceError> {
        let mut entries = self.entries.lock().await;
        let known = entries.get(&platform).cloned().or_else(|| self.read(platform));
        let wants =
            known.as_ref().is_none_or(|e| older(e.fetched, REFRESH_AGE, now) && older(e.asked, RETRY, now));
        if let (Some(entry), false) = (&known, wants) {
            return Ok(Arc::clone(&entry.collateral));
        }
        let entry = match (self.ask(platform, now).await, known) {
            (Ok(entry), _) => entry,
            (Err(_), Some(known)) => Entry { asked: now, ..known },
            (Err(reason), None) => return Err(SourceError::Unavailable { platform, reason }),
        };
        let collateral = Arc::clone(&entry.collateral);
        self.insert(&mut entries, platform, entry);
        Ok(collateral)
    }

    /// Asks for everything cached again, also by an earlier run, for a timer. Returns how many could not be refreshed.
    pub async fn refresh(&self, now: SystemTime) -> usize {
        self.adopt().await;
        let platforms: Vec<PlatformId> = self.entries.lock().await.keys().copied().collect();
        let mut failed = 0;
        for platform in platforms {
            match self.ask(platform, now).await {
                Ok(entry) => self.insert(&mut *self.entries.lock().await, platform, entry),
                Err(_) => failed += 1,
            }
        }
        failed
    }

    /// Reads what an earlier run left.
    async fn adopt(&self) {
        let files = self.directory.iter().filter_map(|d| std::fs::read_dir(d).ok()).flatten().flatten();
        let platforms: Vec<PlatformId> = files.filter_map(|entry| platform_of_file(&entry.path())).collect();
        let mut entries = self.entries.lock().await;
        for platform in platforms.into_iter().take(PLATFORMS_MAX) {
            if let (false, Some(entry)) = (entries.contains_key(&platform), self.read(platform)) {
                self.insert(&mut entries, platform, entry);
            }
        }
    }

    async fn ask(&self, platform: PlatformId, now: SystemTime) -> Result<Entry, String> {
        let fetched = tokio::time::timeout(FETCH_TIMEOUT, self.fetch.fetch(platform)).await;
        let json = fetched.map_err(|_| format!("no answer within {} s", FETCH_TIMEOUT.as_secs()))??;
        let collateral = parse(&json).map_err(|e| e.to_string())?;
        let (number, least) = (collateral.evaluation_number(), self.floors.of(platform).evaluation_number);
        if number < least {
            return Err(format!("it is of TCB evaluation {number}, and {least} was verified before"));
        }
        if let Some(directory) = &self.directory {
            // A full disk must not stop verification; the next fetch writes again.
            drop(replace(&directory.join(format!("{platform}.json")), &json));
        }
        Ok(Entry { collateral, asked: now, fetched: now })
    }

    /// What an earlier run left, as old as its file.
    fn read(&self, platform: PlatformId) -> Option<Entry> {
        let file = std::fs::File::open(self.directory.as_ref()?.join(format!("{platform}.json"))).ok()?;
        let fetched = file.metadata().and_then(|m| m.modified()).ok()?;
        let mut json = Vec::new();
        file.take(COLLATERAL_MAX as u64 + 1).read_to_end(&mut json).ok()?;
        let collateral = parse(&json).ok()?;
        Some(Entry { collateral, asked: SystemTime::UNIX_EPOCH, fetched })
    }

    /// Keeps an entry, in the place of the oldest when there are too many.
    fn insert(&self, entries: &mut HashMap<PlatformId, Entry>, platform: PlatformId, entry: Entry) {
        if !entries.contains_key(&platform) && entries.len() >= PLATFORMS_MAX {
            let oldest = entries.iter().min_by_key(|(_, e)| e.fetched).map(|(platform, _)| *platform);
            if let Some(oldest) = oldest {
                entries.remove(&oldest);
                let path = self.directory.as_ref().map(|d| d.join(format!("{oldest}.json")));
                path.map(std::fs::remove_file).map(drop).unwrap_or_default();
            }
        }
        entries.insert(platform, entry);
    }
}

fn platform_of_file(path: &Path) -> Option<PlatformId> {
    let mut platform = [0; 6];
    hex::decode_to_slice(path.file_name()?.to_str()?.strip_suffix(".json")?, &mut platform).ok()?;
    Some(PlatformId(platform))
}

fn parse(json: &[u8]) -> Result<Arc<Collateral>, CollateralError> {
    Collateral::parse(json).map(Arc::new)
}

/// Whether this long has passed; a time in the future says nothing, so it has.
fn older(then: SystemTime, age: Duration, now: SystemTime) -> bool {
    now.duration_since(then).map_or(true, |passed| passed >= age)
}

/// Replaces a file: unique temporary name in the same directory, sync, rename.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let unique = (std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
    let temporary = path.with_extension(format!("new-{}-{}", unique.0, unique.1));
    let mut options = std::fs::OpenOptions::new();
    let written = options.write(true).create_new(true).mode(0o600).open(&temporary);
    let written = written.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    let renamed = written.and_then(|()| std::fs::rename(&temporary, path));
    if renamed.is_err() {
        drop(std::fs::remove_file(&temporary));
    }
    renamed
}
