// SPDX-License-Identifier: Apache-2.0
//! What is done for a certificate, step by step. A run that is killed at any of them is finished by the next.

pub mod challenge;
pub mod guard;
pub mod order;
mod quiet;
pub mod rehearsal;
pub mod seen;
pub mod shelf;
pub mod state;

pub use seen::View;
pub use shelf::Shelf;

use crate::account::{self, AccountError, Credentials};
use crate::acme::{Acme, AcmeError, ExternalAccount};
use crate::caa::CaaError;
use crate::certificate::{self, Pair};
use crate::dns::authority::Servers;
use crate::dns::{DnsError, Provider};
use crate::files::FileError;
use crate::http;
use crate::names::DnsName;
use crate::renewal::{self, Decision, Known, Reason};
use crate::settings::{Certificate, Settings};
use crate::workdir::Workdir;
use state::Renewal;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{Mutex, MutexGuard};

/// Why a certificate is not as it is to be.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The account.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The authority.
    #[error(transparent)]
    Acme(#[from] AcmeError),
    /// DNS.
    #[error(transparent)]
    Dns(#[from] DnsError),
    /// CAA.
    #[error(transparent)]
    Caa(#[from] CaaError),
    /// The authority does not say its name.
    #[error(
        "{0} does not say by which name CAA records mean it; set issuer in certbot.toml, or auto_set_caa = false"
    )]
    NoIssuer(String),
    /// The certificate that was issued is not the one that was ordered.
    #[error("the certificate that was issued cannot be used: {0}")]
    Unusable(String),
    /// It failed before, and it is too early to try again.
    #[error("it failed {count} times, or the authority asked for a pause; it is tried again at {}", time(*.until))]
    TooEarly {
        /// How often it failed in a row.
        count: u32,
        /// Unix seconds.
        until: i64,
    },
    /// The authority asked for a pause.
    #[error("{directory} asked to be left alone until {}; nothing is asked of it before", time(*.until))]
    Quiet {
        /// Its directory.
        directory: String,
        /// Unix seconds.
        until: i64,
    },
    /// Another process works in the same directory.
    #[error("{} is used by another dstack-certbot; wait until it is done, or stop it: systemctl stop dstack-certbot", .0.display())]
    Busy(PathBuf),
    /// There is no such certificate in the settings.
    #[error("certbot.toml has no certificate {0:?}; known are: {1}")]
    NoSuchCertificate(String, String),
    /// A rehearsal found something.
    #[error("{0}")]
    Rehearsal(String),
}

/// A time in words.
#[must_use]
pub fn time(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |t| t.to_string())
}

/// Who is told of each step. Tests end the process in it.
pub trait Observer: Send + Sync {
    /// A step is done, or what comes next is the step of that name.
    fn step(&self, step: &'static str);
}

/// Tells the log.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Observer for Silent {
    fn step(&self, step: &'static str) {
        tracing::debug!("{step}");
    }
}

/// What an engine is made of.
#[derive(Debug)]
pub struct Parts {
    /// Settings.
    pub settings: Settings,
    /// Where the account and the first certificate are.
    pub workdir: PathBuf,
    /// The authority.
    pub acme: Arc<dyn Acme>,
    /// Where the rehearsal orders.
    pub rehearsal: Option<Arc<dyn Acme>>,
    /// An account that the ACME account is bound to.
    pub external: Option<ExternalAccount>,
    /// Who changes records.
    pub provider: Arc<dyn Provider>,
    /// The servers of zones.
    pub servers: Arc<dyn Servers>,
}

/// Does everything; one thing at a time.
#[derive(Clone)]
pub struct Engine(Arc<Inner>, Turns);

/// Whose turn it is among engines of one process.
pub type Turns = Arc<Mutex<()>>;

struct Inner {
    parts: Parts,
    shelf: Shelf,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("workdir", &self.0.parts.workdir).finish_non_exhaustive()
    }
}

/// The right to change the working directory: of this process, and among processes.
#[derive(Debug)]
pub struct Turn<'a> {
    // Fields are dropped in this order: whoever has the turn next finds the file free.
    _lock: File,
    _turn: MutexGuard<'a, ()>,
}

/// What came of a look at a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A new one is live.
    Renewed {
        /// Why.
        reason: Reason,
        /// Its SubjectPublicKeyInfo, DER.
        public_key: Vec<u8>,
    },
    /// It stays until then, Unix seconds.
    Fresh(i64),
}

impl Engine {
    /// An engine.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let shelf = Shelf::new(parts.workdir.clone(), Some(parts.settings.certificates.clone()));
        Self(Arc::new(Inner { parts, shelf }), Turns::default())
    }

    /// The same, taking turns with others: of settings of before, whose work may be under way.
    #[must_use]
    pub fn taking_turns(self, turns: Turns) -> Self {
        Self(self.0, turns)
    }

    fn parts(&self) -> &Parts {
        &self.0.parts
    }

    /// Settings.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.0.parts.settings
    }

    /// Waits for the right to work in the directory, and takes it.
    ///
    /// # Errors
    /// [`EngineError::Busy`] when another process has it.
    pub async fn turn(&self) -> Result<Turn<'_>, EngineError> {
        let turn = self.1.lock().await;
        let workdir = &self.parts().workdir;
        std::fs::create_dir_all(workdir).map_err(FileError::at(workdir))?;
        let path = workdir.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(FileError::at(&path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Turn { _lock: lock, _turn: turn }),
            Err(TryLockError::WouldBlock) => Err(EngineError::Busy(workdir.clone())),
            Err(TryLockError::Error(error)) => Err(FileError::new(&path, error).into()),
        }
    }

    /// What is kept, to be read.
    #[must_use]
    pub fn shelf(&self) -> &Shelf {
        &self.0.shelf
    }

    /// The certificates that a call means: the one of this name, or all for an empty name.
    ///
    /// # Errors
    /// [`EngineError::NoSuchCertificate`].
    pub fn select(&self, domain: &str) -> Result<Vec<Certificate>, EngineError> {
        self.shelf().select(domain)
    }

    /// Where a certificate is kept.
    #[must_use]
    pub fn place(&self, domain: &DnsName) -> PathBuf {
        self.shelf().place(domain)
    }

    fn workdir(&self, domain: &DnsName) -> Result<Workdir, EngineError> {
        Ok(Workdir::open(&self.place(domain))?)
    }

    /// The account; makes it when there is none.
    ///
    /// # Errors
    /// [`EngineError`]; an unreadable file or one of another authority makes no new account.
    pub async fn account(
        &self,
        _turn: &Turn<'_>,
        observer: &dyn Observer,
    ) -> Result<Credentials, EngineError> {
        let parts = self.parts();
        let url = &parts.settings.authority.url;
        self.account_in(&parts.workdir, &*parts.acme, url, parts.external.as_ref(), observer).await
    }

    async fn account_in(
        &self,
        dir: &Path,
        acme: &dyn Acme,
        url: &str,
        external: Option<&ExternalAccount>,
        observer: &dyn Observer,
    ) -> Result<Credentials, EngineError> {
        if let Some(found) = account::load(dir, url)? {
            return Ok(found);
        }
        std::fs::create_dir_all(dir).map_err(FileError::at(dir))?;
        observer.step("account: key");
        let key = account::key(dir, url, certificate::fresh_key_der)?;
        observer.step("account: at the authority");
        let id = acme.register(&key, external).await?;
        observer.step("account: on the disk");
        let credentials = Credentials { id, key, directory: url.to_owned() };
        account::store(dir, &credentials)?;
        tracing::info!("new ACME account {}", credentials.id);
        observer.step("account: stored");
        Ok(credentials)
    }

    /// Brings a certificate, its CAA records and its account to what they are to be.
    ///
    /// # Errors
    /// [`EngineError`]; failures are kept, so that the next try waits.
    pub async fn maintain(
        &self,
        turn: &Turn<'_>,
        wanted: &Certificate,
        forced: bool,
        observer: &dyn Observer,
    ) -> Result<Outcome, EngineError> {
        let (acme, directory) = (&*self.parts().acme, &self.settings().authority.url);
        self.may_ask(acme, directory)?;
        let workdir = self.workdir(&wanted.domain)?;
        let mut renewal = Renewal::load(&workdir)?;
        let now = http::now();
        if let Some(until) = renewal.failures.until(now, forced) {
            return Err(EngineError::TooEarly { count: renewal.failures.count, until });
        }
        let result = self.bring(turn, wanted, &workdir, &mut renewal, (now, forced), observer).await;
        match &result {
            Ok(_) => renewal.failures = renewal::Failures::default(),
            Err(EngineError::Busy(_)) => return result,
            Err(error) => {
                renewal.failures = renewal.failures.another(http::now(), self.parts().acme.quiet_until());
                renewal.error = error.to_string();
            }
        }
        renewal.store(&workdir)?;
        self.note_quiet(acme, directory)?;
        result
    }

    async fn bring(
        &self,
        turn: &Turn<'_>,
        wanted: &Certificate,
        workdir: &Workdir,
        renewal: &mut Renewal,
        (now, forced): (i64, bool),
        observer: &dyn Observer,
    ) -> Result<Outcome, EngineError> {
        observer.step("cleaning");
        self.clean_before(workdir, wanted, observer).await?;
        let account = self.account(turn, observer).await?;
        if self.settings().auto_set_caa {
            self.reconcile(workdir, wanted, &account, observer).await?;
        } else {
            self.remove_guards(workdir, wanted).await?;
        }
        // One of other names belongs to a certificate that had this place before.
        let live = workdir.live()?.filter(|pair| wanted.has(&pair.leaf));
        self.ask_suggestion(live.as_ref(), renewal, now).await;
        let known = self.known(wanted, live.as_ref(), renewal);
        match renewal::decide(now, &known, self.settings().renew_days_before, forced) {
            Decision::At(at) if !order::is_under_way(workdir) => Ok(Outcome::Fresh(at)),
            Decision::At(_) => {
                self.renew(wanted, workdir, &account, live, renewal, Reason::Missing, observer).await
            }
            Decision::Renew(reason) => {
                self.renew(wanted, workdir, &account, live, renewal, reason, observer).await
            }
        }
    }

    fn known(&self, wanted: &Certificate, live: Option<&Pair>, renewal: &Renewal) -> Known {
        let authority = &self.settings().authority.url;
        let same_authority = renewal.directory.as_ref().is_none_or(|url| url == authority);
        Known {
            validity: live.map(|pair| pair.leaf.validity),
            fits: live.is_some_and(|pair| pair.leaf.names == wanted.names) && same_authority,
            // Of the one before it says nothing.
            suggested: renewal.suggested.filter(|_| {
                live.is_some_and(|pair| renewal.suggested_for.as_deref() == Some(&pair.leaf.serial))
            }),
            spread: live.map_or(0, |pair| pair.leaf.spread()),
        }
    }

    /// What the authority suggests, when that is old. Without it the age decides, so a failure is no error.
    async fn ask_suggestion(&self, live: Option<&Pair>, renewal: &mut Renewal, now: i64) {
        let Some(pair) = live else { return };
        let nothing = (now..=now + renewal::DAY).contains(&renewal.nothing_until);
        if renewal.suggested_for.as_deref() == Some(&pair.leaf.serial)
            && (nothing || !renewal::is_suggestion_old(now, renewal.suggested.as_ref()))
        {
            return;
        }
        match self.parts().acme.suggestion(&pair.leaf).await {
            Ok(suggested) => {
                // Many authorities suggest nothing. They are not asked at every look, for each certificate.
                renewal.nothing_until = if suggested.is_none() { now + renewal::DAY } else { 0 };
                renewal.suggested = suggested;
                renewal.suggested_for = Some(pair.leaf.serial.clone());
            }
            Err(error) => tracing::warn!("when to renew is decided by age: {error}"),
        }
    }
}
