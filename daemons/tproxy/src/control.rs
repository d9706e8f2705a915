// SPDX-License-Identifier: Apache-2.0
//! Reloading, and what the daemon says of itself.

use crate::certbot::Chains;
use crate::certificates;
use crate::engine::Engine;
use crate::session::{self, Feed};
use crate::settings::{Input, Settings, Source};
use crate::units::{self, Units};
use dstack_core::flow::Certificate;
use dstack_service::api::tproxy1::Error;
use dstack_service::config::{self, Directories};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, watch};

/// What an unconfigured daemon says.
pub const UNCONFIGURED: &str = "Not configured: run `dstackctl init`; or set proxy.base_domain and wg.endpoint in \
                                /etc/dstack/tproxy.toml, then run: systemctl restart dstack-tproxy";

/// What the bus is to say has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// The settings.
    Settings,
}

/// Why a part does not work yet; `None` where it does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notes {
    /// Our own certificate, from the key service; with what follows from it.
    pub kms: Option<String>,
    /// The certificate of the ingress.
    pub certificate: Option<String>,
    /// The data plane.
    pub data_plane: Option<String>,
    /// All of it, since the start: the settings cannot be used.
    pub misconfigured: Option<String>,
}

#[derive(Debug)]
struct Inner {
    directories: Directories,
    units: Arc<dyn Units>,
    chains: Arc<dyn Chains>,
    feed: watch::Sender<Arc<Feed>>,
    words: mpsc::UnboundedSender<Word>,
    notes: Mutex<Notes>,
    /// Where the certificate comes from since the start or the last reload; files that appear later wait for one.
    source: Mutex<Option<Source>>,
    /// One reload, new certificate or start of a data plane at a time.
    reloading: tokio::sync::Mutex<()>,
}

/// Reloads; clones share it.
#[derive(Debug, Clone)]
pub struct Control(Arc<Inner>);

impl Control {
    /// Reloads from these directories.
    #[must_use]
    pub fn new(
        directories: Directories,
        units: Arc<dyn Units>,
        chains: Arc<dyn Chains>,
    ) -> (Self, mpsc::UnboundedReceiver<Word>) {
        let (words, said) = mpsc::unbounded_channel();
        let inner = Inner {
            directories,
            units,
            chains,
            feed: watch::channel(Arc::default()).0,
            words,
            notes: Mutex::default(),
            source: Mutex::default(),
            reloading: tokio::sync::Mutex::default(),
        };
        (Self(Arc::new(inner)), said)
    }

    /// What data planes are told, as it changes.
    #[must_use]
    pub fn feed(&self) -> watch::Receiver<Arc<Feed>> {
        self.0.feed.subscribe()
    }

    /// The settings as the files have them now; `None` when nothing is configured.
    ///
    /// # Errors
    /// `Misconfigured` names file and key.
    pub fn read(&self) -> Result<Option<Settings>, Error> {
        let input = config::load::<Input>(&self.0.directories, "tproxy");
        let settings = input.and_then(Settings::from_input);
        settings.map_err(|e| Error::Misconfigured(format!("{e}; nothing was changed")))
    }

    /// The settings of a start; without usable ones [`Self::status`] says why from then on.
    pub fn start(&self) -> Option<Settings> {
        let settings = config::load::<Input>(&self.0.directories, "tproxy").and_then(Settings::from_input);
        settings.unwrap_or_else(|error| {
            let error = error.to_string().lines().collect::<Vec<_>>().join(" ");
            self.notes().misconfigured =
                Some(format!("Misconfigured: {error}; mend it, then run: systemctl restart dstack-tproxy"));
            None
        })
    }

    /// Reads what data planes are told. Before any of them is listened to: one that outlived us would else be told that
    /// there is nothing. What does not work yet is noted, and no error.
    pub fn open(&self, settings: &Settings) {
        let source = settings.source();
        let loaded = match &source {
            Source::Files => certificates::load(&settings.proxy).map_err(|e| e.to_string()),
            // It is asked for at once, while data planes that outlived us go on with theirs.
            Source::Certbot(domain) => Err(format!("certbot is being asked for the one of {domain}")),
        };
        let certificates = match loaded {
            Ok(certificate) => vec![certificate],
            Err(error) => {
                tracing::warn!("only passthrough works, there is no certificate: {error}");
                self.notes().certificate = Some(error.to_string());
                Vec::new()
            }
        };
        self.feed_with(Feed { config: session::config(&settings.proxy), certificates });
        *self.source() = Some(source);
    }

    /// Makes sure that a data plane runs, after a reload that is under way.
    pub async fn ensure_plane(&self) {
        let _turn = self.0.reloading.lock().await;
        let started = units::ensure(&*self.0.units).await;
        if let Err(error) = &started {
            tracing::error!("there is no data plane: {error}");
        }
        self.notes().data_plane = started.err();
    }

    /// Reads settings and certificates again, and replaces the data plane by a new generation.
    ///
    /// # Errors
    /// With the remedy; what is wrong with files leaves everything as it was.
    pub async fn reload(&self, engine: &Engine) -> Result<u64, Error> {
        let _turn = self.0.reloading.lock().await;
        let settings = self.read()?.ok_or_else(|| Error::Misconfigured(UNCONFIGURED.to_owned()))?;
        let source = settings.source();
        let (certificates, note) = self.certificates(&settings, &source).await?;
        let config = session::config(&settings.proxy);
        engine.set_settings(settings)?;
        self.notes().certificate = note;
        self.feed_with(Feed { config, certificates });
        *self.source() = Some(source);
        engine.remember().await;
        // Without a listener nobody wants to know.
        let _ = self.0.words.send(Word::Settings);
        let replaced = units::replace(&*self.0.units).await;
        self.notes().data_plane = replaced.clone().err();
        replaced.map_err(Error::DataPlaneFailed)
    }

    /// What a reload is to show, and why it shows nothing. A certbot that gives nothing is asked again later, so what it
    /// gave before stays.
    async fn certificates(
        &self,
        settings: &Settings,
        source: &Source,
    ) -> Result<(Vec<Certificate>, Option<String>), Error> {
        let (found, domain) = match source {
            Source::Files => (certificates::load(&settings.proxy).map_err(|e| e.to_string()), ""),
            Source::Certbot(domain) => (self.0.chains.certificate(domain).await, domain.as_str()),
        };
        let error = match found {
            Ok(certificate) => return Ok((vec![certificate], None)),
            Err(error) => error,
        };
        if domain.is_empty() || self.source().as_ref() != Some(source) {
            return Err(Error::Misconfigured(format!("{error}; the certificate of before stays")));
        }
        self.complain(domain, error);
        Ok((self.0.feed.borrow().certificates.clone(), self.notes().certificate.clone()))
    }

    /// Gives data planes what certbot has now; connections go on. Says whether there is nothing more to ask for.
    pub async fn renew(&self) -> bool {
        loop {
            let asked = self.source().clone();
            let Some(Source::Certbot(domain)) = &asked else { return true };
            let answer = self.0.chains.certificate(domain).await;
            let _turn = self.0.reloading.lock().await;
            // A reload in the meantime may want another one.
            if *self.source() == asked {
                return self.show(domain, answer);
            }
        }
    }

    fn show(&self, domain: &str, answer: Result<Certificate, String>) -> bool {
        match answer {
            Ok(certificate) => {
                let config = self.0.feed.borrow().config.clone();
                self.feed_with(Feed { config, certificates: vec![certificate] });
                self.notes().certificate = None;
                tracing::info!("the certificate of certbot for {domain} is shown");
                true
            }
            Err(error) => {
                self.complain(domain, error);
                false
            }
        }
    }

    /// Once for each reason. Data planes that have a certificate go on with it.
    fn complain(&self, domain: &str, error: String) {
        let shown = !self.0.feed.borrow().certificates.is_empty();
        let note = Some(format!("no certificate of certbot for {domain}: {error}"));
        let mut notes = self.notes();
        if notes.certificate != note && !shown {
            tracing::warn!(
                "only passthrough works, there is no certificate of certbot for {domain}: {error}"
            );
            notes.certificate = note;
        } else if shown {
            tracing::warn!("the certificate of before goes on being shown: {error}");
        }
    }

    fn feed_with(&self, feed: Feed) {
        self.0.feed.send_replace(Arc::new(feed));
    }

    fn source(&self) -> MutexGuard<'_, Option<Source>> {
        self.0.source.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What does not work yet.
    pub fn notes(&self) -> MutexGuard<'_, Notes> {
        self.0.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `systemctl status` shows.
    #[must_use]
    pub fn status(&self, engine: Option<&Engine>) -> String {
        let Some(engine) = engine else {
            return self.notes().misconfigured.clone().unwrap_or_else(|| UNCONFIGURED.to_owned());
        };
        let (registered, online) = engine.numbers();
        let domain = &engine.settings().proxy.base_domain;
        let notes = self.notes().clone();
        let because = |what, why: Option<String>| why.map(|why| format!("{what}: {why}"));
        let parts = [
            because("no tunnel", engine.tunnel().err()),
            notes.kms,
            because("passthrough only", notes.certificate),
            because("no data plane", notes.data_plane),
        ];
        let text = format!("Serving {domain}: {registered} instances, {online} online");
        parts.into_iter().flatten().fold(text, |text, part| text + "; " + &part)
    }
}
