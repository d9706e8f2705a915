// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use super::*;
use serde_json::json;

const SEED: Seed = [0x5e; 20];

fn compose(extra: serde_json::Value) -> Vec<u8> {
    let mut object = json!({
        "manifest_version": 2, "name": "hello", "runner": "docker-compose",
        "docker_compose_file": "services:\n  web:\n    image: web\n",
    });
    object.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    object.to_string().into_bytes()
}

fn boot(files: Files) -> Result<Inputs, InputError> {
    parse(&config_disk::write(&files).unwrap(), SEED).map(|(inputs, _)| inputs)
}

fn failure(files: Files) -> Failure {
    boot(files).unwrap_err().failure()
}

#[test]
fn the_least_disk_is_enough() {
    let bytes = compose(json!({}));
    let inputs = boot([(File::AppCompose, bytes.clone())].into()).unwrap();
    assert_eq!(inputs.compose_bytes, bytes);
    assert_eq!(inputs.app_id, ComposeHash::of(&bytes).app_id());
    assert_eq!(inputs.instance_id, Some(instance_id(&SEED, &inputs.app_id)));
    assert!(inputs.env.is_empty() && inputs.user_config.is_empty());
}

#[test]
fn t06_a_damaged_disk_is_refused_whole() {
    let good = config_disk::write(&[(File::AppCompose, compose(json!({})))].into()).unwrap();
    for end in [0, 1, 511, 512, 1000, good.len() - 512] {
        assert_eq!(parse(&good[..end], SEED).unwrap_err().failure(), Failure::ConfigInvalid, "{end}");
    }
    assert_eq!(failure(Files::new()), Failure::ConfigInvalid);
    for (file, bytes) in [
        (File::InstanceInfo, &b"[]"[..]),
        (File::InstanceInfo, b"{\"app_id\":\"../../etc\"}"),
        (File::InstanceInfo, b"{\"instance_id_seed\":\"00\"}"),
        (File::SysConfig, b"{"),
    ] {
        let files = [(File::AppCompose, compose(json!({}))), (file, bytes.to_vec())].into();
        assert_eq!(failure(files), Failure::ConfigInvalid, "{}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn wrong_compose_files_are_told_apart() {
    assert_eq!(failure([(File::AppCompose, b"{}".to_vec())].into()), Failure::ComposeInvalid);
    for extra in [json!({"kms_enabled": true, "key_provider_id": "30"}), json!({"key_provider": "local"})] {
        assert_eq!(failure([(File::AppCompose, compose(extra))].into()), Failure::KeysUnsupported);
    }
}

#[test]
fn t01_without_a_kms_no_app_id_but_its_own() {
    let bytes = compose(json!({}));
    let own = ComposeHash::of(&bytes).app_id().to_string();
    let with = |id: &str| -> Files {
        let info = json!({"app_id": id, "bootstrapped": null}).to_string().into_bytes();
        [(File::AppCompose, bytes.clone()), (File::InstanceInfo, info)].into()
    };
    for good in ["", &own, &format!("0x{own}"), &own.to_uppercase()] {
        assert_eq!(boot(with(good)).unwrap().app_id.to_string(), own, "{good}");
    }
    assert_eq!(failure(with("3327603e03f5bd1f830812ca4a789277fc31f577")), Failure::AppIdMismatch);
}

#[test]
fn p05_an_environment_without_keys_ends_the_boot() {
    let with = |blob: &[u8]| [(File::AppCompose, compose(json!({}))), (File::EncryptedEnv, blob.to_vec())];
    assert!(boot(with(b"").into()).is_ok());
    assert_eq!(failure(with(b"secret").into()), Failure::EnvInvalid);
}

#[test]
fn instance_ids_follow_the_seed() {
    // sha256(00 01 .. 13 ‖ app id), computed apart.
    let app: AppId = "3327603e03f5bd1f830812ca4a789277fc31f577".parse().unwrap();
    let mut seed = Seed::default();
    seed.iter_mut().zip(0..).for_each(|(to, n)| *to = n);
    assert_eq!(instance_id(&seed, &app).to_string(), "8a815c211dc64266d5379ebb2af38059d2ac6ba0");
    let info = json!({"instance_id_seed": hex::encode(seed)}).to_string().into_bytes();
    let files = [(File::AppCompose, compose(json!({}))), (File::InstanceInfo, info)];
    let inputs = boot(files.into()).unwrap();
    assert_eq!(inputs.instance_id, Some(instance_id(&seed, &inputs.app_id)));
    let none = boot([(File::AppCompose, compose(json!({"no_instance_id": true})))].into()).unwrap();
    assert_eq!(none.instance_id, None);
}
