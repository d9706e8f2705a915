// SPDX-License-Identifier: Apache-2.0
//! Who may have an app's keys.
#![allow(clippy::unwrap_used)]

use super::*;

const NOW: u64 = 1_800_000_000;

fn first() -> ComposeHash {
    ComposeHash::of(b"first")
}

fn second() -> ComposeHash {
    ComposeHash::of(b"second")
}

fn app() -> AppId {
    first().app_id()
}

fn statement(seq: u64, hash: ComposeHash, revoke_below: u64) -> Statement {
    Statement { app_id: app(), compose_hash: hash, seq, not_after: 0, revoke_below }
}

fn on_host(known: &Known, hash: ComposeHash) -> Result<Basis, Denial> {
    decide(&app(), &hash, known, Custody::Host, NOW)
}

#[test]
fn t01_an_app_id_belongs_to_its_first_compose_file() {
    assert_eq!(on_host(&Known::default(), first()), Ok(Basis::First));
    // Another compose file that claims the id gets nothing.
    let denial = on_host(&Known::default(), second()).unwrap_err();
    let (app, hash) = (app(), second());
    let expected = format!(
        "compose hash {hash} is not allowed for app {app}; allow it with: dstackctl kms allow-upgrade {app} {hash}"
    );
    assert_eq!(denial.to_string(), expected);
}

#[test]
fn the_operator_allows_by_either_name() {
    for name in [second().to_string(), second().app_id().to_string()] {
        let known = Known { allowed: [name.parse().unwrap()].into(), ..Known::default() };
        assert_eq!(on_host(&known, second()), Ok(Basis::Operator), "{name}");
        assert!(on_host(&known, ComposeHash::of(b"third")).is_err());
        let known = Known { revoked: [name.parse().unwrap()].into(), ..known };
        assert!(matches!(on_host(&known, second()), Err(Denial::Revoked(..))), "{name}");
    }
    assert!("33".parse::<HashName>().is_err());
}

#[test]
fn the_first_compose_can_be_revoked_too() {
    for name in HashName::of(&first()) {
        let known = Known { revoked: [name].into(), ..Known::default() };
        assert!(matches!(on_host(&known, first()), Err(Denial::Revoked(..))));
    }
}

#[test]
fn t08_where_the_owner_signs_the_operator_does_not_decide() {
    let owners = Owners::Keys(vec![SignerKey::from([1; 32])]);
    let mut known = Known { owners, allowed: HashName::of(&second()).into(), ..Known::default() };
    assert!(matches!(on_host(&known, second()), Err(Denial::NotSigned(..))));
    add(&mut known.statements, statement(1, second(), 0)).unwrap();
    assert_eq!(on_host(&known, second()), Ok(Basis::Owner(1)));
    // The operator owns availability, so it may still refuse.
    known.revoked = HashName::of(&second()).into();
    assert!(on_host(&known, second()).is_err());
}

#[test]
fn t08_the_highest_number_counts_and_old_statements_do_not_come_back() {
    let mut known = Known { owners: Owners::Keys(Vec::new()), ..Known::default() };
    add(&mut known.statements, statement(2, second(), 0)).unwrap();
    for seq in [1, 2] {
        assert!(add(&mut known.statements, statement(seq, second(), 0)).is_err(), "replayed");
    }
    let third = ComposeHash::of(b"third");
    add(&mut known.statements, statement(5, third, 3)).unwrap();
    assert!(on_host(&known, second()).is_err(), "below revoke_below");
    assert_eq!(on_host(&known, third), Ok(Basis::Owner(5)));
    assert!(matches!(on_host(&known, first()), Err(Denial::RevokedByOwner(..))), "the first counts as 0");
}

#[test]
fn t08_a_statement_ends() {
    let mut known = Known { owners: Owners::Keys(Vec::new()), ..Known::default() };
    add(&mut known.statements, Statement { not_after: NOW, ..statement(1, second(), 0) }).unwrap();
    assert!(on_host(&known, second()).is_ok());
    let late = decide(&app(), &second(), &known, Custody::Host, NOW + 1);
    assert!(matches!(late, Err(Denial::Ended(..))));
}

#[test]
fn t08_in_a_cvm_nobody_decides_for_unknown_owners() {
    let known = Known { allowed: HashName::of(&second()).into(), ..Known::default() };
    let decided = decide(&app(), &second(), &known, Custody::Cvm, NOW);
    assert!(matches!(decided, Err(Denial::OwnersUnknown(..))));
    assert_eq!(on_host(&known, second()), Ok(Basis::Operator));
    let known = Known { owners: Owners::Operator, ..known };
    assert_eq!(decide(&app(), &second(), &known, Custody::Cvm, NOW), Ok(Basis::Operator));
}

#[test]
fn p15_statements_are_bounded() {
    let mut known = Vec::new();
    for seq in 1..=u64::try_from(STATEMENTS_MAX).unwrap() {
        add(&mut known, statement(seq, ComposeHash::of(&seq.to_le_bytes()), 0)).unwrap();
    }
    assert!(add(&mut known, statement(10_000, second(), 0)).is_err());
    assert!(add(&mut known, statement(10_000, second(), 200)).is_ok());
    assert!(known.len() < 100);
}
