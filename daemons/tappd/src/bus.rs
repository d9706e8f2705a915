// SPDX-License-Identifier: Apache-2.0
//! `org.dstack.tappd1`: a thin layer over the agent.

use crate::agent::{Agent, VERSION, now};
use crate::app::App;
use crate::docker;
use crate::info::key_provider_info;
use crate::logs::{LogError, Query};
use crate::trust::TrustError;
use crate::vault::Vault;
use dstack_core::csr::Config;
use dstack_service::access::Gate;
use dstack_service::bus_errors;
use dstack_service::errors::Fdo;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use zbus::message::Header;
use zbus::{OwnedFd, OwnedVariant, Variant, interface};

/// The well-known name.
pub const NAME: &str = "org.dstack.tappd1";
/// Where the manager is.
pub const PATH: &str = "/org/dstack/tappd1";
/// What reading containers and logs is called where polkit decides.
const INSPECT: &str = "org.dstack.tappd1.inspect-containers";
/// The same for quotes and events.
const ATTEST: &str = "org.dstack.tappd1.attest";
/// The same for keys and certificates.
const KEYS: &str = "org.dstack.tappd1.use-keys";

bus_errors! {
    /// Errors of the guest agent.
    pub enum TappdError in "org.dstack.tappd1" {
        /// The name means no container, or several.
        NoSuchContainer,
        /// As many logs are being read as may be.
        TooManyReaders,
        /// Docker cannot be asked.
        DockerUnavailable,
        /// The journal cannot be read.
        JournalUnavailable,
        /// The boot has not ended.
        NotReady,
        /// The boot handed over no keys that can be used.
        NoKeys,
        /// The TEE or the event log refuses.
        NotAttested,
        /// No certificate can be had.
        NotCertified,
    }
}

/// The manager object.
#[derive(Debug)]
pub struct Manager {
    app: App,
    live: Option<(Arc<Agent>, Gate)>,
}

impl Manager {
    /// Serves this agent to those whom the gate lets pass.
    #[must_use]
    pub fn new(agent: Arc<Agent>, gate: Gate) -> Self {
        Self { app: agent.app.clone(), live: Some((agent, gate)) }
    }

    /// The agent, when the caller may read containers and logs.
    async fn agent(&self, header: &Header<'_>, verb: &str) -> Result<&Arc<Agent>, TappdError> {
        self.allowed(header, INSPECT, verb).await
    }

    async fn allowed(
        &self,
        header: &Header<'_>,
        action: &str,
        verb: &str,
    ) -> Result<&Arc<Agent>, TappdError> {
        let (agent, gate) = self.live.as_ref().ok_or_else(|| Fdo::failed("not on a bus"))?;
        gate.check(header, action, &[("verb", verb)]).await?;
        Ok(agent)
    }

    fn vault<T: Default>(&self, read: impl FnOnce(&Vault) -> T) -> T {
        self.live.as_ref().map(|(agent, _)| read(&agent.vault)).unwrap_or_default()
    }
}

/// The app's guest agent.
#[interface(name = "org.dstack.tappd1.Manager")]
impl Manager {
    /// Containers of the app, also those that have ended: id, name, image, state.
    #[zbus(out_args("containers"))]
    async fn list_containers(
        &self,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<Vec<(String, String, String, String)>, TappdError> {
        let containers = self.agent(&header, "list-containers").await?.containers().await;
        let containers = containers.map_err(|e| TappdError::DockerUnavailable(e.to_string()))?;
        let row = |c: dstack_rpc::guest::Container| {
            let name = docker::display_name(&c).to_owned();
            (c.id, name, c.image, c.state)
        };
        Ok(containers.into_iter().map(row).collect())
    }

    /// Opens a container's log as a pipe. Options are the parameters of `/logs/`: booleans `follow`, `text`,
    /// `timestamps`, `bare`, `ansi`; `since` and `until` as Unix seconds or as text such as `15m`; `tail` as a number
    /// or `all`.
    #[zbus(out_args("log"))]
    async fn open_logs(
        &self,
        container: &str,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedFd, TappdError> {
        let agent = self.agent(&header, "open-logs").await?;
        let chunks = agent.open_log(container, query(&options)?).await?;
        let (reading, writing) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|e| Fdo::limits_exceeded(format!("no pipe for the log: {e}")))?;
        let writing = pipe::Sender::from_owned_fd(writing)
            .map_err(|e| Fdo::failed(format!("the log's pipe cannot be used: {e}")))?;
        tokio::spawn(copy(chunks, writing));
        Ok(reading.into())
    }

    /// A quote over at most 64 bytes, with zeros after them, and the event log that belongs to it, JSON text.
    #[zbus(out_args("quote", "event_log"))]
    async fn get_quote(
        &self,
        report_data: Vec<u8>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(Vec<u8>, String), TappdError> {
        let agent = self.allowed(&header, ATTEST, "get-quote").await?;
        let reply = agent.vault.quote(&report_data).await?;
        Ok((reply.quote, reply.event_log))
    }

    /// Adds an event to the log and to RTMR3. Names of the boot are refused, and names with a `:`.
    async fn emit_event(
        &self,
        event: String,
        payload: Vec<u8>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(), TappdError> {
        let agent = self.allowed(&header, ATTEST, "emit-event").await?;
        Ok(agent.vault.attestor().emit(event, payload).await?)
    }

    /// A key of the app for a path, as a pipe with its 32 bytes; and two signatures: of the app key over its public
    /// half, and of the key service over the app key. The algorithm is `secp256k1` or `ed25519`.
    #[zbus(out_args("key", "signature_chain"))]
    async fn get_key(
        &self,
        path: &str,
        purpose: &str,
        algorithm: &str,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(OwnedFd, Vec<Vec<u8>>), TappdError> {
        let agent = self.allowed(&header, KEYS, "get-key").await?;
        let key = agent.vault.key(path, purpose, algorithm)?;
        Ok((secret_pipe(key.secret.expose())?, key.signature_chain.into()))
    }

    /// A fresh P-256 key, as a pipe with its PKCS#8 PEM, and its certificates, PEM each, leaf first. Options: `subject`
    /// s, `alt_names` as, booleans `ra_tls`, `server_auth` and `client_auth`, `not_before` t and `not_after` t in Unix
    /// seconds.
    #[zbus(out_args("key", "certificate_chain"))]
    async fn get_tls_key(
        &self,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(OwnedFd, Vec<String>), TappdError> {
        let agent = self.allowed(&header, KEYS, "get-tls-key").await?;
        let issued = agent.vault.certify(None, wish(options)?).await?;
        Ok((secret_pipe(issued.key.as_bytes())?, issued.chain))
    }

    /// Who gave the keys: `kms`, `none`, or nothing without keys.
    #[zbus(property(emits_changed_signal = "const"))]
    fn key_provider(&self) -> String {
        self.vault(|vault| vault.provider().to_owned())
    }

    /// Name and public key of who gave the keys, JSON text.
    #[zbus(property(emits_changed_signal = "const"))]
    fn key_provider_info(&self) -> String {
        self.vault(key_provider_info)
    }

    /// The trust root that quotes of this guest stand under: `intel`, `test:` and a fingerprint for a simulated TEE, or
    /// nothing where nothing attests it.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn realm(&self) -> String {
        let Some((agent, _)) = &self.live else { return String::new() };
        agent.vault.realm().await.map(ToString::to_string).unwrap_or_default()
    }

    /// The app's id, 40 hex digits.
    #[zbus(property(emits_changed_signal = "const"))]
    fn app_id(&self) -> String {
        self.app.app_id.clone()
    }

    /// The instance's id, 40 hex digits, or empty when the app wants none.
    #[zbus(property(emits_changed_signal = "const"))]
    fn instance_id(&self) -> String {
        self.app.instance_id.clone()
    }

    /// The app's name.
    #[zbus(property(emits_changed_signal = "const"))]
    fn app_name(&self) -> String {
        self.app.name.clone()
    }

    /// SHA-256 of app-compose.json, 64 hex digits.
    #[zbus(property(emits_changed_signal = "const"))]
    fn compose_hash(&self) -> String {
        self.app.compose_hash.clone()
    }

    /// The agent's version.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> String {
        VERSION.to_owned()
    }

    /// Whether anybody may read the containers' logs.
    #[zbus(property(emits_changed_signal = "const"))]
    fn public_logs(&self) -> bool {
        self.app.public_logs
    }

    /// Whether anybody may read load and containers.
    #[zbus(property(emits_changed_signal = "const"))]
    fn public_sysinfo(&self) -> bool {
        self.app.public_sysinfo
    }

    /// Whether anybody may read the measurements.
    #[zbus(property(emits_changed_signal = "const"))]
    fn public_tcbinfo(&self) -> bool {
        self.app.public_tcbinfo
    }
}

impl From<LogError> for TappdError {
    fn from(error: LogError) -> Self {
        let message = error.to_string();
        match error {
            LogError::Name(_) => Self::NoSuchContainer(message),
            LogError::Busy => Self::TooManyReaders(message),
            LogError::Journal(_) => Self::JournalUnavailable(message),
            LogError::Stopping => Self::Fdo(Fdo::failed(message)),
        }
    }
}

impl From<TrustError> for TappdError {
    fn from(error: TrustError) -> Self {
        let message = error.to_string();
        match error {
            TrustError::NotReady => Self::NotReady(message),
            TrustError::NoKeys | TrustError::BadKeys(_) => Self::NoKeys(message),
            TrustError::Log(_) | TrustError::Attest(_) => Self::NotAttested(message),
            TrustError::Kms(_) | TrustError::Certificate(_) => Self::NotCertified(message),
            TrustError::ReportData(_) | TrustError::Csr(_) | TrustError::Argument(_) => {
                Self::Fdo(Fdo::invalid_args(message))
            }
            TrustError::Key(_) | TrustError::Stopping => Self::Fdo(Fdo::failed(message)),
        }
    }
}

/// A pipe with a secret, which travels as a descriptor only. It fits into the pipe, so nobody waits for a reader.
fn secret_pipe(secret: &[u8]) -> Result<OwnedFd, TappdError> {
    let failed = |e: rustix::io::Errno| Fdo::limits_exceeded(format!("no pipe for the key: {e}"));
    let (reading, writing) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(failed)?;
    match rustix::io::write(&writing, secret).map_err(failed)? {
        written if written == secret.len() => Ok(reading.into()),
        _ => Err(Fdo::failed("the key does not fit into its pipe").into()),
    }
}

/// Options as a wish for a certificate.
fn wish(options: HashMap<String, OwnedVariant>) -> Result<Config, Fdo> {
    let mut wish = Config::default();
    for (key, value) in options {
        let odd = |_| Fdo::invalid_args(format!("option {key:?} has another type; see org.dstack.tappd1(5)"));
        match key.as_str() {
            "subject" => wish.subject = value.try_into().map_err(odd)?,
            "alt_names" => wish.subject_alt_names = value.try_into().map_err(odd)?,
            "ra_tls" => wish.ext_quote = value.try_into().map_err(odd)?,
            "server_auth" => wish.usage_server_auth = value.try_into().map_err(odd)?,
            "client_auth" => wish.usage_client_auth = value.try_into().map_err(odd)?,
            "not_before" => wish.not_before = Some(value.try_into().map_err(odd)?),
            "not_after" => wish.not_after = Some(value.try_into().map_err(odd)?),
            _ => {
                let known = "subject alt_names ra_tls server_auth client_auth not_before not_after";
                return Err(Fdo::invalid_args(format!("unknown option {key:?}; known are: {known}")));
            }
        }
    }
    Ok(wish)
}

/// Options as a query; an unknown one is an error, since nobody asked for nothing.
fn query(options: &HashMap<String, OwnedVariant>) -> Result<Query, Fdo> {
    const KNOWN: [&str; 8] = ["since", "until", "follow", "text", "timestamps", "bare", "ansi", "tail"];
    let mut query = Query::default();
    for (key, value) in options {
        if !KNOWN.contains(&key.as_str()) {
            return Err(Fdo::invalid_args(format!("unknown option {key:?}; known are: {}", KNOWN.join(" "))));
        }
        let text = match &**value {
            Variant::Bool(flag) => flag.to_string(),
            Variant::Str(text) => text.to_string(),
            Variant::U32(number) => number.to_string(),
            Variant::U64(number) => number.to_string(),
            Variant::I32(number) => number.to_string(),
            Variant::I64(number) => number.to_string(),
            _ => return Err(Fdo::invalid_args(format!("option {key:?} must be a boolean, number or text"))),
        };
        query.set(key, &text, now()).map_err(|e| Fdo::invalid_args(e.to_string()))?;
    }
    Ok(query)
}

/// Copies the log into the pipe until either end is gone.
async fn copy(mut chunks: mpsc::Receiver<Vec<u8>>, mut writing: pipe::Sender) {
    loop {
        let chunk = tokio::select! {
            chunk = chunks.recv() => chunk,
            // A pipe whose reader is gone is in error, which a write tells; an idle log has no write.
            _ = writing.ready(tokio::io::Interest::ERROR) => None,
        };
        match chunk {
            Some(chunk) if writing.write_all(&chunk).await.is_ok() => {}
            _ => return,
        }
    }
}

/// The XML of the manager, for `--bus-introspect`.
#[must_use]
pub fn describe(path: &str) -> Option<String> {
    (path == PATH).then(|| dstack_service::cli::node(&[&Manager { app: App::default(), live: None }]))
}
