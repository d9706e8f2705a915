// SPDX-License-Identifier: Apache-2.0
//! `org.dstack.certbot1.Manager`.

use super::job::JobPublisher;
use super::rows::{row, unsigned};
use super::work::{self, Told};
use super::{actions, secret};
use crate::control::Control;
use crate::engine::Engine;
use dstack_service::access::Gate;
use dstack_service::api::certbot1::{CertificateRow, Error, OwnedOptions, PATH, Rehearsal};
use dstack_service::errors::Fdo;
use dstack_service::jobs::{Jobs, NewJob};
use dstack_service::lifecycle;
use dstack_service::logging::message_id;
use std::time::Duration;
use tokio::sync::mpsc;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, OwnedFd, OwnedObjectPath, interface};

/// Longest time of a job: a thousand certificates, one after the other.
const JOB_MAX: Duration = Duration::from_secs(12 * 3600);

/// The manager on the bus.
#[derive(Debug)]
pub struct Manager {
    control: Control,
    gate: Gate,
    jobs: Jobs<JobPublisher>,
    told: mpsc::UnboundedSender<Told>,
    connection: Connection,
}

impl Manager {
    /// The manager's object, and what is to be told.
    #[must_use]
    pub fn new(control: Control, connection: &Connection) -> (Self, mpsc::UnboundedReceiver<Told>) {
        let (told, heard) = mpsc::unbounded_channel();
        let (gate, jobs) = (Gate::new(connection), Jobs::new(JobPublisher::new(connection)));
        (Self { control, gate, jobs, told, connection: connection.clone() }, heard)
    }

    /// Asks whether the caller may do this, to that certificate where there is one.
    async fn allow(&self, call: &Header<'_>, action: &str, domain: &str) -> Result<(), Fdo> {
        let verb = call.member().map(|m| m.as_str().to_owned()).unwrap_or_default();
        let verdict = self.gate.check(call, action, &[("domain", domain), ("verb", &verb)]).await;
        if let Err(refused) = &verdict {
            let sender = call.sender().map(|s| s.as_str().to_owned()).unwrap_or_default();
            tracing::info!(
                MESSAGE_ID = message_id::ACCESS_DENIED,
                DSTACK_DOMAIN = domain,
                "{verb} by {sender} was refused: {refused}"
            );
        }
        verdict
    }

    fn engine(&self) -> Result<Engine, Error> {
        Ok(self.control.engine()?)
    }

    /// A job for each kind, to describe the interface.
    ///
    /// # Errors
    /// Those of the bus.
    pub async fn example(&self) -> Result<OwnedObjectPath, Error> {
        let new = NewJob { kind: "example", subject: "", action: "", timeout: JOB_MAX };
        Ok(self
            .jobs
            .run(new, |_| std::future::pending::<Result<(), dstack_service::jobs::JobError<Error>>>())
            .await?)
    }

    /// The caller is the ingress; the bus policy says so, too.
    async fn is_ingress(&self, call: &Header<'_>) -> Result<(), Fdo> {
        let refuse = |why: String| Fdo::access_denied(format!("keys are for the ingress alone: {why}"));
        let sender = call.sender().ok_or_else(|| refuse("the caller has no bus name".into()))?;
        let bus = zbus::fdo::DBusProxy::new(&self.connection).await.map_err(|e| refuse(e.to_string()))?;
        let user = bus.get_connection_unix_user(sender.into()).await.map_err(|e| refuse(e.to_string()))?;
        let passwd =
            std::fs::read_to_string("/etc/passwd").map_err(|e| refuse(format!("/etc/passwd: {e}")))?;
        match secret::may_have_keys(user, &passwd) {
            true => Ok(()),
            false => Err(refuse(format!("the caller is user {user}, not {}", secret::INGRESS))),
        }
    }
}

/// The only option is `force b`.
fn forced(options: OwnedOptions, known: bool) -> Result<bool, Error> {
    let mut forced = false;
    for (name, value) in options {
        match (name.as_str(), bool::try_from(value)) {
            ("force", Ok(value)) if known => forced = value,
            ("force", Err(_)) if known => {
                return Err(Error::InvalidArgument("force must be a boolean".into()));
            }
            _ => return Err(Error::InvalidArgument(format!("there is no option {name:?}"))),
        }
    }
    Ok(forced)
}

#[interface(name = "org.dstack.certbot1.Manager")]
impl Manager {
    /// All certificates of the configuration; each has domain s, names as, state s, issuer s, not_before t, not_after t,
    /// renewal t, failures u, error s, retry t, public_key ay.
    #[zbus(out_args("certificates"))]
    async fn list_certificates(
        &self,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<Vec<CertificateRow>, Error> {
        self.allow(&call, actions::INSPECT, "").await?;
        let engine = self.engine()?;
        engine.views().iter().map(|view| row(&engine, view)).collect()
    }

    /// Looks at a certificate, or at all for an empty name, and renews what is due. Option force b renews at once.
    #[zbus(out_args("job"))]
    async fn renew(
        &self,
        domain: String,
        options: OwnedOptions,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<OwnedObjectPath, Error> {
        self.allow(&call, actions::MANAGE, &domain).await?;
        let (engine, forced) = (self.engine()?, forced(options, true)?);
        engine.select(&domain)?;
        let new = NewJob { kind: "renew", subject: &domain, action: actions::MANAGE, timeout: JOB_MAX };
        let (told, subject) = (self.told.clone(), domain.clone());
        Ok(self.jobs.run(new, |context| work::renew(context, engine, subject, forced, told)).await?)
    }

    /// Proves that the next renewal will work, without touching a live certificate: the account, CAA records, writing
    /// DNS, and an order at the authority for tries. There are no options yet.
    #[zbus(out_args("job"))]
    async fn rehearse(
        &self,
        options: OwnedOptions,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<OwnedObjectPath, Error> {
        self.allow(&call, actions::REHEARSE, "").await?;
        forced(options, false)?;
        let (engine, told) = (self.engine()?, self.told.clone());
        let new = NewJob { kind: "rehearse", subject: "", action: actions::REHEARSE, timeout: JOB_MAX };
        Ok(self.jobs.run(new, |context| work::rehearse(context, engine, told)).await?)
    }

    /// Brings the CAA records of a certificate, or of all for an empty name, to what they are to be. There are no options
    /// yet.
    #[zbus(out_args("job"))]
    async fn set_caa(
        &self,
        domain: String,
        options: OwnedOptions,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<OwnedObjectPath, Error> {
        self.allow(&call, actions::MANAGE, &domain).await?;
        forced(options, false)?;
        let engine = self.engine()?;
        engine.select(&domain)?;
        let new = NewJob { kind: "set-caa", subject: &domain, action: actions::MANAGE, timeout: JOB_MAX };
        let subject = domain.clone();
        Ok(self.jobs.run(new, |context| work::set_caa(context, engine, subject)).await?)
    }

    /// Chain and key of a certificate, PEM, as sealed files in memory. For the ingress alone, and root.
    #[zbus(out_args("chain", "key"))]
    async fn get_certificate(
        &self,
        domain: String,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<(OwnedFd, OwnedFd), Error> {
        self.is_ingress(&call).await?;
        let missing = || {
            Error::NoCertificate(format!(
                "there is no certificate for {domain:?} yet; run: dstackctl cert renew"
            ))
        };
        let pair = self.control.shelf()?.live(&domain)?.ok_or_else(missing)?;
        let sealed = |name: &str, text: &str| {
            let file = secret::sealed(name, text.as_bytes());
            file.map(OwnedFd::from)
                .map_err(|e| Error::Fdo(Fdo::failed(format!("no file in memory can be made: {e}"))))
        };
        Ok((sealed("dstack-chain", &pair.chain)?, sealed("dstack-key", &pair.key)?))
    }

    /// Every public key that was in a certificate or is in an order, SubjectPublicKeyInfo in DER, of one or of all for an
    /// empty name.
    #[zbus(out_args("public_keys"))]
    async fn historical_keys(
        &self,
        domain: String,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<Vec<Vec<u8>>, Error> {
        self.allow(&call, actions::INSPECT, &domain).await?;
        Ok(self.control.shelf()?.history(&domain)?)
    }

    /// Reads the settings again. What is wrong leaves those of before in force.
    async fn reload(
        &self,
        #[zbus(header)] call: Header<'_>,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> Result<(), Error> {
        self.allow(&call, actions::RELOAD, "").await?;
        self.control.reload().map_err(Error::Misconfigured)?;
        let changed = async {
            self.configured_changed(&emitter).await?;
            self.authority_changed(&emitter).await
        };
        changed.await.map_err(Error::Bus)
    }

    /// Whether it works: a domain is set, and the credentials are there.
    #[zbus(property)]
    fn configured(&self) -> bool {
        self.control.engine().is_ok()
    }

    /// URL of the ACME account; empty when there is none yet.
    #[zbus(property(emits_changed_signal = "false"))]
    fn account_uri(&self) -> zbus::fdo::Result<String> {
        let Ok(shelf) = self.control.shelf() else { return Ok(String::new()) };
        let uri = shelf.account_uri().map_err(|e| zbus::fdo::Error::Failed(e.to_string()))?;
        Ok(uri.unwrap_or_default())
    }

    /// URL of the authority's directory.
    #[zbus(property)]
    fn authority(&self) -> String {
        self.control.engine().map(|engine| engine.settings().authority.url.clone()).unwrap_or_default()
    }

    /// The last rehearsal: when, in Unix seconds (0: there was none), and what was found; empty when all is well.
    #[zbus(property(emits_changed_signal = "false"))]
    fn last_rehearsal(&self) -> zbus::fdo::Result<Rehearsal> {
        let Ok(engine) = self.control.engine() else { return Ok(Rehearsal::default()) };
        let rehearsed = engine.rehearsed().map_err(|e| zbus::fdo::Error::Failed(e.to_string()))?;
        Ok((unsigned(rehearsed.when), rehearsed.problems))
    }

    /// What it does, in words, as systemctl status shows it.
    #[zbus(property(emits_changed_signal = "false"))]
    fn status(&self) -> String {
        self.control.status()
    }

    /// Version of the daemon.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").to_owned()
    }

    /// A certificate is new; its SubjectPublicKeyInfo in DER.
    #[zbus(signal)]
    async fn certificate_changed(
        emitter: &SignalEmitter<'_>,
        domain: &str,
        public_key: &[u8],
    ) -> zbus::Result<()>;

    /// A certificate could not be renewed.
    #[zbus(signal)]
    async fn renewal_failed(emitter: &SignalEmitter<'_>, domain: &str, reason: &str) -> zbus::Result<()>;

    /// A rehearsal has failed.
    #[zbus(signal)]
    async fn rehearsal_failed(emitter: &SignalEmitter<'_>, reason: &str) -> zbus::Result<()>;

    /// A job has begun.
    #[zbus(signal)]
    async fn job_new(emitter: &SignalEmitter<'_>, id: u32, job: OwnedObjectPath) -> zbus::Result<()>;

    /// A job has ended: done, canceled, failed or timeout.
    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: OwnedObjectPath,
        result: &str,
    ) -> zbus::Result<()>;
}

/// Sends signals for what jobs tell, and keeps the status for `systemctl status`.
pub async fn follow(connection: Connection, control: Control, mut told: mpsc::UnboundedReceiver<Told>) {
    while let Some(word) = told.recv().await {
        lifecycle::status(&control.status());
        if let Err(error) = emit(&connection, word).await {
            tracing::warn!("a signal could not be sent: {error}");
        }
    }
}

async fn emit(connection: &Connection, word: Told) -> zbus::Result<()> {
    let object = connection.object_server().interface::<_, Manager>(PATH).await?;
    let emitter = object.signal_emitter();
    match word {
        Told::Changed(domain, public_key) => {
            Manager::certificate_changed(emitter, &domain, &public_key).await
        }
        Told::Failed(domain, reason) => Manager::renewal_failed(emitter, &domain, &reason).await,
        Told::Rehearsal(reason) => Manager::rehearsal_failed(emitter, &reason).await,
    }
}
