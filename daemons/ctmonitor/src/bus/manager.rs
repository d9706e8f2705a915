// SPDX-License-Identifier: Apache-2.0
//! `org.dstack.ctmonitor1.Manager`.

use super::actions;
use super::job::JobPublisher;
use crate::alert::{Alert, BookError, Kind};
use crate::engine::{Engine, Refusal, View};
use crate::limits::CHECK_TIMEOUT;
use crate::store::{Cursor, Position};
use dstack_service::access::Gate;
use dstack_service::api::ctmonitor1::{AlertRow, Error, PATH, SourceRow};
use dstack_service::errors::Fdo;
use dstack_service::jobs::{Jobs, NewJob};
use dstack_service::logging::message_id;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{Mutex, mpsc, watch};
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, OwnedObjectPath, OwnedVariant, Variant, interface};

/// What an unconfigured monitor says.
pub const UNCONFIGURED: &str = "Not configured: set domains and a [[tproxy]] in /etc/dstack/ct-monitor.toml, then: systemctl restart dstack-ct-monitor";

/// The manager on the bus.
#[derive(Debug)]
pub struct Manager {
    /// `None` as long as nothing is configured.
    engine: Option<Engine>,
    gate: Gate,
    jobs: Jobs<JobPublisher>,
    /// The check that runs.
    running: Mutex<Option<OwnedObjectPath>>,
    /// Says that something has changed.
    changed: Arc<watch::Sender<u64>>,
}

impl Manager {
    /// The manager's object, and what says that properties have changed.
    #[must_use]
    pub fn new(engine: Option<Engine>, connection: &Connection) -> (Self, watch::Receiver<u64>) {
        let (changed, changes) = watch::channel(0);
        let manager = Self {
            engine,
            gate: Gate::new(connection),
            jobs: Jobs::new(JobPublisher::new(connection)),
            running: Mutex::default(),
            changed: Arc::new(changed),
        };
        (manager, changes)
    }

    /// A job as an example, for the description of the interface.
    ///
    /// # Errors
    /// Those of the bus.
    pub(super) async fn example(&self) -> Result<OwnedObjectPath, Fdo> {
        let new = NewJob { kind: "check", subject: "", action: actions::CHECK, timeout: CHECK_TIMEOUT };
        self.jobs.run(new, |context| async move { canceled(&context).await }).await
    }

    async fn allow(&self, call: &Header<'_>, action: &str) -> Result<(), Fdo> {
        let verb = call.member().map(|m| m.as_str().to_owned()).unwrap_or_default();
        let verdict = self.gate.check(call, action, &[("verb", &verb)]).await;
        if let Err(refused) = &verdict {
            let sender = call.sender().map(|s| s.as_str().to_owned()).unwrap_or_default();
            tracing::info!(
                MESSAGE_ID = message_id::ACCESS_DENIED,
                "{verb} by {sender} was refused: {refused}"
            );
        }
        verdict
    }

    fn engine(&self) -> Result<&Engine, Error> {
        self.engine.as_ref().ok_or_else(|| Error::NotConfigured(UNCONFIGURED.to_owned()))
    }

    fn view(&self) -> View {
        self.engine.as_ref().map(Engine::view).unwrap_or_default()
    }
}

async fn canceled(
    context: &dstack_service::jobs::Context,
) -> Result<(), dstack_service::jobs::JobError<Error>> {
    context.canceled().await;
    Err(dstack_service::jobs::JobError::Canceled)
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::State(_) => Self::StateUnwritable(text),
            Refusal::Book(BookError::NoSuchAlert(_)) => Self::NoSuchAlert(text),
            Refusal::Book(BookError::Full) => Self::TooManyAlerts(text),
            Refusal::NoKeys(_) => Self::NoKeys(text),
        }
    }
}

#[interface(name = "org.dstack.ctmonitor1.Manager")]
impl Manager {
    /// Checks all sources now. Gives the job; when a check runs already, that one's.
    #[zbus(out_args("job"))]
    async fn check(&self, #[zbus(header)] call: Header<'_>) -> Result<OwnedObjectPath, Error> {
        self.allow(&call, actions::CHECK).await?;
        let engine = self.engine()?.clone();
        let mut running = self.running.lock().await;
        if let Some(path) = running.as_ref().filter(|_| self.jobs.running() > 0) {
            return Ok(path.clone());
        }
        let changed = Arc::clone(&self.changed);
        let new = NewJob { kind: "check", subject: "", action: actions::CHECK, timeout: CHECK_TIMEOUT };
        let work = move |context: dstack_service::jobs::Context| async move {
            let result = engine.check(&context).await;
            changed.send_modify(|n| *n = n.wrapping_add(1));
            result.map_err(Error::from)?;
            if context.is_canceled() { Err(dstack_service::jobs::JobError::Canceled) } else { Ok(()) }
        };
        let path = self.jobs.run(new, work).await?;
        *running = Some(path.clone());
        Ok(path)
    }

    /// All alerts, the newest first; each has id s, kind s, text s, place s, names as, issuer s, serial s, not_before t,
    /// not_after t, public_key s, first_seen t, acknowledged t, settled t.
    #[zbus(out_args("alerts"))]
    async fn list_alerts(&self, #[zbus(header)] call: Header<'_>) -> Result<Vec<AlertRow>, Error> {
        self.allow(&call, actions::INSPECT).await?;
        self.engine()?.alerts().iter().map(alert_row).collect()
    }

    /// All sources; each has name s, last_success t, retry_at t, failures u, pending t, position t, error s.
    #[zbus(out_args("sources"))]
    async fn list_sources(&self, #[zbus(header)] call: Header<'_>) -> Result<Vec<SourceRow>, Error> {
        self.allow(&call, actions::INSPECT).await?;
        let positions = self.engine()?.positions().map_err(Refusal::from)?;
        positions.iter().map(source_row).collect()
    }

    /// Remembers that somebody has looked at an alert, by its id or at least eight digits that only it begins with. Its key
    /// does not alert again.
    async fn acknowledge(&self, id: String, #[zbus(header)] call: Header<'_>) -> Result<(), Error> {
        self.allow(&call, actions::ACKNOWLEDGE).await?;
        self.engine()?.acknowledge(&id)?;
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
        Ok(())
    }

    /// A certificate was issued for a key that nobody of ours has; the id is the digest of the key.
    #[zbus(signal)]
    async fn unknown_key(
        emitter: &SignalEmitter<'_>,
        id: &str,
        names: Vec<String>,
        issuer: &str,
        place: &str,
    ) -> zbus::Result<()>;

    /// Any other alert: unreadable, log-lies, blind.
    #[zbus(signal)]
    async fn alert(emitter: &SignalEmitter<'_>, id: &str, kind: &str, text: &str) -> zbus::Result<()>;

    /// A job begins.
    #[zbus(signal)]
    async fn job_new(emitter: &SignalEmitter<'_>, id: u32, job: OwnedObjectPath) -> zbus::Result<()>;

    /// A job has ended: done, canceled, failed, timeout.
    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: OwnedObjectPath,
        result: &str,
    ) -> zbus::Result<()>;

    /// Whether it works: domains are set.
    #[zbus(property(emits_changed_signal = "const"))]
    fn configured(&self) -> bool {
        self.engine.is_some()
    }

    /// What is watched: these domains and all names below them.
    #[zbus(property(emits_changed_signal = "const"))]
    fn domains(&self) -> Vec<String> {
        let domains = self.engine.as_ref().map(Engine::domains).unwrap_or_default();
        domains.iter().map(ToString::to_string).collect()
    }

    /// What it does, in words.
    #[zbus(property(emits_changed_signal = "false"))]
    fn status(&self) -> String {
        status(self.engine.as_ref())
    }

    /// Alerts that nobody has acknowledged and that are not settled.
    #[zbus(property)]
    fn alerts(&self) -> u32 {
        u32::try_from(self.view().open).unwrap_or(u32::MAX)
    }

    /// Keys of ours.
    #[zbus(property)]
    fn known_keys(&self) -> u32 {
        u32::try_from(self.view().known).unwrap_or(u32::MAX)
    }

    /// When the last check ended, Unix seconds, 0: never.
    #[zbus(property)]
    fn last_check(&self) -> u64 {
        self.view().check.at
    }

    /// When a check last ended without any trouble, Unix seconds, 0: never.
    #[zbus(property)]
    fn last_success(&self) -> u64 {
        self.view().check.good_at
    }

    /// What went wrong in the last check, empty when nothing did.
    #[zbus(property)]
    fn last_error(&self) -> String {
        self.view().check.error
    }

    /// Version of the daemon.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").to_owned()
    }
}

/// What the monitor says of itself, as `systemctl status` shows it.
#[must_use]
pub fn status(engine: Option<&Engine>) -> String {
    let Some(engine) = engine else { return UNCONFIGURED.to_owned() };
    let (view, domains) = (engine.view(), engine.domains());
    let names: Vec<&str> = domains.iter().take(3).map(crate::domain::Domain::as_str).collect();
    let more = if domains.len() > 3 { " …" } else { "" };
    let mut text =
        format!("Watching {}{more}: {} alerts, {} known keys", names.join(" "), view.open, view.known);
    match () {
        () if view.check.at == 0 => text.push_str("; no check yet"),
        () if !view.check.error.is_empty() => {
            text.push_str("; ");
            text.extend(view.check.error.chars().take(300));
        }
        () => {}
    }
    text
}

fn owned(values: Vec<(&str, Variant<'_>)>) -> Result<HashMap<String, OwnedVariant>, Error> {
    let one = |(name, value): (&str, Variant<'_>)| {
        let value = OwnedVariant::try_from(value).map_err(|e| Fdo::failed(e.to_string()))?;
        Ok((name.to_owned(), value))
    };
    values.into_iter().map(one).collect()
}

fn alert_row(alert: &Alert) -> Result<AlertRow, Error> {
    owned(vec![
        ("id", Variant::from(alert.id.as_str())),
        ("kind", Variant::from(alert.kind.word())),
        ("text", Variant::from(alert.text.as_str())),
        ("place", Variant::from(alert.place.as_str())),
        ("names", Variant::from(alert.names.clone())),
        ("issuer", Variant::from(alert.issuer.as_str())),
        ("serial", Variant::from(alert.serial.as_str())),
        ("not_before", Variant::from(alert.not_before)),
        ("not_after", Variant::from(alert.not_after)),
        ("public_key", Variant::from(alert.public_key.as_str())),
        ("first_seen", Variant::from(alert.first_seen)),
        ("acknowledged", Variant::from(alert.acknowledged)),
        ("settled", Variant::from(alert.settled)),
    ])
}

fn source_row(position: &Position) -> Result<SourceRow, Error> {
    let place = match &position.cursor {
        Cursor::Start => 0,
        Cursor::Search { checked, .. } => u64::try_from(checked.len()).unwrap_or(u64::MAX),
        Cursor::Log { frontier, .. } => frontier.size(),
    };
    owned(vec![
        ("name", Variant::from(position.name.as_str())),
        ("last_success", Variant::from(position.last_success)),
        ("retry_at", Variant::from(position.retry_at)),
        ("failures", Variant::from(position.failures)),
        ("pending", Variant::from(position.pending)),
        ("position", Variant::from(place)),
        ("error", Variant::from(position.error.as_str())),
    ])
}

/// Turns alerts into signals, and checks into changed properties.
pub async fn follow(
    connection: Connection,
    mut told: mpsc::UnboundedReceiver<Alert>,
    mut changes: watch::Receiver<u64>,
) {
    loop {
        let sent = tokio::select! {
            Some(alert) = told.recv() => emit(&connection, &alert).await,
            Ok(()) = changes.changed() => changed(&connection).await,
            else => return,
        };
        if let Err(error) = sent {
            tracing::warn!("a signal could not be sent: {error}");
        }
    }
}

async fn emit(connection: &Connection, alert: &Alert) -> zbus::Result<()> {
    let object = connection.object_server().interface::<_, Manager>(PATH).await?;
    let emitter = object.signal_emitter();
    if alert.kind == Kind::UnknownKey {
        Manager::unknown_key(emitter, &alert.id, alert.names.clone(), &alert.issuer, &alert.place).await?;
    } else {
        Manager::alert(emitter, &alert.id, alert.kind.word(), &alert.text).await?;
    }
    changed(connection).await
}

async fn changed(connection: &Connection) -> zbus::Result<()> {
    let object = connection.object_server().interface::<_, Manager>(PATH).await?;
    let (manager, emitter) = (object.get().await, object.signal_emitter().clone());
    manager.alerts_changed(&emitter).await?;
    manager.known_keys_changed(&emitter).await?;
    manager.last_check_changed(&emitter).await?;
    manager.last_success_changed(&emitter).await?;
    manager.last_error_changed(&emitter).await
}
