// SPDX-License-Identifier: Apache-2.0
//! `org.dstack.kms1.Manager`.

use super::actions;
use crate::engine::{Engine, Phase, Told, app_id, invalid};
use crate::forecast::Outlook;
use crate::release_log::Entry;
use dstack_service::access::Gate;
use dstack_service::api::kms1::{Error, ForecastRow, OwnedOptions, PATH, ReleaseRow, UpgradeRow};
use dstack_service::errors::Fdo;
use dstack_service::lifecycle;
use dstack_service::logging::message_id;
use std::collections::HashMap;
use tokio::sync::mpsc;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, OwnedVariant, Variant, interface};

/// The manager on the bus.
#[derive(Debug)]
pub struct Manager {
    engine: Engine,
    gate: Gate,
}

impl Manager {
    /// The manager's object.
    #[must_use]
    pub fn new(engine: Engine, connection: &Connection) -> Self {
        Self { engine, gate: Gate::new(connection) }
    }

    /// Asks whether the caller may do this, to that app where there is one.
    async fn allow(&self, call: &Header<'_>, action: &str, app: &str) -> Result<(), Fdo> {
        let verb = call.member().map(|m| m.as_str().to_owned()).unwrap_or_default();
        let verdict = self.gate.check(call, action, &[("app", app), ("verb", &verb)]).await;
        if let Err(refused) = &verdict {
            let sender = call.sender().map(|s| s.as_str().to_owned()).unwrap_or_default();
            tracing::info!(
                MESSAGE_ID = message_id::ACCESS_DENIED,
                DSTACK_APP = app,
                "{verb} by {sender} was refused: {refused}"
            );
        }
        verdict
    }
}

#[interface(name = "org.dstack.kms1.Manager")]
impl Manager {
    /// Makes the root keys, once, for a domain; returns the root CA's SubjectPublicKeyInfo in hex, which apps pin as
    /// key_provider_id. There are no options yet.
    #[zbus(out_args("ca_public_key"))]
    async fn bootstrap(
        &self,
        domain: String,
        options: OwnedOptions,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<String, Error> {
        self.allow(&call, actions::BOOTSTRAP, "").await?;
        if let Some(option) = options.keys().next() {
            return Err(invalid(format!("there is no option {option:?}; Bootstrap has none")));
        }
        self.engine.bootstrap(&domain).await
    }

    /// Allows a compose hash (64 hex, or its first 40) for an app.
    async fn allow_upgrade(
        &self,
        app: String,
        hash: String,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<(), Error> {
        self.allow(&call, actions::MANAGE_UPGRADES, &app).await?;
        self.engine.allow_upgrade(&app, &hash)
    }

    /// Takes that back. The first compose file of an app, whose hash is the app id, can be revoked too.
    async fn revoke_upgrade(
        &self,
        app: String,
        hash: String,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<(), Error> {
        self.allow(&call, actions::MANAGE_UPGRADES, &app).await?;
        self.engine.revoke_upgrade(&app, &hash)
    }

    /// What is allowed for an app: compose hash, by whom (first, operator, owner, revoked), number of the owner's
    /// statement.
    #[zbus(out_args("upgrades"))]
    async fn list_upgrades(
        &self,
        app: String,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<Vec<UpgradeRow>, Error> {
        self.allow(&call, actions::INSPECT, &app).await?;
        self.engine.list_upgrades(&app)
    }

    /// Takes an upgrade statement that the app's owner signed, as JSON. Its signature is the permission; only for an app
    /// that this service has never had to do with, the caller needs the one to manage upgrades.
    async fn submit_upgrade(&self, json: String, #[zbus(header)] call: Header<'_>) -> Result<(), Error> {
        let known = self.engine.knows_app_of(&json)?;
        self.allow(&call, if known { actions::INSPECT } else { actions::MANAGE_UPGRADES }, "").await?;
        self.engine.submit_json(&json)
    }

    /// The X25519 key that an app's environment is encrypted for, and the root key's signature over it.
    #[zbus(out_args("key", "signature"))]
    async fn get_app_env_key(
        &self,
        app: String,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<(Vec<u8>, Vec<u8>), Error> {
        self.allow(&call, actions::INSPECT, &app).await?;
        let key = self.engine.app_env_key(&app_id(&app)?)?;
        Ok((key.public_key, key.signature))
    }

    /// Releases and denials of an app's keys with a number above after, at most limit (0: 1000). Each has seq t, time t,
    /// kind s, instance s, compose_hash s, verdict s, reason s, prev s, hash s.
    #[zbus(out_args("entries"))]
    async fn get_release_log(
        &self,
        app: String,
        after: u64,
        limit: u32,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<Vec<ReleaseRow>, Error> {
        self.allow(&call, actions::INSPECT, &app).await?;
        self.engine.releases(&app, after, limit)?.into_iter().map(|(entry, hash)| row(entry, hash)).collect()
    }

    /// Lets the next boot of an instance have any data disk, once: for a backup that was put back on purpose, where the
    /// app asks for rollback protection.
    async fn forget_disk(
        &self,
        app: String,
        instance: String,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<(), Error> {
        self.allow(&call, actions::FORGET_DISK, &app).await?;
        self.engine.forget_disk(&app, &instance).await
    }

    /// Instances that got keys in the last 90 days and will be refused, the soonest first, by the policy and collateral of
    /// now; at most a minute old. Each has when t (Unix seconds; in the past: it is refused already), app s, instance s,
    /// compose_hash s, seen t (when it got keys last), cause s (refused, grace-ends, collateral-ends, no-collateral,
    /// not-genuine, unreadable), reason s.
    #[zbus(out_args("instances"))]
    async fn forecast(&self, #[zbus(header)] call: Header<'_>) -> Result<Vec<ForecastRow>, Error> {
        self.allow(&call, actions::FORECAST, "").await?;
        self.engine.forecast().await?.iter().map(outlook).collect()
    }

    /// Lets another key service of this measurement (64 hex) fetch the root keys once, within ttl seconds.
    async fn allow_peer(
        &self,
        measurement: String,
        ttl: u64,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<(), Error> {
        self.allow(&call, actions::ONBOARD, "").await?;
        self.engine.allow_peer(&measurement, ttl)
    }

    /// Fetches the root keys of another key service instead of making some. Option ca_public_key s, required: the
    /// source's root CA as hex of its SubjectPublicKeyInfo.
    async fn onboard(
        &self,
        source_url: String,
        options: OwnedOptions,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<(), Error> {
        self.allow(&call, actions::ONBOARD, "").await?;
        self.engine.onboard(&source_url, pinned(options)?).await
    }

    /// Issues a certificate of role gateway:rpc for a P-256 key, given as DER SubjectPublicKeyInfo, to the ingress of this
    /// host; returns leaf and root CA, DER each. It lives for a day.
    #[zbus(out_args("chain"))]
    async fn sign_gateway_certificate(
        &self,
        public_key: Vec<u8>,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<Vec<Vec<u8>>, Error> {
        self.allow(&call, actions::SIGN_GATEWAY, "").await?;
        self.engine.sign_gateway(&public_key).await
    }

    /// Reads the policy again; what is wrong leaves the old one in force.
    async fn reload(&self, #[zbus(header)] call: Header<'_>) -> Result<(), Error> {
        self.allow(&call, actions::RELOAD, "").await?;
        self.engine.reload()
    }

    /// Keys of an app were released to an instance of it.
    #[zbus(signal)]
    async fn key_released(
        emitter: &SignalEmitter<'_>,
        app: &str,
        instance: &str,
        compose_hash: &str,
    ) -> zbus::Result<()>;

    /// Keys of an app were asked for and refused; the reason says what to do.
    #[zbus(signal)]
    async fn key_denied(
        emitter: &SignalEmitter<'_>,
        app: &str,
        compose_hash: &str,
        reason: &str,
    ) -> zbus::Result<()>;

    /// Whether there are root keys.
    #[zbus(property)]
    fn bootstrapped(&self) -> bool {
        !matches!(self.engine.phase(), Phase::Empty)
    }

    /// Realm: intel, or test: and 16 hex digits of the test root.
    #[zbus(property)]
    fn realm(&self) -> String {
        self.engine.realm().to_string()
    }

    /// Custody of the root keys: host (this machine's owner can derive every app's keys) or cvm.
    #[zbus(property)]
    fn custody(&self) -> String {
        self.engine.custody().to_string()
    }

    /// Domain that was given at bootstrap; empty before.
    #[zbus(property)]
    fn domain(&self) -> String {
        self.with_authority(|a| a.record().domain.as_str().to_owned())
    }

    /// SubjectPublicKeyInfo of the root CA in hex; empty before bootstrap.
    #[zbus(property)]
    fn ca_public_key(&self) -> String {
        self.with_authority(|a| hex::encode(a.public_key()))
    }

    /// Compressed root secp256k1 key in hex; empty before bootstrap.
    #[zbus(property, name = "K256PublicKey")]
    fn k256_public_key(&self) -> String {
        self.with_authority(|a| hex::encode(a.k256_public()))
    }

    /// URL at which guests reach this service; empty before bootstrap when none is set.
    #[zbus(property)]
    fn address(&self) -> String {
        self.engine.address()
    }

    /// Version of the daemon.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").to_owned()
    }
}

impl Manager {
    fn with_authority(&self, read: impl FnOnce(&crate::authority::Authority) -> String) -> String {
        self.engine.authority().map(|a| read(&a)).unwrap_or_default()
    }

    async fn tell(&self, emitter: &SignalEmitter<'_>, told: &Told) -> zbus::Result<()> {
        match told {
            Told::Released(app, instance, hash) => Self::key_released(emitter, app, instance, hash).await,
            Told::Denied(app, hash, reason) => Self::key_denied(emitter, app, hash, reason).await,
            Told::Bootstrapped => {
                self.bootstrapped_changed(emitter).await?;
                self.custody_changed(emitter).await?;
                self.domain_changed(emitter).await?;
                self.ca_public_key_changed(emitter).await?;
                self.k256_public_key_changed(emitter).await?;
                self.address_changed(emitter).await
            }
        }
    }
}

/// The source's authority, from the options of `Onboard`.
fn pinned(options: OwnedOptions) -> Result<Vec<u8>, Error> {
    let mut pinned = None;
    for (name, value) in options {
        match (name.as_str(), String::try_from(value)) {
            ("ca_public_key", Ok(text)) => {
                pinned = Some(hex::decode(text).map_err(|e| invalid(format!("ca_public_key: {e}")))?);
            }
            ("ca_public_key", Err(_)) => return Err(invalid("ca_public_key must be a string")),
            _ => return Err(invalid(format!("there is no option {name:?}; Onboard has ca_public_key"))),
        }
    }
    pinned.ok_or_else(|| {
        invalid("option ca_public_key is required: the source says it by its property CaPublicKey")
    })
}

fn outlook(row: &Outlook) -> Result<ForecastRow, Error> {
    let text = |value: Option<String>| Variant::from(value.unwrap_or_default());
    owned([
        ("when", Variant::from(row.ahead.when)),
        ("app", text(row.app.map(|app| app.to_string()))),
        ("instance", text(row.instance.map(|id| id.to_string()))),
        ("compose_hash", text(row.compose_hash.map(|hash| hash.to_string()))),
        ("seen", Variant::from(row.seen)),
        ("cause", Variant::from(row.ahead.cause.word())),
        ("reason", Variant::from(row.ahead.reason.clone())),
    ])
}

fn row(entry: Entry, hash: String) -> Result<ReleaseRow, Error> {
    let text = |value: Option<String>| Variant::from(value.unwrap_or_default());
    let event = entry.event;
    owned([
        ("seq", Variant::from(entry.seq)),
        ("time", Variant::from(event.time)),
        ("kind", Variant::from(event.kind.word())),
        ("instance", text(event.instance.map(|i| i.to_string()))),
        ("compose_hash", text(event.compose_hash.map(|h| h.to_string()))),
        ("verdict", Variant::from(event.verdict)),
        ("reason", Variant::from(event.reason)),
        ("prev", Variant::from(entry.prev)),
        ("hash", Variant::from(hash)),
    ])
}

fn owned<const N: usize>(values: [(&str, Variant<'_>); N]) -> Result<HashMap<String, OwnedVariant>, Error> {
    let owned = values.into_iter().map(|(name, value)| {
        let value = OwnedVariant::try_from(value).map_err(crate::engine::internal)?;
        Ok((name.to_owned(), value))
    });
    owned.collect()
}

/// Turns what the engine tells into signals, and a bootstrap into a new status and certificate.
pub async fn follow(
    connection: Connection,
    engine: Engine,
    mut told: mpsc::UnboundedReceiver<Told>,
    bootstrapped: mpsc::UnboundedSender<()>,
) {
    while let Some(event) = told.recv().await {
        if event == Told::Bootstrapped {
            lifecycle::status(&engine.status());
            // The daemon's loop may be on its way out.
            let _ = bootstrapped.send(());
        }
        if let Err(error) = emit(&connection, &event).await {
            tracing::warn!("a signal could not be sent: {error}");
        }
    }
}

async fn emit(connection: &Connection, event: &Told) -> zbus::Result<()> {
    let object = connection.object_server().interface::<_, Manager>(PATH).await?;
    object.get().await.tell(object.signal_emitter(), event).await
}
