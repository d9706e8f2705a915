// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

const ACCOUNT: &str = "https://ca.example/acct/1";

fn ours() -> [Caa; 2] {
    wanted("ca.example", ACCOUNT).unwrap()
}

fn apply(set: &mut Vec<Caa>, step: &Step) {
    match step {
        Step::Add(record) if !set.contains(record) => set.push(record.clone()),
        Step::Add(_) => {}
        Step::Remove(record) => set.retain(|r| r != record),
    }
}

/// Who may issue for a plain name or a wildcard; `None`: everybody.
fn allowed(set: &[Caa], wildcard: bool) -> Option<Vec<String>> {
    let of = |tag: &str| set.iter().filter(|r| r.tag == tag).map(|r| r.value.clone()).collect::<Vec<_>>();
    let (plain, wild) = (of("issue"), of("issuewild"));
    let found = if wildcard && !wild.is_empty() { wild } else { plain };
    (!found.is_empty()).then(|| found.into_iter().filter(|v| v != ";").collect())
}

#[test]
fn values_are_those_of_the_tutorial() {
    let [issue, wild] = ours();
    assert_eq!(
        issue.to_string(),
        "0 issue \"ca.example;validationmethods=dns-01;accounturi=https://ca.example/acct/1\""
    );
    assert_eq!((wild.tag.as_str(), &wild.value), ("issuewild", &issue.value));
    for (issuer, account) in [
        ("", ACCOUNT),
        ("a b", ACCOUNT),
        ("a;b", ACCOUNT),
        ("a", ""),
        ("a", "u;issue"),
        ("a", "x\"y"),
        ("a", "x\ny"),
    ] {
        assert!(wanted(issuer, account).is_err(), "{issuer:?} {account:?}");
    }
}

#[test]
fn steps_are_guards_records_removal_and_guards() {
    let old = Caa::new("issue", "ca.example;accounturi=https://ca.example/acct/0");
    let iodef = Caa::new("iodef", "mailto:a@b.c");
    let plan = plan(&[old.clone(), iodef], &ours(), std::slice::from_ref(&old), Foreign::Report);
    let [issue, wild] = ours();
    let guards = ["issue", "issuewild"].map(|t| Caa::new(t, ";"));
    let [g, h] = guards;
    let expected = [
        Step::Add(g.clone()),
        Step::Add(h.clone()),
        Step::Add(issue),
        Step::Add(wild),
        Step::Remove(old),
        Step::Remove(g),
        Step::Remove(h),
    ];
    assert_eq!((plan.steps.as_slice(), plan.foreign.as_slice()), (expected.as_slice(), [].as_slice()));
    assert_eq!(super::plan(&ours(), &ours(), &[], Foreign::Remove), Plan::default());
}

#[test]
fn records_of_others_are_left_and_told_of_by_policy() {
    let other = Caa::new("issue", "other.example");
    let mut set = vec![other.clone()];
    set.extend(ours());
    assert_eq!(
        plan(&set, &ours(), &[], Foreign::Report),
        Plan { steps: vec![], foreign: vec![other.clone()] }
    );
    assert_eq!(plan(&set, &ours(), &[], Foreign::Keep), Plan::default());
    let removed = plan(&set, &ours(), &[], Foreign::Remove);
    assert!(removed.steps.contains(&Step::Remove(other)) && removed.foreign.is_empty());
}

fn record() -> impl Strategy<Value = Caa> {
    let values = prop_oneof![
        Just(ours()[0].value.clone()),
        Just(";".to_owned()),
        Just("other.example".to_owned()),
        Just("ca.example;accounturi=https://ca.example/acct/0".to_owned()),
    ];
    (prop_oneof![Just("issue"), Just("issuewild"), Just("iodef")], values).prop_map(|(t, v)| Caa::new(t, &v))
}

proptest! {
    /// Cut off after any step, the next plan ends well; and meanwhile nobody may issue who might not before or after.
    #[test]
    fn every_cut_is_mended_and_never_opens_the_name(
        existing in prop::collection::btree_set(record(), 0..6),
        owned in prop::collection::btree_set(record(), 0..4),
        policy in prop_oneof![Just(Foreign::Report), Just(Foreign::Keep), Just(Foreign::Remove)],
    ) {
        let existing: Vec<Caa> = existing.into_iter().collect();
        let owned: Vec<Caa> = owned.into_iter().filter(Caa::decides).collect();
        let (wanted, before) = (ours(), existing.clone());
        let first = plan(&existing, &wanted, &owned, policy);
        let mut set = existing;
        for cut in 0..=first.steps.len() {
            if let Some(step) = cut.checked_sub(1).and_then(|i| first.steps.get(i)) {
                apply(&mut set, step);
            }
            for wildcard in [false, true] {
                let (old, now) = (allowed(&before, wildcard), allowed(&set, wildcard));
                if let Some(old) = old {
                    let now = now.expect("the name was closed and is open to everybody");
                    prop_assert!(now.iter().all(|v| old.contains(v) || v == &wanted[0].value));
                }
            }
            let mut mended = set.clone();
            let known: Vec<Caa> = owned.iter().cloned().chain(first.raised()).collect();
            for step in &plan(&set, &wanted, &known, policy).steps {
                apply(&mut mended, step);
            }
            prop_assert!(wanted.iter().all(|w| mended.contains(w)));
            let guards: Vec<Caa> = mended.iter().filter(|r| r.is_guard()).cloned().collect();
            let others = |r: &&Caa| r.is_guard() && !owned.contains(r);
            prop_assert_eq!(guards, before.iter().filter(others).cloned().collect::<Vec<_>>());
            prop_assert_eq!(plan(&mended, &wanted, &owned, policy).steps, vec![]);
            // A provider that fails here costs nobody a record, once the guards are taken back.
            if !set.iter().any(|r| wanted.contains(r)) || !wanted.iter().all(|w| set.contains(w)) {
                prop_assert!(before.iter().all(|r| set.contains(r)));
            }
            prop_assert_eq!(mended.iter().filter(|r| r.tag == "iodef").count(), before.iter().filter(|r| r.tag == "iodef").count());
        }
    }
}
