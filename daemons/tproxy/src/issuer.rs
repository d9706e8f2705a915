// SPDX-License-Identifier: Apache-2.0
//! Our own certificate (trust rules T17, T20): from the key service of this host, or in a CVM by the guest agent from the
//! key service of the app that we are.

use dstack_core::csr::GATEWAY_SUBJECT;
use dstack_ra_rpc::Identity;
use dstack_ra_rpc::peer::BoxFuture;
use dstack_ra_tls::certificate::{self, Usage};
use dstack_rpc::client;
use dstack_rpc::dstack::GetTlsKeyArgs;
use dstack_rpc::tappd::GetTlsKeyResponse;
use dstack_service::api::kms1::{self, Error, ManagerProxy};
use futures_util::StreamExt;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::timeout;
use zbus::Connection;
use zbus::proxy::CacheProperties;
use zeroize::Zeroizing;

/// Time for an answer, with the start of the key service.
const PATIENCE: Duration = Duration::from_secs(20);

/// Our identity, and whose apps may register.
#[derive(Debug)]
pub struct Issued {
    /// What we show.
    pub identity: Identity,
    /// SubjectPublicKeyInfo of the key service, DER.
    pub kms: Vec<u8>,
}

/// Who issues our certificate.
pub trait Issuer: Send + Sync + std::fmt::Debug {
    /// A fresh certificate for a fresh key. The error is a sentence that says what to do.
    fn issue(&self) -> BoxFuture<'_, Result<Issued, String>>;
}

/// The key service on this host's bus.
#[derive(Debug, Clone)]
pub struct HostKms {
    connection: Connection,
    /// The key that it must have.
    pinned: Option<Vec<u8>>,
}

impl HostKms {
    /// The key service of this bus; `pinned` is the SubjectPublicKeyInfo that it must have.
    #[must_use]
    pub const fn new(connection: Connection, pinned: Option<Vec<u8>>) -> Self {
        Self { connection, pinned }
    }

    /// Whenever trying again may help: the key service has started, or has got its keys.
    ///
    /// # Errors
    /// Those of the bus.
    pub async fn news(&self) -> zbus::Result<impl futures_util::Stream<Item = ()> + use<>> {
        let bus = zbus::fdo::DBusProxy::new(&self.connection).await?;
        let owners = bus.receive_name_owner_changed_with_args(&[(0, kms1::NAME)]).await?;
        let properties = zbus::fdo::PropertiesProxy::builder(&self.connection)
            .destination(kms1::NAME)
            .path(kms1::PATH)
            .build()
            .await?;
        let changes = properties.receive_properties_changed().await?;
        Ok(futures_util::stream::select(owners.map(drop), changes.map(drop)))
    }

    async fn ask(&self) -> Result<Issued, String> {
        let manager = ManagerProxy::builder(&self.connection).cache_properties(CacheProperties::No);
        let manager = manager.build().await.map_err(|e| e.to_string())?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| e.to_string())?;
        let signed = manager.sign_gateway_certificate(&key.subject_public_key_info()).await;
        let chain = signed.map_err(words)?;
        issued(chain, &key, self.pinned.as_deref())
    }
}

/// The guest agent, which asks the key service that the app is pinned to. That signs for the app that is its gateway.
#[derive(Debug, Clone)]
pub struct GuestAgent {
    /// Its socket.
    pub socket: PathBuf,
    /// The key that the key service must have.
    pub pinned: Option<Vec<u8>>,
}

impl GuestAgent {
    async fn ask(&self) -> Result<Issued, String> {
        let failed = |e: &dyn std::fmt::Display| format!("the guest agent at {}: {e}", self.socket.display());
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| failed(&e))?;
        let args = GetTlsKeyArgs {
            subject: GATEWAY_SUBJECT.into(),
            usage_ra_tls: true,
            usage_server_auth: true,
            usage_client_auth: true,
            ..GetTlsKeyArgs::default()
        };
        let reply: GetTlsKeyResponse =
            client::call(stream, "/GetTlsKey?json", &args).await.map_err(|e| failed(&e))?;
        let damaged = "it sent no key";
        let text = Zeroizing::new(reply.key);
        let pkcs8 = Zeroizing::new(pem::parse(text.as_str()).map_err(|_| failed(&damaged))?.into_contents());
        let key = KeyPair::try_from(pkcs8.as_slice()).map_err(|_| failed(&damaged))?;
        let der = |text: &String| pem::parse(text).map(pem::Pem::into_contents);
        let chain: Result<Vec<_>, _> = reply.certificate_chain.iter().map(der).collect();
        issued(chain.map_err(|e| failed(&e))?, &key, self.pinned.as_deref())
    }
}

fn words(error: Error) -> String {
    match error {
        Error::Fdo(fdo) if fdo.is_denied() => format!("the key service refuses: {fdo}"),
        Error::Bus(error) => {
            format!("the key service does not answer ({error}); run: apt install dstack-kms")
        }
        other => format!("the key service says: {other}"),
    }
}

/// Checks what was issued: for our key, as a gateway, by the key service that must be.
fn issued(chain: Vec<Vec<u8>>, key: &KeyPair, pinned: Option<&[u8]>) -> Result<Issued, String> {
    let claims = |der: Option<&Vec<u8>>| {
        let der = der.ok_or("the key service sent no certificate")?;
        certificate::parse(der).map_err(|e| format!("the key service sent no certificate: {e}"))
    };
    let (leaf, root) = (claims(chain.first())?, claims(chain.get(1))?);
    if leaf.public_key != key.subject_public_key_info() || leaf.usage != Some(Usage::GatewayRpc) {
        return Err("the key service sent a certificate that is not what was asked for".to_owned());
    }
    if pinned.is_some_and(|pinned| pinned != root.public_key) {
        return Err("the key service is not the one of kms.public_key in tproxy.toml".to_owned());
    }
    let kms = root.public_key;
    let pkcs8 = Zeroizing::new(key.serialize_der());
    Ok(Issued { identity: Identity::new(chain, pkcs8), kms })
}

impl Issuer for HostKms {
    fn issue(&self) -> BoxFuture<'_, Result<Issued, String>> {
        Box::pin(async {
            let asked = timeout(PATIENCE, self.ask()).await;
            asked.unwrap_or_else(|_| {
                Err("the key service does not answer; see journalctl -u dstack-kms".to_owned())
            })
        })
    }
}

impl Issuer for GuestAgent {
    fn issue(&self) -> BoxFuture<'_, Result<Issued, String>> {
        Box::pin(async {
            let asked = timeout(PATIENCE, self.ask()).await;
            asked.unwrap_or_else(|_| Err("the guest agent does not answer".to_owned()))
        })
    }
}
