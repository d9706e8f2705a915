// SPDX-License-Identifier: Apache-2.0
//! The instances as WireGuard peers: changes in their order, many in one message.

use crate::registry::Instance;
use dstack_core::wireguard::{InterfaceName, Net, Peer, PublicKey};
use dstack_wireguard::{Error, Wireguard};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// None from here: the instance keeps the way open, which alone knows its other end from the start.
const KEEPALIVE: u16 = 0;
/// Most changes of one message.
const BATCH: usize = 1024;

/// The peer of an instance: it may send from its own address and no other (trust rule T19).
#[must_use]
pub fn peer(instance: &Instance) -> Peer {
    Peer {
        public_key: instance.public_key,
        endpoint: None,
        allowed: vec![Net::host(instance.address.into())],
        keepalive: KEEPALIVE,
    }
}

/// A wish to the worker.
struct Wish {
    what: What,
    done: oneshot::Sender<Result<(), String>>,
}

enum What {
    /// Removes a peer, then adds one.
    Change(Option<Peer>, Option<PublicKey>),
    /// These and no others.
    All(Vec<Peer>),
}

/// Where changes are sent to.
#[derive(Debug, Clone)]
pub struct Peers(mpsc::UnboundedSender<Wish>);

impl std::fmt::Debug for Wish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wish")
    }
}

/// Waits until a change is in force.
#[derive(Debug)]
pub struct Applied(oneshot::Receiver<Result<(), String>>);

impl Applied {
    /// Waits.
    ///
    /// # Errors
    /// A sentence why it is not in force.
    pub async fn done(self) -> Result<(), String> {
        self.0.await.unwrap_or_else(|_| Err("the tunnel is being shut down".to_owned()))
    }
}

impl Peers {
    /// Begins to carry out changes on an interface; it ends when the last clone of the result is dropped.
    #[must_use]
    pub fn start(wireguard: Arc<dyn Wireguard>, name: InterfaceName) -> Self {
        let (wishes, waiting) = mpsc::unbounded_channel();
        tokio::spawn(carry_out(wireguard, name, waiting));
        Self(wishes)
    }

    /// Wishes a change. Wishes are carried out in the order of these calls, so call it under the lock of what they
    /// follow from.
    #[must_use]
    pub fn wish(&self, upsert: Option<Peer>, remove: Option<PublicKey>) -> Applied {
        self.send(What::Change(upsert, remove))
    }

    /// Wishes exactly these peers; the same holds.
    #[must_use]
    pub fn wish_all(&self, peers: Vec<Peer>) -> Applied {
        self.send(What::All(peers))
    }

    fn send(&self, what: What) -> Applied {
        let (done, applied) = oneshot::channel();
        // Without a worker `done` is dropped, and `Applied` says so.
        drop(self.0.send(Wish { what, done }));
        Applied(applied)
    }
}

async fn carry_out(
    wireguard: Arc<dyn Wireguard>,
    name: InterfaceName,
    mut waiting: mpsc::UnboundedReceiver<Wish>,
) {
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, BATCH).await > 0 {
        let (wishes, done): (Vec<What>, Vec<_>) = batch.drain(..).map(|wish| (wish.what, wish.done)).unzip();
        let result = apply(&*wireguard, &name, wishes).await.map_err(|e| e.to_string());
        if let Err(error) = &result {
            tracing::error!("peers of {name} cannot be changed: {error}");
        }
        // Whoever wished may be gone.
        done.into_iter().for_each(|done| drop(done.send(result.clone())));
    }
}

async fn apply(wireguard: &dyn Wireguard, name: &InterfaceName, wishes: Vec<What>) -> Result<(), Error> {
    let Folded { all, upsert, remove } = folded(wishes);
    if let Some(all) = all {
        wireguard.set_peers(name, &all).await?;
    }
    if upsert.is_empty() && remove.is_empty() {
        return Ok(());
    }
    wireguard.update_peers(name, &upsert, &remove).await
}

/// What comes of wishes in their order.
#[derive(Debug, Default, PartialEq, Eq)]
struct Folded {
    all: Option<Vec<Peer>>,
    upsert: Vec<Peer>,
    remove: Vec<PublicKey>,
}

/// The last whole set includes what was wished before it; afterwards, of each key the last wish counts.
fn folded(wishes: Vec<What>) -> Folded {
    let mut all = None;
    let mut last: BTreeMap<PublicKey, Option<Peer>> = BTreeMap::new();
    for wish in wishes {
        match wish {
            What::All(peers) => {
                all = Some(peers);
                last.clear();
            }
            What::Change(upsert, remove) => {
                last.extend(remove.map(|key| (key, None)));
                last.extend(upsert.map(|peer| (peer.public_key, Some(peer))));
            }
        }
    }
    let remove = last.iter().filter(|(_, peer)| peer.is_none()).map(|(key, _)| *key).collect();
    Folded { all, upsert: last.into_values().flatten().collect(), remove }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn key(byte: u8) -> PublicKey {
        [byte; 32].into()
    }

    fn peer(byte: u8, last: u8) -> Peer {
        let allowed = vec![Net::host([10, 0, 0, last].into())];
        Peer { public_key: key(byte), endpoint: None, allowed, keepalive: KEEPALIVE }
    }

    #[test]
    fn of_each_key_the_last_wish_counts() {
        let first = vec![
            What::Change(Some(peer(1, 1)), None),
            What::Change(Some(peer(2, 1)), Some(key(1))),
            What::Change(Some(peer(1, 1)), Some(key(2))),
            What::Change(None, Some(key(3))),
        ];
        let expected = Folded { all: None, upsert: vec![peer(1, 1)], remove: vec![key(2), key(3)] };
        assert_eq!(folded(first), expected);
        let whole = vec![
            What::Change(Some(peer(1, 1)), Some(key(9))),
            What::All(vec![peer(4, 4)]),
            What::Change(Some(peer(5, 5)), None),
        ];
        let expected = Folded { all: Some(vec![peer(4, 4)]), upsert: vec![peer(5, 5)], remove: vec![] };
        assert_eq!(folded(whole), expected);
    }
}
