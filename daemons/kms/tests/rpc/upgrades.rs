// SPDX-License-Identifier: Apache-2.0
//! Upgrades: the operator's registry and the owner's statements.

use crate::keys::{COMPOSE, other_compose};
use crate::world::{Boot, WANTS, World, reason};
use dstack_core::upgrade::{Signature, Signed, Statement};
use dstack_keys::{Secret, ed25519};
use dstack_rpc::kms::SubmitUpgradeRequest;
use dstack_service::api::kms1::Error;

fn owner() -> Secret {
    Secret::from([7; 32])
}

/// A first compose file whose owner signs upgrades.
fn owned() -> Vec<u8> {
    let key = ed25519::public_key(&owner()).unwrap();
    format!(
        r#"{{"manifest_version":2,"name":"a","runner":"docker-compose","docker_compose_file":"services: {{}}","upgrade_keys":["{key}"]}}"#
    )
    .into_bytes()
}

fn statement(first: &Boot, to: &Boot, seq: u64) -> Statement {
    Statement { app_id: first.app, compose_hash: to.hash(), seq, not_after: 0, revoke_below: 0 }
}

fn signed(statement: &Statement, by: &Secret) -> SubmitUpgradeRequest {
    let message = statement.to_bytes();
    let signature = ed25519::sign(by, &message).unwrap().to_vec();
    SubmitUpgradeRequest { statement: message, signature, first_compose: Vec::new() }
}

#[tokio::test]
async fn the_operator_allows_an_upgrade_and_keys_stay_the_same() {
    let world = World::new().await;
    let first = Boot::of(COMPOSE, WANTS);
    let second = Boot::of(&other_compose(1), WANTS).claiming(first.app);
    let before = world.app_key(&first).await.unwrap();
    assert!(reason(world.app_key(&second).await).contains("not allowed"));
    // The tutorial's form: the first 40 digits.
    world.engine.allow_upgrade(&first.app.to_string(), &second.hash().app_id().to_string()).unwrap();
    assert_eq!(world.app_key(&second).await.unwrap(), before);
    let rows = world.engine.list_upgrades(&first.app.to_string()).unwrap();
    assert_eq!(rows.iter().map(|r| r.1.as_str()).collect::<Vec<_>>(), ["first", "operator"]);
    world.engine.revoke_upgrade(&first.app.to_string(), &second.hash().to_string()).unwrap();
    assert!(reason(world.app_key(&second).await).contains("is revoked"));
    assert!(world.engine.allow_upgrade("x", "y").is_err());
}

#[tokio::test]
async fn t08_only_the_owner_upgrades_an_owned_app() {
    let world = World::new().await;
    let first = Boot::of(&owned(), WANTS);
    let second = Boot::of(COMPOSE, WANTS).claiming(first.app);
    world.app_key(&first).await.unwrap();
    let allowed = world.engine.allow_upgrade(&first.app.to_string(), &second.hash().to_string());
    assert!(matches!(allowed, Err(Error::OwnerDecides(_))), "{allowed:?}");
    assert!(reason(world.app_key(&second).await).contains("its owner signs upgrades"));
    let statement = statement(&first, &second, 1);
    let stranger = signed(&statement, &Secret::from([8; 32]));
    assert!(reason(world.call::<_, ()>(None, "SubmitUpgrade", &stranger).await).contains("not signed by"));
    let good = signed(&statement, &owner());
    world.call::<_, ()>(None, "SubmitUpgrade", &good).await.unwrap();
    assert!(world.app_key(&second).await.is_ok());
    let replayed = reason(world.call::<_, ()>(None, "SubmitUpgrade", &good).await);
    assert!(replayed.contains("higher"), "{replayed}");
}

#[tokio::test]
async fn t08_a_statement_brings_the_first_compose_file() {
    let world = World::new().await;
    let first = Boot::of(&owned(), WANTS);
    let second = Boot::of(COMPOSE, WANTS).claiming(first.app);
    let statement = statement(&first, &second, 3);
    let key = ed25519::public_key(&owner()).unwrap();
    let signature = ed25519::sign(&owner(), &statement.to_bytes()).unwrap();
    let mut json = Signed { statement, signatures: vec![Signature { key, signature }], first_compose: None };
    let submit = |signed: &Signed| world.engine.submit_json(&serde_json::to_string(signed).unwrap());
    assert!(matches!(submit(&json), Err(Error::StatementRefused(m)) if m.contains("first_compose")));
    json.first_compose = Some("{}".into());
    assert!(matches!(submit(&json), Err(Error::InvalidArgument(_))));
    json.first_compose = Some(String::from_utf8(owned()).unwrap());
    submit(&json).unwrap();
    assert!(world.app_key(&second).await.is_ok());
}

#[tokio::test]
async fn t08_the_first_compose_can_be_revoked_by_the_owner() {
    let world = World::new().await;
    let first = Boot::of(&owned(), WANTS);
    let second = Boot::of(COMPOSE, WANTS).claiming(first.app);
    world.app_key(&first).await.unwrap();
    let revoking = Statement { revoke_below: 1, ..statement(&first, &second, 1) };
    world.call::<_, ()>(None, "SubmitUpgrade", &signed(&revoking, &owner())).await.unwrap();
    assert!(reason(world.app_key(&first).await).contains("revoked by the app's owner"));
    assert!(world.app_key(&second).await.is_ok());
    let ended = Statement { not_after: 1, ..statement(&first, &second, 2) };
    world.call::<_, ()>(None, "SubmitUpgrade", &signed(&ended, &owner())).await.unwrap();
    assert!(reason(world.app_key(&second).await).contains("ended"));
}

#[tokio::test]
async fn p15_strangers_do_not_fill_the_disk_with_apps_of_their_own() {
    let world = World::new().await;
    let first = Boot::of(&owned(), WANTS);
    let second = Boot::of(COMPOSE, WANTS).claiming(first.app);
    let mut request = signed(&statement(&first, &second, 1), &owner());
    request.first_compose = owned();
    let refused = reason(world.call::<_, ()>(None, "SubmitUpgrade", &request).await);
    assert!(refused.contains("never asked"), "{refused}");
    assert!(!world.engine.knows_app_of(&json(&first, &second)).unwrap(), "nothing is kept");
    // Nor does a statement of a stranger teach who the owner is.
    let mut forged: Signed = serde_json::from_str(&json(&first, &second)).unwrap();
    forged.signatures[0].signature = [0; 64];
    assert!(world.engine.submit_json(&serde_json::to_string(&forged).unwrap()).is_err());
    assert!(!world.engine.knows_app_of(&json(&first, &second)).unwrap(), "nothing is kept");
    world.app_key(&first).await.unwrap();
    world.call::<_, ()>(None, "SubmitUpgrade", &request).await.unwrap();
}

fn json(first: &Boot, second: &Boot) -> String {
    let statement = statement(first, second, 1);
    let signature = ed25519::sign(&owner(), &statement.to_bytes()).unwrap();
    let signatures = vec![Signature { key: ed25519::public_key(&owner()).unwrap(), signature }];
    let first_compose = Some(String::from_utf8(owned()).unwrap());
    serde_json::to_string(&Signed { statement, signatures, first_compose }).unwrap()
}
