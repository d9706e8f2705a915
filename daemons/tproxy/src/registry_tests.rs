// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]

use super::*;
use crate::pool::Range;

fn id<T: From<[u8; 20]>>(byte: u8) -> T {
    [byte; 20].into()
}

fn key(byte: u8) -> PublicKey {
    [byte; 32].into()
}

fn registry(net: &str) -> Registry {
    let range = Range::of(&net.parse().unwrap()).unwrap();
    Registry::new(key(0xff), Pool::new(range, "10.0.0.1".parse().unwrap(), Vec::new()))
}

fn claim(app: u8, instance: u8, public_key: u8) -> Claim {
    Claim { app_id: id(app), instance_id: id(instance), public_key: key(public_key), ports: Ports::default() }
}

fn address(instance: &Instance) -> String {
    instance.address.to_string()
}

#[test]
fn p28_addresses_are_kept_and_unique() {
    let mut registry = registry("10.0.0.0/24");
    let (first, change) = registry.register(claim(1, 1, 1), 100).unwrap();
    assert_eq!((address(&first).as_str(), change), ("10.0.0.2", Change::New));
    let (second, _) = registry.register(claim(1, 2, 2), 100).unwrap();
    assert_eq!(address(&second), "10.0.0.3");
    let (again, change) = registry.register(claim(1, 1, 1), 200).unwrap();
    assert_eq!((address(&again).as_str(), change, again.registered), ("10.0.0.2", Change::Same, 100));
    let (rekeyed, change) = registry.register(claim(1, 1, 9), 300).unwrap();
    let expected = Change::Rekeyed { old: key(1), cloned: false };
    assert_eq!((address(&rekeyed).as_str(), change, rekeyed.registered), ("10.0.0.2", expected, 300));
    assert!(!registry.has_key(&key(1)) && registry.has_key(&key(9)));
}

#[test]
fn t21_a_replaced_key_that_comes_back_is_a_clone() {
    let mut registry = registry("10.0.0.0/24");
    registry.register(claim(1, 1, 1), 100).unwrap();
    registry.register(claim(1, 1, 2), 200).unwrap();
    assert_eq!(registry.get(&id(1)).unwrap().clone_alarm, None, "a reboot is no alarm");
    let (_, change) = registry.register(claim(1, 1, 1), 210).unwrap();
    assert_eq!(change, Change::Rekeyed { old: key(2), cloned: true });
    assert_eq!(registry.get(&id(1)).unwrap().clone_alarm, Some(210));
    assert_eq!(registry.get(&id(1)).unwrap().instance.public_key, key(1), "the newest wins");
    let (_, change) = registry.register(claim(1, 1, 3), 900).unwrap();
    assert_eq!(change, Change::Rekeyed { old: key(1), cloned: false });
    assert_eq!(registry.get(&id(1)).unwrap().clone_alarm, Some(210), "it stays visible");
}

#[test]
fn t21_new_keys_are_rate_limited() {
    let mut registry = registry("10.0.0.0/24");
    for n in 1..=REKEYS_MAX {
        registry.register(claim(1, 1, u8::try_from(n).unwrap()), 100 + n as u64).unwrap();
    }
    assert_eq!(registry.register(claim(1, 1, 50), 110), Err(RegisterError::TooOften));
    assert!(!registry.has_key(&key(50)));
    let current = u8::try_from(REKEYS_MAX).unwrap();
    assert_eq!(
        registry.register(claim(1, 1, current), 110).unwrap().1,
        Change::Same,
        "the same key is no new one"
    );
    assert!(registry.register(claim(1, 1, 50), 101 + REKEY_WINDOW).is_ok());
}

#[test]
fn t01_nobody_takes_over_what_is_another_instances() {
    let mut registry = registry("10.0.0.0/24");
    registry.register(claim(1, 1, 1), 100).unwrap();
    assert_eq!(registry.register(claim(2, 1, 2), 100), Err(RegisterError::OtherApp));
    assert_eq!(registry.register(claim(2, 2, 1), 100), Err(RegisterError::KeyTaken));
    assert_eq!(registry.register(claim(2, 2, 0xff), 100), Err(RegisterError::BadKey), "ours");
    assert_eq!(registry.register(claim(2, 2, 0), 100), Err(RegisterError::BadKey), "none");
    let ports = Ports { allowed: Some(vec![1; PORTS_MAX + 1]), ..Ports::default() };
    assert_eq!(registry.register(Claim { ports, ..claim(2, 2, 2) }, 100), Err(RegisterError::Ports));
    assert_eq!(registry.len(), 1);
}

#[test]
fn the_silent_are_recycled_and_the_others_stay() {
    let mut registry = registry("10.0.0.0/29");
    for n in 1..=5 {
        registry.register(claim(1, n, n), 100).unwrap();
    }
    assert_eq!(registry.register(claim(1, 6, 6), 100), Err(RegisterError::Full));
    assert_eq!(registry.observe(&key(2), Some(1000)), Some(id(2)));
    assert_eq!(registry.observe(&key(2), Some(1000)), None, "no news");
    assert_eq!(registry.observe(&key(2), None), None);
    assert_eq!(registry.observe(&key(77), Some(1000)), None);
    registry.register(claim(1, 3, 3), 1000).unwrap();
    let gone: Vec<Instance> = registry.recycle(1000, 600);
    let mut gone: Vec<String> = gone.iter().map(address).collect();
    gone.sort();
    assert_eq!(gone, ["10.0.0.2", "10.0.0.5", "10.0.0.6"]);
    assert!(registry.recycle(1000, 600).is_empty());
    assert_eq!(address(&registry.register(claim(1, 6, 1), 1000).unwrap().0), "10.0.0.2");
}

#[test]
fn an_earlier_runs_instances_are_not_silent_yet() {
    let mut first = registry("10.0.0.0/24");
    let (instance, _) = first.register(claim(1, 1, 1), 100).unwrap();
    let mut second = registry("10.0.0.0/24");
    assert!(second.restore(instance.clone(), 100_000));
    assert!(!second.restore(instance.clone(), 100_000), "once");
    assert!(second.recycle(100_500, 600).is_empty());
    let (again, change) = second.register(claim(1, 1, 2), 100_500).unwrap();
    assert_eq!((again.address, change), (instance.address, Change::Rekeyed { old: key(1), cloned: false }));
    let mut moved = registry("10.9.0.0/24");
    assert!(!moved.restore(instance, 1), "the range has changed");
}

#[test]
fn draining_and_ports_are_changes_once() {
    let mut registry = registry("10.0.0.0/24");
    registry.register(claim(1, 1, 1), 100).unwrap();
    assert_eq!(registry.set_drained(&id(2), true), None);
    assert_eq!(registry.set_drained(&id(1), true), Some(true));
    assert_eq!(registry.set_drained(&id(1), true), Some(false));
    let ports = Ports { allowed: Some(vec![80]), proxy_protocol: vec![80] };
    let wish = Claim { ports: ports.clone(), ..claim(1, 1, 1) };
    assert_eq!(registry.register(wish.clone(), 101).unwrap().1, Change::Ports);
    let (instance, change) = registry.register(wish, 102).unwrap();
    assert_eq!((instance.ports, change, instance.drained), (ports, Change::Same, true));
}

#[test]
fn online_is_a_young_handshake() {
    let mut registry = registry("10.0.0.0/24");
    registry.register(claim(1, 1, 1), 100).unwrap();
    assert!(!registry.get(&id(1)).unwrap().is_online(100));
    registry.observe(&key(1), Some(100));
    assert!(registry.get(&id(1)).unwrap().is_online(100 + ONLINE - 1));
    assert!(!registry.get(&id(1)).unwrap().is_online(100 + ONLINE));
    registry.register(claim(1, 1, 2), 101).unwrap();
    assert!(!registry.get(&id(1)).unwrap().is_online(101), "the new key has had none");
}
