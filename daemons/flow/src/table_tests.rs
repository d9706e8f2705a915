// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;
use std::collections::BTreeSet;

fn instance(id: u8, app: u8, handshake: Option<u64>) -> Instance {
    Instance {
        instance_id: [id; 20].into(),
        app_id: [app; 20].into(),
        address: [10, 0, 0, id].into(),
        handshake,
        port_policy: None,
        proxy_protocol: BTreeSet::new(),
        draining: false,
    }
}

fn table(instances: Vec<Instance>) -> Table {
    Table::of(instances, &Table::default())
}

fn picked(table: &Table, id: u8, now: Tick) -> Result<Vec<u8>, Refusal> {
    let found = table.pick([id; 20].into(), 80, 100, now)?;
    Ok(found.iter().map(|entry| entry.instance.instance_id.as_bytes()[0]).collect())
}

fn entry(table: &Table, id: u8) -> Arc<Entry> {
    table.pick([id; 20].into(), 80, u32::MAX, 0).unwrap().remove(0)
}

#[test]
fn the_newest_handshake_comes_first_and_none_last() {
    let table = table(vec![
        instance(1, 9, Some(5)),
        instance(2, 9, None),
        instance(3, 9, Some(7)),
        instance(4, 8, None),
    ]);
    assert_eq!(picked(&table, 9, 0), Ok(vec![3, 1, 2]));
    assert_eq!(picked(&table, 2, 0), Ok(vec![2]));
    assert_eq!(picked(&table, 7, 0), Err(Refusal::Unknown));
}

#[test]
fn an_id_is_an_instance_before_it_is_an_app() {
    // The app of instance 1 has the id that is instance 2's.
    let table = table(vec![instance(1, 2, None), instance(2, 5, None)]);
    assert_eq!(picked(&table, 2, 0), Ok(vec![2]));
}

#[test]
fn who_failed_is_tried_last_for_a_while_and_longer_each_time() {
    let table = table(vec![instance(1, 9, Some(7)), instance(2, 9, Some(5))]);
    entry(&table, 1).failed(0);
    assert_eq!(picked(&table, 9, 1), Ok(vec![2, 1]));
    assert_eq!(picked(&table, 9, ticks(SHUN_MS)), Ok(vec![1, 2]));
    entry(&table, 1).failed(0);
    assert_eq!(picked(&table, 9, ticks(SHUN_MS)), Ok(vec![2, 1]));
    drop(entry(&table, 1).connected());
    assert_eq!(picked(&table, 9, 1), Ok(vec![1, 2]));
}

#[test]
fn draining_ports_and_caps() {
    let policy = Instance { port_policy: Some(BTreeSet::from([443])), ..instance(1, 9, None) };
    let table = table(vec![policy, instance(2, 8, None)]);
    assert_eq!(picked(&table, 9, 0), Err(Refusal::Port));
    let drained = table.drained([2; 20].into()).unwrap();
    assert_eq!((picked(&drained, 8, 0), picked(&table, 8, 0)), (Err(Refusal::NoInstance), Ok(vec![2])));
    assert!(table.drained([3; 20].into()).is_none());
    let (two, app) = (entry(&table, 2), [8; 20].into());
    let lease = two.lease(1).unwrap();
    assert!(matches!(two.lease(1), Err(Refusal::Full)));
    assert!(matches!(table.pick(app, 80, 1, 0), Err(Refusal::Full)));
    drop(lease);
    assert!(table.pick(app, 80, 1, 0).is_ok() && two.lease(1).is_ok());
}

#[test]
fn counts_outlive_a_change_of_the_table_but_not_of_the_address() {
    let before = table(vec![instance(1, 9, None)]);
    let (lease, app) = (entry(&before, 1).connected(), entry(&before, 1).lease(5).unwrap());
    let after = before.changed(vec![instance(1, 9, Some(3)), instance(2, 9, None)], &[]);
    assert_eq!(after.stats().first().map(|stats| (stats.connected, stats.open)), Some((1, 1)));
    assert!(entry(&after, 2).lease(1).is_err(), "one app, one cap");
    let moved = Instance { address: [10, 0, 0, 77].into(), ..instance(1, 9, None) };
    assert!(after.changed(vec![moved], &[]).stats().is_empty());
    let gone = after.changed(vec![], &[[1; 20].into(), [2; 20].into()]);
    assert!(gone.is_empty() && picked(&gone, 9, 0).is_err());
    drop((lease, app));
    assert_eq!(after.stats().first().map(|stats| stats.open), Some(0));
}
