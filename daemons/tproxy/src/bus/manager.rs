// SPDX-License-Identifier: Apache-2.0
//! `org.dstack.tproxy1.Manager`.

use super::actions;
use crate::control::{Control, Word};
use crate::engine::{Engine, Told};
use crate::registry::Entry;
use dstack_core::ids::InstanceId;
use dstack_service::access::Gate;
use dstack_service::api::tproxy1::{Error, InstanceRow, PATH, RouteRow};
use dstack_service::errors::Fdo;
use dstack_service::logging::message_id;
use std::collections::HashMap;
use tokio::sync::mpsc;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, OwnedVariant, Variant, interface};

/// The manager on the bus.
#[derive(Debug)]
pub struct Manager {
    /// `None` as long as nothing is configured.
    engine: Option<Engine>,
    control: Control,
    gate: Gate,
}

impl Manager {
    /// The manager's object.
    #[must_use]
    pub fn new(engine: Option<Engine>, control: Control, connection: &Connection) -> Self {
        Self { engine, control, gate: Gate::new(connection) }
    }

    /// Asks whether the caller may do this, to that instance where there is one.
    async fn allow(&self, call: &Header<'_>, action: &str, instance: &str) -> Result<(), Fdo> {
        let verb = call.member().map(|m| m.as_str().to_owned()).unwrap_or_default();
        let verdict = self.gate.check(call, action, &[("instance", instance), ("verb", &verb)]).await;
        if let Err(refused) = &verdict {
            let sender = call.sender().map(|s| s.as_str().to_owned()).unwrap_or_default();
            tracing::info!(
                MESSAGE_ID = message_id::ACCESS_DENIED,
                DSTACK_INSTANCE = instance,
                "{verb} by {sender} was refused: {refused}"
            );
        }
        verdict
    }

    fn engine(&self) -> Result<&Engine, Error> {
        self.engine.as_ref().ok_or_else(|| Error::NotConfigured(self.control.status(None)))
    }
}

#[interface(name = "org.dstack.tproxy1.Manager")]
impl Manager {
    /// All registered instances; each has id s, app s, address s, public_key s, registered t, handshake t, online b,
    /// drained b, clone_alarm t, connected t, failed t, open t.
    #[zbus(out_args("instances"))]
    async fn list_instances(&self, #[zbus(header)] call: Header<'_>) -> Result<Vec<InstanceRow>, Error> {
        self.allow(&call, actions::INSPECT, "").await?;
        let engine = self.engine()?;
        engine.instances().iter().map(|entry| row(engine, entry)).collect()
    }

    /// One instance, by its id of 40 hex digits.
    #[zbus(out_args("row"))]
    async fn get_instance(
        &self,
        instance: String,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<InstanceRow, Error> {
        self.allow(&call, actions::INSPECT, &instance).await?;
        let (engine, id) = (self.engine()?, id(&instance)?);
        let entry = engine.instance(&id);
        row(engine, &entry.ok_or(crate::engine::Refusal::NoSuchInstance(id))?)
    }

    /// Apps, and their instances that take connections, the likeliest first.
    #[zbus(out_args("routes"))]
    async fn list_routes(&self, #[zbus(header)] call: Header<'_>) -> Result<Vec<RouteRow>, Error> {
        self.allow(&call, actions::INSPECT, "").await?;
        let routes = self.engine()?.routes().into_iter();
        let text = |(app, ids): (_, Vec<InstanceId>)| {
            let app: dstack_core::ids::AppId = app;
            (app.to_string(), ids.iter().map(InstanceId::to_string).collect())
        };
        Ok(routes.map(text).collect())
    }

    /// Keeps new connections away from an instance; those it has go on.
    async fn drain(&self, instance: String, #[zbus(header)] call: Header<'_>) -> Result<(), Error> {
        self.allow(&call, actions::MANAGE_INSTANCES, &instance).await?;
        Ok(self.engine()?.drain(&id(&instance)?, true).await?)
    }

    /// Lets it have new connections again.
    async fn undrain(&self, instance: String, #[zbus(header)] call: Header<'_>) -> Result<(), Error> {
        self.allow(&call, actions::MANAGE_INSTANCES, &instance).await?;
        Ok(self.engine()?.drain(&id(&instance)?, false).await?)
    }

    /// Forgets an instance and its address. One that still runs registers again within minutes.
    async fn remove(&self, instance: String, #[zbus(header)] call: Header<'_>) -> Result<(), Error> {
        self.allow(&call, actions::MANAGE_INSTANCES, &instance).await?;
        Ok(self.engine()?.remove(&id(&instance)?).await?)
    }

    /// Numbers of all data planes, by the names of the metrics.
    #[zbus(out_args("numbers"))]
    async fn stats(&self, #[zbus(header)] call: Header<'_>) -> Result<HashMap<String, u64>, Error> {
        self.allow(&call, actions::INSPECT, "").await?;
        let total = self.engine()?.flows().total();
        Ok(total.each().map(|(name, _, _, value)| (name.to_owned(), value)).collect())
    }

    /// Reads settings and certificates again, and replaces the data plane by a new generation, which takes over before
    /// the old one drains. What is wrong leaves everything as it was.
    async fn reload(&self, #[zbus(header)] call: Header<'_>) -> Result<(), Error> {
        self.allow(&call, actions::RELOAD, "").await?;
        self.control.reload(self.engine()?).await.map(drop)
    }

    /// An instance is registered that was not.
    #[zbus(signal)]
    async fn instance_added(
        emitter: &SignalEmitter<'_>,
        instance: &str,
        app: &str,
        address: &str,
    ) -> zbus::Result<()>;

    /// One is not registered any more.
    #[zbus(signal)]
    async fn instance_removed(emitter: &SignalEmitter<'_>, instance: &str, app: &str) -> zbus::Result<()>;

    /// Two machines run with one identity.
    #[zbus(signal)]
    async fn clone_alarm(emitter: &SignalEmitter<'_>, instance: &str, app: &str) -> zbus::Result<()>;

    /// Whether it works: domain and endpoint are set.
    #[zbus(property(emits_changed_signal = "const"))]
    fn configured(&self) -> bool {
        self.engine.is_some()
    }

    /// Domain under which apps are; empty before it is set.
    #[zbus(property)]
    fn base_domain(&self) -> String {
        self.engine.as_ref().map(|e| e.settings().proxy.base_domain.clone()).unwrap_or_default()
    }

    /// The port at which clients reach it; 0 before it is set up.
    #[zbus(property(emits_changed_signal = "const"))]
    fn listen_port(&self) -> u16 {
        self.engine.as_ref().map(|e| e.settings().proxy.listen_port).unwrap_or_default()
    }

    /// Where guests reach WireGuard; empty before it is set.
    #[zbus(property(emits_changed_signal = "const"))]
    fn endpoint(&self) -> String {
        self.engine.as_ref().map(|e| e.settings().tunnel.endpoint.clone()).unwrap_or_default()
    }

    /// WireGuard key, base64; empty before it is used.
    #[zbus(property(emits_changed_signal = "const"))]
    fn public_key(&self) -> String {
        self.engine.as_ref().map(|e| e.public_key().to_string()).unwrap_or_default()
    }

    /// What it does, in words.
    #[zbus(property(emits_changed_signal = "false"))]
    fn status(&self) -> String {
        self.control.status(self.engine.as_ref())
    }

    /// Registered instances.
    #[zbus(property(emits_changed_signal = "false"))]
    fn registered(&self) -> u32 {
        self.numbers().0
    }

    /// Those with a handshake in the last 300 seconds.
    #[zbus(property(emits_changed_signal = "false"))]
    fn online(&self) -> u32 {
        self.numbers().1
    }

    /// Newest generation of the connected data planes, 0 when there is none.
    #[zbus(property(emits_changed_signal = "false"))]
    fn generation(&self) -> u64 {
        let planes = self.engine.as_ref().map(|e| e.flows().planes()).unwrap_or_default();
        planes.iter().map(|plane| plane.generation).max().unwrap_or(0)
    }

    /// Version of the daemon.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").to_owned()
    }
}

impl Manager {
    fn numbers(&self) -> (u32, u32) {
        let (registered, online) = self.engine.as_ref().map(Engine::numbers).unwrap_or_default();
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        (number(registered), number(online))
    }

    async fn tell(&self, emitter: &SignalEmitter<'_>, told: &Told) -> zbus::Result<()> {
        let (Told::Added(instance) | Told::Removed(instance) | Told::Cloned(instance)) = told;
        let (id, app) = (instance.instance_id.to_string(), instance.app_id.to_string());
        match told {
            Told::Added(_) => Self::instance_added(emitter, &id, &app, &instance.address.to_string()).await,
            Told::Removed(_) => Self::instance_removed(emitter, &id, &app).await,
            Told::Cloned(_) => Self::clone_alarm(emitter, &id, &app).await,
        }
    }
}

fn id(text: &str) -> Result<InstanceId, Error> {
    text.parse().map_err(|e| Error::InvalidArgument(format!("{e}")))
}

fn row(engine: &Engine, entry: &Entry) -> Result<InstanceRow, Error> {
    let instance = &entry.instance;
    let (connected, failed, open) = engine.flows().of(&instance.instance_id);
    let values = [
        ("id", Variant::from(instance.instance_id.to_string())),
        ("app", Variant::from(instance.app_id.to_string())),
        ("address", Variant::from(instance.address.to_string())),
        ("public_key", Variant::from(instance.public_key.to_string())),
        ("registered", Variant::from(instance.registered)),
        ("handshake", Variant::from(entry.handshake.unwrap_or(0))),
        ("online", Variant::from(entry.is_online(engine.verifier().now()))),
        ("drained", Variant::from(instance.drained)),
        ("clone_alarm", Variant::from(entry.clone_alarm.unwrap_or(0))),
        ("connected", Variant::from(connected)),
        ("failed", Variant::from(failed)),
        ("open", Variant::from(open)),
    ];
    let owned = values.into_iter().map(|(name, value)| {
        let value = OwnedVariant::try_from(value).map_err(|e| Fdo::failed(e.to_string()))?;
        Ok((name.to_owned(), value))
    });
    owned.collect()
}

/// Turns what the engine tells into signals, and what the daemon says into changed properties.
pub async fn follow(
    connection: Connection,
    mut told: mpsc::UnboundedReceiver<Told>,
    mut words: mpsc::UnboundedReceiver<Word>,
) {
    loop {
        let sent = tokio::select! {
            Some(told) = told.recv() => emit(&connection, &told).await,
            Some(Word::Settings) = words.recv() => changed(&connection).await,
            else => return,
        };
        if let Err(error) = sent {
            tracing::warn!("a signal could not be sent: {error}");
        }
    }
}

async fn emit(connection: &Connection, told: &Told) -> zbus::Result<()> {
    let object = connection.object_server().interface::<_, Manager>(PATH).await?;
    object.get().await.tell(object.signal_emitter(), told).await
}

async fn changed(connection: &Connection) -> zbus::Result<()> {
    let object = connection.object_server().interface::<_, Manager>(PATH).await?;
    object.get().await.base_domain_changed(object.signal_emitter()).await
}
