// SPDX-License-Identifier: Apache-2.0
//! Keys of ours: an ingress tells its own over RA-TLS, certbot over the bus, the operator in the settings.

use crate::certificate::KeyId;
use crate::limits::KEYS_MAX;
use dstack_core::ids::AppId;
use dstack_core::kms_address::Address;
use dstack_ra_rpc::peer::BoxFuture;
use dstack_ra_rpc::tls::client_config;
use dstack_ra_rpc::{Anchor, Rules, Verifier, connect};
use dstack_ra_tls::certificate::Usage;
use dstack_rpc::tproxy::AcmeInfoResponse;
use dstack_service::api::{certbot1, kms1};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use zbus::Connection;
use zbus::proxy::CacheProperties;

/// Port of an ingress that is given without one.
pub const TPROXY_PORT: u16 = 9070;
/// Time for all that an ingress or certbot is asked.
const PATIENCE: Duration = Duration::from_secs(30);

/// Somebody who knows keys of ours.
pub trait Keys: Send + Sync + std::fmt::Debug {
    /// Who it is, for people; also the name under which the keys are kept.
    fn name(&self) -> &str;
    /// All keys that were ever in use. The error is a sentence that says what to do.
    fn fetch(&self) -> BoxFuture<'_, Result<BTreeSet<KeyId>, String>>;
    /// Whether a key that it does not tell any more is none of ours: the operator's word, and nobody else's. A certbot
    /// that was installed anew knows nothing of certificates that go on being in logs.
    fn can_take_back(&self) -> bool {
        false
    }
}

/// Keys of the settings.
#[derive(Debug)]
pub struct Fixed(pub BTreeSet<KeyId>);

impl Keys for Fixed {
    fn name(&self) -> &str {
        "settings"
    }

    fn fetch(&self) -> BoxFuture<'_, Result<BTreeSet<KeyId>, String>> {
        Box::pin(async { Ok(self.0.clone()) })
    }

    fn can_take_back(&self) -> bool {
        true
    }
}

/// Whose certificates are believed.
#[derive(Debug, Clone)]
pub enum Pin {
    /// The key service with this SubjectPublicKeyInfo (DER).
    Key(Vec<u8>),
    /// The one of this host, by its bus.
    HostKms(Connection),
}

impl Pin {
    async fn key(&self) -> Result<Vec<u8>, String> {
        let connection = match self {
            Self::Key(key) => return Ok(key.clone()),
            Self::HostKms(connection) => connection,
        };
        let remedy = "name its key in kms_public_key; `dstackctl kms status` shows it on its host";
        let told =
            |e: &dyn std::fmt::Display| format!("this host's key service does not answer ({e}); {remedy}");
        let manager = kms1::ManagerProxy::builder(connection).cache_properties(CacheProperties::No);
        let manager = manager.build().await.map_err(|e| told(&e))?;
        let text = manager.ca_public_key().await.map_err(|e| told(&e))?;
        let key = hex::decode(&text).map_err(|e| told(&e))?;
        if key.is_empty() { Err(told(&"it has no keys yet")) } else { Ok(key) }
    }
}

/// An ingress, asked over RA-TLS.
#[derive(Debug)]
pub struct Tproxy {
    name: String,
    address: Address,
    pin: Pin,
    app: Option<AppId>,
    verifier: Arc<Verifier>,
}

impl Tproxy {
    /// The ingress at an address. Its certificate must be the pinned key service's, for a gateway, and for the app `app`
    /// when that is given; evidence inside must be good.
    #[must_use]
    pub fn new(address: Address, pin: Pin, app: Option<AppId>, verifier: Arc<Verifier>) -> Self {
        Self { name: format!("https://{address}{}", address.base), address, pin, app, verifier }
    }

    async fn ask(&self) -> Result<BTreeSet<KeyId>, String> {
        let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", self.name);
        let rules = Rules::issued(Anchor::pinned(self.pin.key().await?), vec![Usage::GatewayRpc]);
        let config = client_config(None).map_err(|e| failed(&e))?;
        let stream = TcpStream::connect((self.address.host.as_str(), self.address.port)).await;
        let stream = stream.map_err(|e| failed(&format!("cannot be reached: {e}")))?;
        let connection =
            connect(stream, Arc::new(config), &self.verifier, &rules).await.map_err(|e| failed(&e))?;
        if self.app.is_some() && connection.peer().app_id != self.app {
            return Err(failed(&"it is a gateway of another app than app_id says"));
        }
        let path = format!("{}/prpc/Tproxy.AcmeInfo?json", self.address.base);
        let info: AcmeInfoResponse =
            connection.call(&path, &serde_json::json!({})).await.map_err(|e| failed(&e))?;
        collect(&info.hist_keys).map_err(|e| failed(&e))
    }
}

fn collect(keys: &[Vec<u8>]) -> Result<BTreeSet<KeyId>, String> {
    if keys.len() > KEYS_MAX {
        return Err(format!("it names more than {KEYS_MAX} keys"));
    }
    Ok(keys.iter().map(|key| KeyId::of(key)).collect())
}

async fn patient<T>(name: &str, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| Err(format!("{name}: no answer within {} s", PATIENCE.as_secs())))
}

impl Keys for Tproxy {
    fn name(&self) -> &str {
        &self.name
    }

    fn fetch(&self) -> BoxFuture<'_, Result<BTreeSet<KeyId>, String>> {
        Box::pin(patient(&self.name, self.ask()))
    }
}

/// certbot of this host, asked over the bus.
#[derive(Debug)]
pub struct Certbot(pub Connection);

impl Certbot {
    /// All keys of all its certificates, also of those that it does not renew any more.
    async fn ask(&self) -> Result<BTreeSet<KeyId>, String> {
        let failed = |e: &dyn std::fmt::Display| {
            format!("certbot of this host does not answer ({e}); see: systemctl status dstack-certbot")
        };
        let manager = certbot1::ManagerProxy::builder(&self.0).cache_properties(CacheProperties::No);
        let manager = manager.build().await.map_err(|e| failed(&e))?;
        let keys = manager.historical_keys("").await.map_err(|e| failed(&e))?;
        collect(&keys).map_err(|e| failed(&e))
    }
}

impl Keys for Certbot {
    fn name(&self) -> &str {
        "certbot"
    }

    fn fetch(&self) -> BoxFuture<'_, Result<BTreeSet<KeyId>, String>> {
        Box::pin(patient("certbot", self.ask()))
    }
}
