// SPDX-License-Identifier: Apache-2.0
//! The certificate of the ingress from this host's certbot, and what auditors may know of it.

use crate::acme::Info;
use crate::certificates;
use crate::control::Control;
use crate::engine::Engine;
use crate::names::BoxFuture;
use dstack_core::flow::{Certificate, PEM_MAX};
use dstack_service::api::certbot1::{Error, ManagerProxy, NAME};
use dstack_service::lifecycle;
use futures_util::{Stream, StreamExt};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;
use tokio::time::timeout;
use zbus::Connection;
use zbus::proxy::CacheProperties;
use zeroize::Zeroizing;

/// Time for an answer, with the start of the daemon.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long after a failure it is asked again, when nothing tells sooner that it may help.
const RETRY: Duration = Duration::from_secs(60);
/// How often it is asked again anyway: what was told while the bus was busy may have been lost.
const AGAIN: Duration = Duration::from_secs(6 * 3600);

/// Who has certificates.
pub trait Chains: Send + Sync + std::fmt::Debug {
    /// The live one of this name. The error is a sentence that says what to do.
    fn certificate<'a>(&'a self, domain: &'a str) -> BoxFuture<'a, Result<Certificate, String>>;
}

/// The certbot on this host's bus.
#[derive(Debug, Clone)]
pub struct HostCertbot(Connection);

impl HostCertbot {
    /// The certbot of this bus.
    #[must_use]
    pub const fn new(connection: Connection) -> Self {
        Self(connection)
    }

    async fn manager(&self) -> Result<ManagerProxy<'static>, String> {
        let manager = ManagerProxy::builder(&self.0).cache_properties(CacheProperties::No);
        manager.build().await.map_err(|e| e.to_string())
    }

    /// Whenever asking again may help: a certificate is new, or the daemon has started.
    async fn news(&self) -> Result<impl Stream<Item = ()> + use<>, String> {
        let text = |e: zbus::Error| e.to_string();
        let changed = self.manager().await?.receive_certificate_changed().await.map_err(text)?;
        let bus = zbus::fdo::DBusProxy::new(&self.0).await.map_err(text)?;
        let owners = bus.receive_name_owner_changed_with_args(&[(0, NAME)]).await.map_err(text)?;
        // Only a start: an end is no news that helps.
        let started = owners.filter_map(|change| async move {
            change.args().ok().filter(|args| args.new_owner().is_some()).map(drop)
        });
        Ok(futures_util::stream::select(changed.map(drop), Box::pin(started)))
    }

    async fn ask(&self, domain: &str) -> Result<Certificate, String> {
        let (chain, key) = self.manager().await?.get_certificate(domain).await.map_err(words)?;
        let read = move || Ok::<_, String>((text(chain.into())?, text(key.into())?));
        let (chain, key) = tokio::task::spawn_blocking(read).await.map_err(|e| e.to_string())??;
        let places = (Path::new("certbot's chain"), Path::new("certbot's key"));
        certificates::parse(&chain, &key, places).map_err(|e| e.to_string())
    }

    /// The account and all public keys; nothing on a host without certbot, or with one that has no settings.
    async fn known(&self) -> Result<Info, String> {
        let asked = async {
            let manager = self.manager().await?;
            match manager.historical_keys("").await {
                Ok(public_keys) => {
                    let account_uri = manager.account_uri().await.map_err(|e| e.to_string())?;
                    Ok(Info { account_uri, public_keys })
                }
                Err(Error::NotConfigured(_)) => Ok(Info::default()),
                Err(error) if is_absent(&error) => Ok(Info::default()),
                Err(error) => Err(words(error)),
            }
        };
        timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err("certbot does not answer".to_owned()))
    }
}

/// Whether there is no certbot on this host.
fn is_absent(error: &Error) -> bool {
    matches!(error, Error::Fdo(fdo) if fdo.name == "org.freedesktop.DBus.Error.ServiceUnknown")
}

fn words(error: Error) -> String {
    match error {
        error if is_absent(&error) => {
            "there is none: put files into /etc/dstack/certs, or run: apt install dstack-certbot".to_owned()
        }
        Error::Bus(error) => format!("certbot does not answer: {error}"),
        other => format!("certbot says: {other}"),
    }
}

fn text(fd: OwnedFd) -> Result<Zeroizing<String>, String> {
    let mut text = Zeroizing::new(String::with_capacity(PEM_MAX + 1));
    let read = File::from(fd).take(PEM_MAX as u64 + 1).read_to_string(&mut text);
    match read {
        Ok(read) if read <= PEM_MAX => Ok(text),
        Ok(_) => Err(format!("certbot gives more than {PEM_MAX} bytes")),
        Err(error) => Err(format!("what certbot gives cannot be read: {error}")),
    }
}

impl Chains for HostCertbot {
    fn certificate<'a>(&'a self, domain: &'a str) -> BoxFuture<'a, Result<Certificate, String>> {
        Box::pin(async move {
            let asked = timeout(PATIENCE, self.ask(domain)).await;
            asked.unwrap_or_else(|_| {
                Err("certbot does not answer; see journalctl -u dstack-certbot".to_owned())
            })
        })
    }
}

/// Shows what certbot has, now and whenever it says that something is new, until the bus is lost.
pub async fn follow(control: Control, engine: Engine, connection: Connection) {
    let certbot = HostCertbot::new(connection);
    // Before the first question, so that nothing is missed in between.
    let mut news = match certbot.news().await {
        Ok(news) => news.boxed(),
        Err(error) => {
            tracing::error!("certbot is not listened to, only asked: {error}");
            futures_util::stream::pending().boxed()
        }
    };
    loop {
        let known = certbot.known().await;
        let is_known = known.is_ok();
        engine.set_certbot(known);
        if is_known {
            engine.remember().await;
        }
        let is_shown = control.renew().await;
        lifecycle::status(&control.status(Some(&engine)));
        let pause = if is_known && is_shown { AGAIN } else { RETRY };
        tokio::select! {
            Some(()) = news.next() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}
