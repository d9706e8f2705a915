// SPDX-License-Identifier: Apache-2.0
//! The engine: owns the state, decides, and works through traits.

pub mod bootstrap;
pub mod certificates;
pub mod disks;
pub mod errors;
pub mod forecast;
pub mod gateway;
pub mod keys;
pub mod peers;
pub mod upgrades;

pub use errors::{app_id, internal, invalid};

use crate::authority::Authority;
use crate::decide::{self, Basis};
use crate::epoch_files::{EpochFiles, FilesError};
use crate::forecast::Outlook;
use crate::instances::Instances;
use crate::onboard::Attest;
use crate::registry::{Registry, RegistryError};
use crate::release_log::{Event, Kind, LogError, ReleaseLog};
use crate::settings::{PORT, Settings};
use crate::vault::Vault;
use crate::webhook::Authorize;
use dstack_core::event_log::Trusted;
use dstack_core::ids::{AppId, ComposeHash, InstanceId};
use dstack_ra_rpc::peer::{PeerError, Verifier};
use dstack_ra_tls::certificate::Custody;
use dstack_ra_tls::{Label, Roots, Verdict, dropins};
use dstack_service::api::kms1::Error;
use dstack_service::config::Directories;
use dstack_service::logging::message_id;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;

/// A denial like one before is recorded again only after this long: a guest asks every few seconds.
const DENIAL_PAUSE: Duration = Duration::from_secs(3600);
/// Most denials that are remembered for that.
const DENIALS_MAX: usize = 1024;

/// Certificates for one instance of an app within [`SIGNING_WINDOW`]; each is a line of the release log.
pub const SIGNINGS_MAX: u32 = 120;
/// The time for that.
const SIGNING_WINDOW: Duration = Duration::from_secs(60);

/// What an engine is made of.
#[derive(Debug)]
pub struct Parts {
    /// Settings.
    pub settings: Settings,
    /// Where `policy.d` is read from.
    pub directories: Directories,
    /// State directory.
    pub state: PathBuf,
    /// Judges peers.
    pub verifier: Arc<Verifier>,
    /// Keeps the root keys.
    pub vault: Arc<dyn Vault>,
    /// Is asked before each release.
    pub webhook: Arc<dyn Authorize>,
    /// Vouches for this service.
    pub attest: Arc<dyn Attest>,
}

/// What the engine tells the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Keys of an app were released: app, instance, compose hash.
    Released(String, String, String),
    /// They were refused: app, compose hash, reason.
    Denied(String, String, String),
    /// There are root keys now.
    Bootstrapped,
}

/// Whether there are keys to serve.
#[derive(Debug, Clone)]
pub enum Phase {
    /// Not bootstrapped.
    Empty,
    /// Serving.
    Ready(Arc<Authority>),
    /// There are keys, and they must not be used; why.
    Refused(String),
}

/// An instance of an app.
type Holder = (AppId, Option<InstanceId>);

#[derive(Debug)]
struct Inner {
    parts: Parts,
    registry: Registry,
    epochs: EpochFiles,
    log: ReleaseLog,
    /// What got keys lately.
    instances: Instances,
    /// The last forecast, and when it was made.
    forecast: tokio::sync::Mutex<Option<(Instant, Arc<Vec<Outlook>>)>>,
    phase: RwLock<Phase>,
    told: mpsc::UnboundedSender<Told>,
    /// Announced peers and until when.
    peers: Mutex<HashMap<String, Instant>>,
    denials: Mutex<HashMap<String, Instant>>,
    /// Certificates of each instance in its current window.
    signings: Mutex<HashMap<Holder, (Instant, u32)>>,
    /// One bootstrap or onboarding at a time.
    founding: tokio::sync::Mutex<()>,
}

/// The engine; clones share it.
#[derive(Debug, Clone)]
pub struct Engine(Arc<Inner>);

/// Why an engine cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The epochs of data disks.
    #[error(transparent)]
    Epochs(#[from] FilesError),
    /// The release log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// What is kept of instances.
    #[error("instances: {0}")]
    Instances(std::io::Error),
}

impl Engine {
    /// Opens the state and loads the keys, if there are any.
    ///
    /// # Errors
    /// When the state cannot be used. Keys that cannot be used are no error: [`Phase::Refused`] says why.
    pub fn open(parts: Parts) -> Result<(Self, mpsc::UnboundedReceiver<Told>), StartError> {
        let registry = Registry::open(&parts.state)?;
        let epochs = EpochFiles::open(&parts.state)?;
        let log = ReleaseLog::open(&parts.state, parts.verifier.now())?;
        let instances = Instances::open(&parts.state).map_err(StartError::Instances)?;
        let phase = load(&parts);
        let (told, events) = mpsc::unbounded_channel();
        let inner = Inner {
            parts,
            registry,
            epochs,
            log,
            instances,
            forecast: tokio::sync::Mutex::default(),
            phase: RwLock::new(phase),
            told,
            peers: Mutex::default(),
            denials: Mutex::default(),
            signings: Mutex::default(),
            founding: tokio::sync::Mutex::default(),
        };
        Ok((Self(Arc::new(inner)), events))
    }

    /// Whether there are keys to serve.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.0.phase.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The authority.
    ///
    /// # Errors
    /// `NotBootstrapped` or `Misconfigured`, with the remedy.
    pub fn authority(&self) -> Result<Arc<Authority>, Error> {
        match self.phase() {
            Phase::Ready(authority) => Ok(authority),
            Phase::Empty => Err(Error::NotBootstrapped(
                "this key service has no root keys yet; make them with: dstackctl kms bootstrap DOMAIN"
                    .into(),
            )),
            Phase::Refused(reason) => Err(Error::Misconfigured(reason)),
        }
    }

    /// Realm of this machine.
    #[must_use]
    pub fn realm(&self) -> &Label {
        self.0.parts.verifier.roots().realm()
    }

    /// Custody of keys that are kept here.
    #[must_use]
    pub fn custody(&self) -> Custody {
        match self.phase() {
            Phase::Ready(authority) => authority.record().custody,
            _ => self.0.parts.vault.custody(),
        }
    }

    /// URL at which guests reach this service; empty before the bootstrap when none is set.
    #[must_use]
    pub fn address(&self) -> String {
        let by_domain = || match self.phase() {
            Phase::Ready(authority) => format!("https://{}:{PORT}", authority.record().domain.as_str()),
            _ => String::new(),
        };
        self.0.parts.settings.address.clone().unwrap_or_else(by_domain)
    }

    /// What `systemctl status` shows.
    #[must_use]
    pub fn status(&self) -> String {
        match self.phase() {
            Phase::Ready(authority) => {
                let record = authority.record();
                let domain = record.domain.as_str();
                format!("Serving {domain}, realm {}, custody {}", record.realm, record.custody)
            }
            Phase::Empty => {
                format!("Not bootstrapped, realm {}; run: dstackctl kms bootstrap DOMAIN", self.realm())
            }
            Phase::Refused(reason) => format!("Serving nobody: {reason}"),
        }
    }

    /// Whether the trust roots are still those of the start; the realm is fixed then.
    ///
    /// # Errors
    /// `Misconfigured` with the remedy.
    pub fn check_roots(&self) -> Result<(), Error> {
        let roots = Roots::load(&trust_directories(&self.0.parts.directories));
        let found = roots.map_err(|e| Error::Misconfigured(e.to_string()))?;
        if found.realm() == self.realm() {
            return Ok(());
        }
        Err(Error::Misconfigured(format!(
            "the trust roots of this machine make its realm {} now, it was {} at the start of the service; run: systemctl \
             restart dstack-kms",
            found.realm(),
            self.realm()
        )))
    }

    /// Reads the policy again.
    ///
    /// # Errors
    /// `Misconfigured`; the old policy stays in force then.
    pub fn reload(&self) -> Result<(), Error> {
        self.check_roots()?;
        let Directories { vendor, operator } = &self.0.parts.directories;
        let policy = dropins::load(vendor, operator);
        let policy =
            policy.map_err(|e| Error::Misconfigured(format!("{e}; the policy of before is in force")))?;
        self.0.parts.verifier.set_policy(policy);
        Ok(())
    }

    /// The release log.
    #[must_use]
    pub fn log(&self) -> &ReleaseLog {
        &self.0.log
    }

    /// Judges peers.
    #[must_use]
    pub fn verifier(&self) -> &Arc<Verifier> {
        &self.0.parts.verifier
    }

    fn now(&self) -> u64 {
        self.0.parts.verifier.now()
    }

    fn system_time(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.now())
    }

    fn tell(&self, told: Told) {
        // Without a listener nobody wants to know.
        drop(self.0.told.send(told));
    }

    /// Whether this boot's compose file may have its app's keys.
    fn decide(&self, authority: &Authority, boot: &Trusted) -> Result<Basis, String> {
        let known = self.0.registry.known(&boot.app_id).map_err(|e| e.to_string())?;
        let custody = authority.record().custody;
        decide::decide(&boot.app_id, &boot.compose_hash, &known, custody, self.now())
            .map_err(|e| e.to_string())
    }

    /// Records a denial, unless the same was recorded lately, and tells it.
    async fn deny(&self, boot: &Trusted, verdict: &Verdict, reason: &str) {
        let said = format!("keys of app {} were refused", boot.app_id);
        self.deny_as(message_id::KEYS_DENIED, &said, boot, verdict, reason).await;
    }

    /// The same under another message id, and said in other words.
    async fn deny_as(&self, id: &str, said: &str, boot: &Trusted, verdict: &Verdict, reason: &str) {
        let (app, hash) = (boot.app_id.to_string(), boot.compose_hash.to_string());
        let instance = boot.instance_id.map(|i| i.to_string()).unwrap_or_default();
        if self.is_news(format!("{app} {instance} {hash} {reason}"), true) {
            let event = self.event(Kind::Denied, boot, summary(verdict, None), reason);
            if let Err(error) = self.0.log.record(event).await {
                tracing::error!("a denial is not in the release log: {error}");
            }
        }
        tracing::warn!(
            MESSAGE_ID = id,
            DSTACK_APP = app,
            DSTACK_INSTANCE = instance,
            DSTACK_COMPOSE_HASH = hash,
            "{said}: {reason}"
        );
        self.tell(Told::Denied(app, hash, reason.to_owned()));
    }

    /// A client that was refused before its request was read: for its evidence, or for having none that is genuine.
    pub fn refused(&self, error: &PeerError) {
        let reason = error.to_string();
        match error {
            PeerError::Refused(verdict) => {
                let (this, verdict) = (self.clone(), Arc::clone(verdict));
                tokio::spawn(async move {
                    if let Some(boot) = &verdict.boot {
                        this.deny(boot, &verdict, &verdict.reasons()).await;
                    } else if this.is_news(reason.clone(), false) {
                        tracing::warn!("a caller was refused: {reason}");
                    }
                });
            }
            _ if self.is_news(reason.clone(), false) => tracing::info!("a caller was refused: {reason}"),
            _ => {}
        }
    }

    /// Whether this was not said lately; `when_full` is the answer when too much was.
    fn is_news(&self, denial: String, when_full: bool) -> bool {
        let mut denials = lock(&self.0.denials);
        denials.retain(|_, at| at.elapsed() < DENIAL_PAUSE);
        if denials.contains_key(&denial) {
            return false;
        }
        if denials.len() >= DENIALS_MAX {
            return when_full;
        }
        denials.insert(denial, Instant::now());
        true
    }

    /// Whether an instance may have another certificate now: an app must not fill the disk of the key service.
    fn may_sign(&self, boot: &Trusted) -> bool {
        let mut signings = lock(&self.0.signings);
        signings.retain(|_, (began, _)| began.elapsed() < SIGNING_WINDOW);
        let (_, count) = signings.entry((boot.app_id, boot.instance_id)).or_insert((Instant::now(), 0));
        *count += 1;
        *count <= SIGNINGS_MAX
    }

    fn event(&self, kind: Kind, boot: &Trusted, verdict: String, reason: &str) -> Event {
        Event {
            time: self.now(),
            kind,
            app: Some(boot.app_id),
            instance: boot.instance_id,
            compose_hash: Some(boot.compose_hash),
            verdict,
            reason: reason.to_owned(),
        }
    }
}

/// The directories in which trust roots are looked for.
#[must_use]
pub fn trust_directories(directories: &Directories) -> [PathBuf; 2] {
    [directories.operator.join("trust.d"), directories.vendor.join("trust.d")]
}

/// The keys of an earlier run, if they belong to this machine's realm and to each other.
fn load(parts: &Parts) -> Phase {
    let record = match parts.vault.load() {
        Ok(Some(record)) => record,
        Ok(None) => return Phase::Empty,
        Err(error) => return Phase::Refused(error.to_string()),
    };
    let here = parts.verifier.roots().realm();
    if record.realm != *here {
        return Phase::Refused(format!(
            "the root keys are of realm {}, but the trust roots of this machine make it {here}; restore \
             /etc/dstack/trust.d and restart dstack-kms",
            record.realm
        ));
    }
    let now = UNIX_EPOCH + Duration::from_secs(parts.verifier.now());
    match Authority::new(record, now) {
        Ok(authority) => Phase::Ready(Arc::new(authority)),
        Err(error) => Phase::Refused(error.to_string()),
    }
}

/// A verdict in one line, as it stands in the release log.
fn summary(verdict: &Verdict, basis: Option<Basis>) -> String {
    let image = if verdict.image_compared { "compared" } else { "recorded" };
    let mut text = format!("root={} tcb={} image={image}", verdict.root, verdict.tcb_status);
    if let Some(basis) = basis {
        text += &format!(" upgrades={basis}");
    }
    for exception in verdict.exceptions.iter().take(4) {
        text += &format!(" exception={exception:?}");
    }
    text.chars().take(600).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the sent compose file is the measured one.
fn is_measured(compose: &[u8], hash: &ComposeHash) -> bool {
    ComposeHash::of(compose) == *hash
}
