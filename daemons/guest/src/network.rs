// SPDX-License-Identifier: Apache-2.0
//! The way from outside to the app: a WireGuard tunnel to each tproxy that the host hints at, if the app asks for it.
//!
//! A tproxy is believed by its certificate alone: of the app's key service, for the role of a gateway, with the app id
//! that the key service names (trust rule T17). Each run looks at all tunnels and registers anew where there is none,
//! where the last handshake is old, or where the registration is; so one run after the other keeps them up. Nothing of
//! the boot waits for this.
//!
//! The tunnel needs no firewall: WireGuard takes from the interface only packets of a server's own key whose inner
//! sender is that server's one address ([`tunnel`]), and answers nobody else on its UDP port.
//!
//! - [`handover`]: what dstack-prepare leaves for it
//! - [`register`]: one registration, over RA-TLS
//! - [`tunnel`]: what a registration makes of the interface; pure
//! - [`state`]: what is kept between two runs of a boot

pub mod handover;
pub mod register;
pub mod state;
pub mod tunnel;

use crate::layout::Layout;
use crate::outputs::{self, Output};
use crate::tee;
use dstack_core::kms_address::Address;
use dstack_keys::{KeyError, Secret, derive};
use dstack_ra_rpc::Verifier;
use dstack_rpc::tproxy::RegisterCvmRequest;
use dstack_wireguard::{InterfaceStatus, PrivateKey, PublicKey, System, Wireguard};
use futures_util::future::join_all;
use handover::Handover;
use register::{Ask, Identify, Miss};
use rustls::ClientConfig;
use state::State;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tunnel::Tunnel;
use zeroize::Zeroizing;

/// Why nothing was done at all. The text is for the guest's journal.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The boot agent's file.
    #[error("cannot read what the boot agent left: {0}")]
    Handover(io::Error),
    /// The key service names no gateway.
    #[error("the key service names no gateway (gateway_app_id in its kms.toml), so no tproxy can be trusted")]
    NoGateway,
    /// The host names no tproxy.
    #[error("the host names no tproxy: set [cvm] tproxy_urls in its teepod.toml")]
    NoAddress,
    /// The realm of this machine.
    #[error(transparent)]
    Realm(#[from] tee::RealmError),
    /// The WireGuard key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Key or state cannot be kept.
    #[error("cannot keep the tunnel's state: {0}")]
    State(io::Error),
    /// The interface.
    #[error("the tunnel cannot be set up: {0}")]
    Wireguard(#[from] dstack_wireguard::Error),
    /// TLS or the runtime cannot be set up.
    #[error("no tproxy can be asked: {0}")]
    Setup(#[from] io::Error),
    /// No tproxy has this instance.
    #[error("the app cannot be reached from outside: no tproxy has registered it")]
    Unregistered,
}

/// Where this program finds and keeps things.
#[derive(Debug, Clone)]
pub struct Places {
    /// What dstack-prepare left.
    pub handover: PathBuf,
    /// The program's own directory: the key (0600) and the state (0644) of this boot.
    pub own: PathBuf,
    /// The guest agent's socket.
    pub agent: PathBuf,
}

impl Places {
    /// Those of the guest.
    #[must_use]
    pub fn of_guest(layout: &Layout) -> Self {
        Self {
            handover: layout.network(),
            own: "/run/dstack-network".into(),
            agent: "/run/dstack.sock".into(),
        }
    }

    fn key(&self) -> PathBuf {
        self.own.join("key")
    }

    fn state(&self) -> PathBuf {
        self.own.join("state.json")
    }
}

/// One run of the program.
///
/// # Errors
/// [`NetworkError`].
pub fn run(layout: &Layout) -> Result<(), NetworkError> {
    let places = Places::of_guest(layout);
    let handover = Handover::read(&places.handover).map_err(NetworkError::Handover)?;
    let verifier = tee::verifier(&tee::Machine, &handover.platform)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let agent = register::Agent(places.agent.clone());
        let wireguard = System::open()?;
        let parts = Parts {
            places: &places,
            handover: &handover,
            verifier: &verifier,
            identify: &agent,
            wireguard: &wireguard,
        };
        parts.refresh(now()).await
    })
}

/// What a run works with.
#[derive(Debug)]
pub struct Parts<'a> {
    /// Where things are.
    pub places: &'a Places,
    /// Whom to ask, and whom to believe.
    pub handover: &'a Handover,
    /// Judges servers.
    pub verifier: &'a Verifier,
    /// How this instance shows itself.
    pub identify: &'a dyn Identify,
    /// The interface.
    pub wireguard: &'a dyn Wireguard,
}

impl Parts<'_> {
    /// Looks at all tunnels once and makes those anew that need it.
    ///
    /// # Errors
    /// [`NetworkError`]; what other tproxies gave is in force and kept all the same.
    pub async fn refresh(&self, now: u64) -> Result<(), NetworkError> {
        let gateway = self.handover.gateway.ok_or(NetworkError::NoGateway)?;
        if self.handover.tproxies.is_empty() {
            return Err(NetworkError::NoAddress);
        }
        let key = key(&self.places.key())?;
        let mut state = State::read(&self.places.state());
        let status = self.status().await?;
        let due: Vec<&Address> =
            self.handover.tproxies.iter().filter(|address| state.is_due(address, &status, now)).collect();
        if due.is_empty() {
            return Ok(());
        }
        let config = self.identify.identify().await;
        let asked = due.iter().map(|address| async {
            let config = Arc::clone(config.as_ref().map_err(Clone::clone)?);
            self.register(address, config, gateway, &key.public, now).await
        });
        let answers = join_all(asked).await;
        for (address, answer) in due.into_iter().zip(answers) {
            match answer {
                Ok(tunnel) => state.put(tunnel),
                Err(miss) => state.missed(address, &miss),
            }
        }
        self.apply(&key.private, &state).await
    }

    async fn register(
        &self,
        address: &Address,
        config: Arc<ClientConfig>,
        gateway: dstack_core::ids::AppId,
        key: &PublicKey,
        now: u64,
    ) -> Result<Tunnel, Miss> {
        let numbers = |ports: &[u16]| ports.iter().copied().map(u32::from).collect();
        let request = RegisterCvmRequest {
            client_public_key: key.to_string(),
            allowed_ports: numbers(self.handover.allowed_ports.as_deref().unwrap_or_default()),
            proxy_protocol_ports: numbers(&self.handover.proxy_protocol_ports),
        };
        let (verifier, kms) = (self.verifier, self.handover.kms.as_slice());
        let ask = Ask { address, gateway, kms, verifier, config, request: &request };
        register::register(&ask, now).await
    }

    /// The interface as it is; none is one without peers.
    async fn status(&self) -> Result<InterfaceStatus, NetworkError> {
        match self.wireguard.dump(&tunnel::INTERFACE).await {
            Ok(status) => Ok(status),
            Err(dstack_wireguard::Error::NoInterface(_)) => Ok(InterfaceStatus::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the interface what the registrations say, and keeps them. A kill in between loses nothing: the next run
    /// registers again, with the same key.
    async fn apply(&self, key: &PrivateKey, state: &State) -> Result<(), NetworkError> {
        if state.tunnels.is_empty() {
            return Err(NetworkError::Unregistered);
        }
        let plan = tunnel::plan(key, &state.tunnels);
        for ip in &plan.left_out {
            println!("<4>another tproxy has the address {ip} in the tunnel, too; the later one is left out");
        }
        self.wireguard.ensure(&plan.interface).await?;
        self.wireguard.set_peers(&plan.interface.name, &plan.peers).await?;
        state.write(&self.places.state()).map_err(NetworkError::State)
    }
}

/// The key of this boot.
struct Key {
    private: PrivateKey,
    public: PublicKey,
}

/// The key that an earlier run of this boot made, or a fresh one.
fn key(path: &Path) -> Result<Key, NetworkError> {
    let kept = fs::read(path).ok().map(Zeroizing::new);
    let secret = match kept.and_then(|bytes| Secret::try_from(bytes.as_slice()).ok()) {
        Some(secret) => secret,
        None => {
            let secret = Secret::random()?;
            let bytes = Zeroizing::new(secret.expose().to_vec());
            let output = Output { path: path.to_owned(), mode: 0o600, bytes };
            outputs::write(&output).map_err(NetworkError::State)?;
            secret
        }
    };
    let public = PublicKey::from(derive::x25519_public(&secret)?);
    Ok(Key { private: PrivateKey::from(*secret.expose()), public })
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
#[path = "network_tests.rs"]
mod tests;
