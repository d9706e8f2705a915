// SPDX-License-Identifier: Apache-2.0
//! The engine: owns the state, and works through traits.
//!
//! - [`auditors`]: what they may know of certificates
//! - [`errors`]: what it refuses
//! - [`keeper`]: what happens by itself: the tunnel, handshakes, recycling
//! - [`flows`]: the data planes that are connected

pub mod auditors;
pub mod errors;
pub mod flows;
pub mod keeper;

pub use errors::Refusal;

use crate::acme::Info;
use crate::history::History;
use crate::journal::{Journal, Line};
use crate::peers::{Peers, peer};
use crate::quoted::Quoted;
use crate::registry::{Change, Claim, Entry, Instance, RegisterError, Registry};
use crate::settings::Settings;
use dstack_core::flow::{self, ToFlow};
use dstack_core::ids::{AppId, InstanceId};
use dstack_core::wireguard::{PrivateKey, PublicKey};
use dstack_ra_rpc::Verifier;
use dstack_service::logging::message_id;
use dstack_service::state::StateError;
use dstack_wireguard::Wireguard;
use flows::Flows;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use tokio::sync::{broadcast, mpsc};

/// Changes of routes that a slow data plane may be behind; it gets the whole then.
const ROUTES_BEHIND: usize = 4096;

/// What an engine is made of.
#[derive(Debug)]
pub struct Parts {
    /// Settings.
    pub settings: Settings,
    /// State directory.
    pub state: PathBuf,
    /// Our WireGuard key.
    pub private_key: PrivateKey,
    /// The public part of it.
    pub public_key: PublicKey,
    /// Judges peers.
    pub verifier: Arc<Verifier>,
    /// Makes the tunnel.
    pub wireguard: Arc<dyn Wireguard>,
}

/// What the engine tells the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// An instance is registered that was not.
    Added(Instance),
    /// One is not registered any more.
    Removed(Instance),
    /// Two run with one identity (trust rule T21).
    Cloned(Instance),
}

#[derive(Debug)]
struct Inner {
    settings: RwLock<Arc<Settings>>,
    private_key: PrivateKey,
    public_key: PublicKey,
    verifier: Arc<Verifier>,
    wireguard: Arc<dyn Wireguard>,
    peers: Peers,
    registry: Mutex<Registry>,
    journal: Journal,
    told: mpsc::UnboundedSender<Told>,
    routes: broadcast::Sender<Arc<ToFlow>>,
    flows: Flows,
    /// Whether there is a tunnel, or why not.
    tunnel: RwLock<Result<(), String>>,
    /// What this host's certbot says for auditors, or why it says nothing.
    certbot: RwLock<Result<Info, String>>,
    /// What auditors were ever told.
    history: History,
    quoted: Quoted,
}

/// The engine; clones share it.
#[derive(Debug, Clone)]
pub struct Engine(Arc<Inner>);

impl Engine {
    /// Opens the state; call it inside the runtime.
    ///
    /// # Errors
    /// When the state cannot be used.
    pub fn open(parts: Parts) -> Result<(Self, mpsc::UnboundedReceiver<Told>), StateError> {
        let Parts { settings, state, private_key, public_key, verifier, wireguard } = parts;
        let (journal, instances) = Journal::open(&state)?;
        let history = History::open(&state)?;
        let pool = settings.tunnel.pool().ok_or_else(|| StateError::Damaged {
            path: state,
            reason: "wg.client_ip_range is no IPv4 range".to_owned(),
        })?;
        let mut registry = Registry::new(public_key, pool);
        let (now, all) = (verifier.now(), instances.len());
        let kept = instances.into_iter().filter(|i| registry.restore(i.clone(), now)).count();
        if kept < all {
            tracing::warn!(
                "{} of {all} leases are outside of wg.client_ip_range now; their holders must register again",
                all - kept
            );
        }
        let peers = Peers::start(Arc::clone(&wireguard), settings.tunnel.interface.clone());
        let (told, events) = mpsc::unbounded_channel();
        let inner = Inner {
            settings: RwLock::new(Arc::new(settings)),
            private_key,
            public_key,
            verifier,
            wireguard,
            peers,
            registry: Mutex::new(registry),
            journal,
            told,
            routes: broadcast::channel(ROUTES_BEHIND).0,
            flows: Flows::default(),
            tunnel: RwLock::new(Err("it is being made".to_owned())),
            certbot: RwLock::new(Ok(Info::default())),
            history,
            quoted: Quoted::default(),
        };
        Ok((Self(Arc::new(inner)), events))
    }

    /// The settings in force.
    #[must_use]
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.0.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Other settings from now on.
    ///
    /// # Errors
    /// [`Refusal::Restart`] when they differ in what is fixed at a start.
    pub fn set_settings(&self, settings: Settings) -> Result<(), Refusal> {
        let old = self.settings();
        let fixed = |s: &Settings| (s.tunnel.clone(), s.kms_public_key.clone(), s.proxy.resolver);
        if fixed(&old) != fixed(&settings) {
            return Err(Refusal::Restart);
        }
        *self.0.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
        Ok(())
    }

    /// Our WireGuard key.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.0.public_key
    }

    /// Judges peers.
    #[must_use]
    pub fn verifier(&self) -> &Arc<Verifier> {
        &self.0.verifier
    }

    /// The data planes that are connected.
    #[must_use]
    pub fn flows(&self) -> &Flows {
        &self.0.flows
    }

    /// Registers an instance whose evidence was verified. Its lease is on the disk and its peer in force afterwards.
    ///
    /// # Errors
    /// [`Refusal`], with what to do.
    pub async fn register(&self, claim: Claim) -> Result<Instance, Refusal> {
        let app = claim.app_id;
        let first = self.begin(claim.clone());
        let begun = match first {
            Err(Refusal::Register(RegisterError::Full)) if self.recycle() > 0 => self.begin(claim),
            other => other,
        };
        let (instance, change, written, applied) = begun.inspect_err(|refusal| {
            tracing::warn!(DSTACK_APP = app.to_string(), "an instance of {app} was refused: {refusal}");
        })?;
        written.done().await?;
        applied.done().await.map_err(Refusal::Tunnel)?;
        self.announce(&instance, change);
        Ok(instance)
    }

    fn begin(
        &self,
        claim: Claim,
    ) -> Result<(Instance, Change, crate::journal::Written, crate::peers::Applied), Refusal> {
        let mut registry = self.registry();
        let (instance, change) = registry.register(claim, self.0.verifier.now())?;
        let lines = if change == Change::Same { Vec::new() } else { vec![Line::Put(instance.clone())] };
        let written = self.write(&registry, &lines);
        let old = if let Change::Rekeyed { old, .. } = change { Some(old) } else { None };
        // Also when nothing changed: whatever kept the peer away before may be over.
        let applied = self.0.peers.wish(Some(peer(&instance)), old);
        if change != Change::Same {
            self.route(registry.get(&instance.instance_id));
        }
        Ok((instance, change, written, applied))
    }

    fn announce(&self, instance: &Instance, change: Change) {
        let (app, id) = (instance.app_id.to_string(), instance.instance_id.to_string());
        let address = instance.address;
        match change {
            Change::New => {
                tracing::info!(
                    MESSAGE_ID = message_id::INSTANCE_REGISTERED,
                    DSTACK_APP = app,
                    DSTACK_INSTANCE = id,
                    "instance {id} of app {app} is registered at {address}"
                );
                self.tell(Told::Added(instance.clone()));
            }
            Change::Rekeyed { cloned: true, .. } => {
                tracing::error!(
                    MESSAGE_ID = message_id::INSTANCE_CLONED,
                    DSTACK_APP = app,
                    DSTACK_INSTANCE = id,
                    "two machines run as instance {id} of app {app}: a WireGuard key that was replaced is back"
                );
                self.tell(Told::Cloned(instance.clone()));
            }
            Change::Rekeyed { .. } => {
                tracing::info!(DSTACK_APP = app, DSTACK_INSTANCE = id, "instance {id} has a new key");
            }
            Change::Same | Change::Ports => {}
        }
    }

    /// Keeps new connections away from an instance, or no longer. It is on the disk afterwards.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn drain(&self, id: &InstanceId, drained: bool) -> Result<(), Refusal> {
        let written = {
            let mut registry = self.registry();
            let changed = registry.set_drained(id, drained).ok_or(Refusal::NoSuchInstance(*id))?;
            let entry = registry.get(id);
            let line = entry.map(|e| Line::Put(e.instance.clone())).filter(|_| changed);
            self.route(entry.filter(|_| changed));
            self.write(&registry, line.as_slice())
        };
        Ok(written.done().await?)
    }

    /// Forgets an instance; it may register again.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn remove(&self, id: &InstanceId) -> Result<(), Refusal> {
        let written = {
            let mut registry = self.registry();
            let instance = registry.remove(id).ok_or(Refusal::NoSuchInstance(*id))?;
            self.forget(&registry, vec![instance])
        };
        Ok(written.done().await?)
    }

    /// Everything that follows when instances are gone from the registry.
    fn forget(&self, registry: &Registry, gone: Vec<Instance>) -> crate::journal::Written {
        let remove: Vec<InstanceId> = gone.iter().map(|i| i.instance_id).collect();
        let lines: Vec<Line> = remove.iter().map(|id| Line::Del(*id)).collect();
        let written = self.write(registry, &lines);
        self.send(ToFlow::RouteDelta { upsert: Vec::new(), remove });
        for instance in gone {
            // A failure is logged where it happens, and a peer without a lease is removed at the next look.
            drop(self.0.peers.wish(None, Some(instance.public_key)));
            self.0.flows.forget(&instance.instance_id);
            self.tell(Told::Removed(instance));
        }
        written
    }

    fn write(&self, registry: &Registry, lines: &[Line]) -> crate::journal::Written {
        self.0.journal.write(lines, registry.entries().map(|e| &e.instance), registry.len())
    }

    /// A copy of an instance's entry.
    #[must_use]
    pub fn instance(&self, id: &InstanceId) -> Option<Entry> {
        self.registry().get(id).cloned()
    }

    /// Copies of all entries, by app and id.
    #[must_use]
    pub fn instances(&self) -> Vec<Entry> {
        let mut all: Vec<Entry> = self.registry().entries().cloned().collect();
        all.sort_by_key(|e| (e.instance.app_id, e.instance.instance_id));
        all
    }

    /// Apps, and their instances that take connections, the likeliest first.
    #[must_use]
    pub fn routes(&self) -> Vec<(AppId, Vec<InstanceId>)> {
        let mut all = self.instances();
        all.retain(|e| !e.instance.drained);
        all.sort_by_key(|e| (e.instance.app_id, std::cmp::Reverse(e.handshake)));
        let apps = all.chunk_by(|a, b| a.instance.app_id == b.instance.app_id);
        apps.filter_map(|app| {
            Some((app.first()?.instance.app_id, app.iter().map(|e| e.instance.instance_id).collect()))
        })
        .collect()
    }

    /// How many are registered, and how many of them are online.
    #[must_use]
    pub fn numbers(&self) -> (usize, usize) {
        let now = self.0.verifier.now();
        let registry = self.registry();
        (registry.len(), registry.entries().filter(|e| e.is_online(now)).count())
    }

    /// What the data planes get of all instances, and where changes from now on come from.
    #[must_use]
    pub fn subscribe(&self) -> (Vec<flow::Instance>, broadcast::Receiver<Arc<ToFlow>>) {
        let registry = self.registry();
        (registry.entries().map(route).collect(), self.0.routes.subscribe())
    }

    fn route(&self, entry: Option<&Entry>) {
        if let Some(entry) = entry {
            self.send(ToFlow::RouteDelta { upsert: vec![route(entry)], remove: Vec::new() });
        }
    }

    fn send(&self, message: ToFlow) {
        // Without a data plane nobody wants to know.
        drop(self.0.routes.send(Arc::new(message)));
    }

    fn tell(&self, told: Told) {
        // Without a listener nobody wants to know.
        drop(self.0.told.send(told));
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.0.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An instance as the data planes know it (known attack P29: only these addresses are ever dialled).
fn route(entry: &Entry) -> flow::Instance {
    let instance = &entry.instance;
    flow::Instance {
        instance_id: instance.instance_id,
        app_id: instance.app_id,
        address: instance.address.into(),
        handshake: entry.handshake,
        port_policy: instance.ports.allowed.as_ref().map(|ports| ports.iter().copied().collect()),
        proxy_protocol: instance.ports.proxy_protocol.iter().copied().collect(),
        draining: instance.drained,
    }
}
