// SPDX-License-Identifier: Apache-2.0
//! What happens by itself: the tunnel is kept, handshakes are noted, the silent are forgotten.

use super::{Engine, route};
use crate::peers::peer;
use dstack_core::flow::ToFlow;
use dstack_core::wireguard::{PeerStatus, PublicKey};
use dstack_wireguard::InterfaceConfig;
use std::collections::HashSet;
use std::sync::PoisonError;
use std::time::Duration;

/// How often handshakes are looked at. Nothing tells of them, so they are asked for.
pub const LOOK: Duration = Duration::from_secs(10);

impl Engine {
    /// Makes the interface what it is to be, with exactly the registered peers.
    ///
    /// # Errors
    /// A sentence; it is tried again at the next look.
    pub async fn make_tunnel(&self) -> Result<(), String> {
        let result = self.ensure().await;
        let mut state = self.0.tunnel.write().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = &result
            && state.as_ref() != Err(error)
        {
            tracing::error!("there is no tunnel to the instances: {error}");
        }
        state.clone_from(&result);
        result
    }

    async fn ensure(&self) -> Result<(), String> {
        let tunnel = self.settings().tunnel.clone();
        let config = InterfaceConfig {
            name: tunnel.interface.clone(),
            private_key: self.0.private_key.clone(),
            listen_port: Some(tunnel.listen_port),
            addresses: tunnel.address().into_iter().collect(),
            mtu: Some(tunnel.mtu),
            routes: Vec::new(),
        };
        self.0.wireguard.ensure(&config).await.map_err(|e| e.to_string())?;
        let applied = {
            let registry = self.registry();
            self.0.peers.wish_all(registry.entries().map(|e| peer(&e.instance)).collect())
        };
        applied.done().await
    }

    /// Whether there is a tunnel, or why not.
    ///
    /// # Errors
    /// A sentence.
    pub fn tunnel(&self) -> Result<(), String> {
        self.0.tunnel.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes handshakes, and mends a tunnel that is not what it must be.
    pub async fn look(&self) {
        let name = self.settings().tunnel.interface.clone();
        let before: HashSet<_> = self.registry().entries().map(|e| e.instance.public_key).collect();
        match self.0.wireguard.dump(&name).await {
            Ok(status) => {
                self.observe(&status.peers);
                if self.tunnel().is_err() || !self.is_complete(&before, &status.peers) {
                    // What fails is logged there, and tried again.
                    drop(self.make_tunnel().await);
                }
            }
            Err(error) => {
                tracing::warn!("{name} cannot be looked at: {error}");
                drop(self.make_tunnel().await);
            }
        }
    }

    /// Whether the peers are those who are registered; `before` are those who were when the peers were asked for.
    fn is_complete(&self, before: &HashSet<PublicKey>, found: &[PeerStatus]) -> bool {
        let registry = self.registry();
        let known: HashSet<_> = found.iter().map(|p| p.public_key).collect();
        let lost = before.iter().any(|key| registry.has_key(key) && !known.contains(key));
        let foreign = known.iter().any(|key| !registry.has_key(key) && !before.contains(key));
        !lost && !foreign
    }

    fn observe(&self, peers: &[PeerStatus]) {
        let mut registry = self.registry();
        let news: Vec<_> =
            peers.iter().filter_map(|p| registry.observe(&p.public_key, p.last_handshake)).collect();
        if !news.is_empty() {
            let upsert = news.iter().filter_map(|id| registry.get(id)).map(route).collect();
            self.send(ToFlow::RouteDelta { upsert, remove: Vec::new() });
        }
    }

    /// Forgets whoever has been silent for longer than the settings allow; gives how many those were.
    pub fn recycle(&self) -> usize {
        let Some(recycle) = self.settings().recycle else { return 0 };
        let mut registry = self.registry();
        let gone = registry.recycle(self.0.verifier.now(), recycle.timeout.as_secs());
        let count = gone.len();
        if count > 0 {
            tracing::info!(
                "{count} instances gave no sign for {} s and were forgotten",
                recycle.timeout.as_secs()
            );
            // The writer logs a failure; they are forgotten again after a restart.
            drop(self.forget(&registry, gone));
        }
        count
    }
}
