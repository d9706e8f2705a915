// SPDX-License-Identifier: Apache-2.0
//! The operator's own say before each release (trust rule T17): `POST <url>/bootAuth/app` with what the verdict found.
//!
//! It is asked last, after everything else has passed, so it can only narrow. No answer in time, an answer that cannot
//! be read, or another status than 200 is a denial. Its `gatewayAppId` counts for nothing: that would widen.

use crate::settings::{Endpoint, Webhook};
use dstack_ra_rpc::peer::BoxFuture;
use dstack_ra_rpc::tls::client_config;
use dstack_ra_tls::{Verdict, certificate, verdict};
use dstack_rpc::client::call_within;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Path of the question about an app.
const APP: &str = "/bootAuth/app";

/// What is asked, all values in lower-case hex.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BootInfo {
    mrtd: String,
    rtmr0: String,
    rtmr1: String,
    rtmr2: String,
    rtmr3: String,
    mr_aggregated: String,
    /// SHA-256 over MRTD, RTMR1 and RTMR2.
    mr_image: String,
    /// SHA-256 over MRTD, RTMR0 to RTMR2 and `mr_key_provider`.
    mr_system: String,
    /// SHA-256 of `key_provider_info`; zeros at `GetAppKey`, which comes before that event.
    mr_key_provider: String,
    /// Payload of the event `key-provider`; empty at `GetAppKey`.
    key_provider_info: String,
    os_image_hash: String,
    app_id: String,
    compose_hash: String,
    instance_id: String,
    device_id: String,
    tcb_status: String,
    advisory_ids: Vec<String>,
    /// Root that the quote stands under; an addition of ours.
    root: String,
}

impl BootInfo {
    /// What a verdict found.
    #[must_use]
    pub fn of(verdict: &Verdict) -> Self {
        let [rtmr0, rtmr1, rtmr2, rtmr3] = verdict.measurements.rtmr.map(hex::encode);
        let boot = verdict.boot.as_ref();
        let text = |value: Option<String>| value.unwrap_or_default();
        let provider = boot.and_then(|b| b.key_provider.as_deref());
        let mr_key_provider = verdict::key_provider(provider);
        Self {
            mrtd: hex::encode(verdict.measurements.mr_td),
            rtmr0,
            rtmr1,
            rtmr2,
            rtmr3,
            mr_aggregated: hex::encode(verdict.measurements.aggregated()),
            mr_image: hex::encode(verdict.measurements.image()),
            mr_system: hex::encode(verdict.measurements.system(mr_key_provider)),
            mr_key_provider: hex::encode(mr_key_provider),
            key_provider_info: hex::encode(provider.unwrap_or_default()),
            os_image_hash: text(boot.map(|b| b.os_image_hash.to_string())),
            app_id: text(boot.map(|b| b.app_id.to_string())),
            compose_hash: text(boot.map(|b| b.compose_hash.to_string())),
            instance_id: text(boot.and_then(|b| b.instance_id).map(|i| i.to_string())),
            device_id: hex::encode(verdict.device_id),
            tcb_status: verdict.tcb_status.clone(),
            advisory_ids: verdict.advisories.clone(),
            root: verdict.root.to_string(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    #[serde(default)]
    is_allowed: bool,
    #[serde(default)]
    reason: String,
}

/// Says yes or no, and no with a reason.
pub trait Authorize: std::fmt::Debug + Send + Sync + 'static {
    /// Asks about a boot that has passed everything else.
    fn authorize<'a>(&'a self, info: &'a BootInfo) -> BoxFuture<'a, Result<(), String>>;
}

/// No webhook is set up: nothing is narrowed.
#[derive(Debug, Clone, Copy)]
pub struct Nobody;

impl Authorize for Nobody {
    fn authorize<'a>(&'a self, _info: &'a BootInfo) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}

impl Webhook {
    /// Asks; the caller's time limit is the one that counts.
    async fn ask(&self, info: &BootInfo) -> Result<Answer, String> {
        let path = format!("{}{APP}", self.base);
        match &self.endpoint {
            Endpoint::Unix(socket) => {
                let stream = UnixStream::connect(socket).await;
                let stream = stream.map_err(|e| format!("{}: {e}", socket.display()))?;
                call_within(stream, &path, info, 2 * self.timeout).await.map_err(|e| e.to_string())
            }
            Endpoint::Https { host, port, pin } => {
                let stream = connect(host, *port, pin).await?;
                call_within(stream, &path, info, 2 * self.timeout).await.map_err(|e| e.to_string())
            }
        }
    }
}

impl Authorize for Webhook {
    fn authorize<'a>(&'a self, info: &'a BootInfo) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let answer = timeout(self.timeout, self.ask(info)).await;
            let answer = answer.map_err(|_| {
                format!("the webhook did not answer within {} s, which is a denial", self.timeout.as_secs())
            })?;
            let answer = answer.map_err(|e| format!("the webhook failed, which is a denial: {e}"))?;
            if answer.is_allowed {
                return Ok(());
            }
            let reason: String = answer.reason.chars().filter(|c| !c.is_control()).take(200).collect();
            Err(format!("the webhook denied it: {reason}"))
        })
    }
}

/// A TLS 1.3 connection to a server that holds the pinned key; nothing is sent to another.
async fn connect(
    host: &str,
    port: u16,
    pin: &[u8; 32],
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
    let stream = TcpStream::connect((host, port)).await.map_err(|e| format!("{host}:{port}: {e}"))?;
    let config = client_config(None).map_err(|e| e.to_string())?;
    let name = ServerName::try_from("dstack.invalid").map_err(|e| e.to_string())?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let stream = stream.map_err(|e| format!("{host}:{port}: {e}"))?;
    let leaf =
        stream.get_ref().1.peer_certificates().and_then(|c| c.first()).ok_or("it shows no certificate")?;
    let key = certificate::parse(leaf).map_err(|e| e.to_string())?.public_key;
    if Sha256::digest(&key).as_slice() == pin {
        Ok(stream)
    } else {
        Err(format!("{host}:{port} holds another key than webhook.pin"))
    }
}
