// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing;
use dstack_core::config_disk::File;
use dstack_core::ids::ComposeHash;
use dstack_keys::derive::x25519_public;
use dstack_keys::{Secret, ed25519};
use serde_json::{Value, json};
use zeroize::Zeroizing;

const PAIRS: [(&str, &str); 3] = [("TOKEN", "s3cret\\"), ("MODE", "a\nb"), ("OTHER", "x")];

fn key() -> Secret {
    Secret::from([0x33; 32])
}

fn owner() -> Secret {
    Secret::from([0x44; 32])
}

fn sealed(pairs: &[(&str, &str)], key: &Secret) -> Vec<u8> {
    let variables = pairs.iter().map(|(k, v)| ((*k).to_owned(), Zeroizing::new((*v).to_owned()))).collect();
    env::encrypt(&variables, &x25519_public(key).unwrap()).unwrap()
}

/// Inputs with an environment, signed by `signer` for `compose`.
fn inputs(extra: &Value, blob: &[u8], signature: &[u8]) -> Inputs {
    let mut files = testing::files(testing::compose(extra), &[]);
    files.insert(File::EncryptedEnv, blob.to_vec());
    files.insert(File::EncryptedEnvSig, signature.to_vec());
    testing::inputs(&files)
}

fn signed(extra: &Value) -> Value {
    let mut all = json!({"env_signer": ed25519::public_key(&owner()).unwrap()});
    all.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    all
}

fn signature(compose: &[u8], blob: &[u8], signer: &Secret) -> Vec<u8> {
    let hash = ComposeHash::of(compose);
    env::sign(signer, &Sent::new(&hash.app_id(), &hash, blob), 1).unwrap()
}

#[test]
fn p05_an_environment_arrives_whole_or_ends_the_boot() {
    let blob = sealed(&PAIRS, &key());
    let opened = open(&inputs(&json!({}), &blob, b""), Some(&key())).unwrap();
    let expected: Env = PAIRS.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    assert_eq!(opened.env, expected);
    assert_eq!((opened.authenticated, opened.skipped.len()), (Some(false), 0));
    let mut broken = blob.clone();
    *broken.last_mut().unwrap() ^= 1;
    for bad in [&broken, &blob[..60], b"secret"] {
        assert!(matches!(open(&inputs(&json!({}), bad, b""), Some(&key())), Err(EnvFailure::Sealed(_))));
    }
    assert!(matches!(open(&inputs(&json!({}), &blob, b""), None), Err(EnvFailure::NoKey)));
    assert_eq!(open(&inputs(&json!({}), b"", b""), None).unwrap(), Opened::default());
}

#[test]
fn p06_another_apps_environment_is_refused() {
    let other = sealed(&PAIRS, &Secret::from([0x34; 32]));
    assert!(matches!(open(&inputs(&json!({}), &other, b""), Some(&key())), Err(EnvFailure::Sealed(_))));
}

#[test]
fn t09_a_signer_makes_the_signature_required() {
    let (compose, blob) = (testing::compose(&signed(&json!({}))), sealed(&PAIRS, &key()));
    let open_with =
        |blob: &[u8], signature: &[u8]| open(&inputs(&signed(&json!({})), blob, signature), Some(&key()));
    let good = signature(&compose, &blob, &owner());
    assert_eq!(open_with(&blob, &good).unwrap().authenticated, Some(true));
    assert!(matches!(open_with(&blob, b""), Err(EnvFailure::Sender(SenderError::Missing))));
    // The host's own environment, well encrypted for the app, and what it can find to sign it with.
    let forged = sealed(&[("TOKEN", "host's")], &key());
    for bad in [&good, &signature(&compose, &forged, &Secret::from([9; 32]))] {
        assert!(matches!(open_with(&forged, bad), Err(EnvFailure::Sender(SenderError::Forged))));
    }
    let other = signature(&testing::compose(&json!({"name": "other"})), &blob, &owner());
    assert!(matches!(open_with(&blob, &other), Err(EnvFailure::Sender(SenderError::Forged))));
}

#[test]
fn t09_an_environment_that_the_host_withholds_is_missed() {
    let wants = signed(&json!({"allowed_envs": ["TOKEN"]}));
    assert!(matches!(open(&inputs(&wants, b"", b""), Some(&key())), Err(EnvFailure::Withheld)));
    assert!(open(&inputs(&signed(&json!({})), b"", b""), Some(&key())).is_ok());
}

#[test]
fn only_allowed_names_reach_the_app() {
    let blob = sealed(&PAIRS, &key());
    let opened = open(&inputs(&json!({"allowed_envs": ["TOKEN"]}), &blob, b""), Some(&key())).unwrap();
    assert_eq!(opened.env.keys().collect::<Vec<_>>(), ["TOKEN"]);
    assert_eq!(opened.skipped, ["MODE", "OTHER"]);
    let none = open(&inputs(&json!({"allowed_envs": []}), &blob, b""), Some(&key())).unwrap();
    assert!(none.env.is_empty());
}
