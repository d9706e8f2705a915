// SPDX-License-Identifier: Apache-2.0
//! No space for the leases.

use crate::world::{interface, open};
use dstack_testing::disk::SmallDisk;
use dstack_tproxy::engine::{Engine, Refusal};
use dstack_tproxy::registry::{Claim, Instance, Ports};
use dstack_wireguard::memory::Memory;
use std::sync::Arc;

async fn register(engine: &Engine, n: u8) -> Result<Instance, Refusal> {
    let (app_id, instance_id) = ([1; 20].into(), [n; 20].into());
    // The key of the ingress itself is none of these.
    let claim = Claim { app_id, instance_id, public_key: [n + 100; 32].into(), ports: Ports::default() };
    engine.register(claim).await
}

#[tokio::test]
async fn a_full_disk_is_told_and_loses_no_lease() {
    let Some(disk) = SmallDisk::new(64) else { return };
    let wireguard = Arc::<Memory>::default();
    let (engine, _told) = open(disk.path(), &wireguard);
    engine.make_tunnel().await.unwrap();
    let first = register(&engine, 1).await.unwrap();
    disk.fill();
    // The last block of the file has room for some more.
    let (mut answered, mut refused) = (vec![first], None);
    for n in 2..=100 {
        match register(&engine, n).await {
            Ok(instance) => answered.push(instance),
            Err(refusal) => {
                refused = Some((n, refusal));
                break;
            }
        }
    }
    let (n, refusal) = refused.expect("the disk is full");
    assert!(matches!(refusal, Refusal::Write(_)), "{refusal:?}");
    assert!(refusal.to_string().contains("No space left"), "{refusal}");
    let again = register(&engine, n).await.unwrap_err().to_string();
    assert!(again.contains("No space left"), "nothing is answered that is not on the disk: {again}");
    // A kill now: who was answered has a lease, and nobody else.
    let leases = |engine: &Engine| {
        let mut leases: Vec<Instance> = engine.instances().into_iter().map(|entry| entry.instance).collect();
        leases.sort_by_key(|instance| instance.address);
        leases
    };
    assert_eq!(leases(&open(disk.path(), &wireguard).0), answered);
    disk.clear();
    answered.push(register(&engine, n).await.unwrap());
    answered.push(register(&engine, 101).await.unwrap());
    assert_eq!(leases(&open(disk.path(), &wireguard).0), answered);
    let peers = wireguard.with(&interface(), |i| i.peers.len()).unwrap();
    assert_eq!(peers, answered.len());
}
