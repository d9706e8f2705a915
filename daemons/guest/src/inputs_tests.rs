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
    parse(&config_disk::write(&files).unwrap(), SEED)
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
    assert!(inputs.sealed_env.is_empty() && inputs.user_config.is_empty());
    assert_eq!((inputs.provider, inputs.hints), (Provider::None, Hints::default()));
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
        (File::SysConfig, b"{\"os_image_hash\":\"00\"}"),
        (File::SysConfig, b"{\"kms_urls\":\"https://a\"}"),
    ] {
        let files = [(File::AppCompose, compose(json!({}))), (file, bytes.to_vec())].into();
        assert_eq!(failure(files), Failure::ConfigInvalid, "{}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn wrong_compose_files_are_told_apart() {
    assert_eq!(failure([(File::AppCompose, b"{}".to_vec())].into()), Failure::ComposeInvalid);
    let local = compose(json!({"key_provider": "local"}));
    assert_eq!(failure([(File::AppCompose, local)].into()), Failure::KeysUnsupported);
}

/// A config disk for an app that pins a key service.
fn kms(extra: serde_json::Value, info: serde_json::Value) -> Files {
    let mut all = json!({"key_provider": "kms", "key_provider_id": "3059"});
    all.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    [(File::AppCompose, compose(all)), (File::InstanceInfo, info.to_string().into_bytes())].into()
}

#[test]
fn t03_the_key_service_is_in_the_measured_compose_file() {
    let seed = json!({"instance_id_seed": "5e".repeat(20)});
    let inputs = boot(kms(json!({}), seed.clone())).unwrap();
    assert_eq!(inputs.provider, Provider::Kms(vec![0x30, 0x59]));
    // Without it the host could choose.
    assert_eq!(failure(kms(json!({"key_provider_id": ""}), seed.clone())), Failure::ComposeInvalid);
    let mut hinted = kms(json!({"key_provider_id": ""}), seed.clone());
    hinted.insert(File::SysConfig, br#"{"key_provider_id": "3059"}"#.to_vec());
    assert_eq!(failure(hinted), Failure::ComposeInvalid);
    let mut urls = kms(json!({}), seed);
    let sys = json!({"kms_urls": ["https://a", "http://b", "https://c:1/prpc"], "vm_config": "{}"});
    urls.insert(File::SysConfig, sys.to_string().into_bytes());
    let hints = boot(urls).unwrap().hints;
    assert_eq!(hints.kms.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a:9043", "c:1"]);
    assert_eq!((hints.kms_urls.len(), hints.vm_config.as_str()), (3, "{}"));
}

#[test]
fn t01_a_kms_decides_about_an_app_id_and_ids_are_20_bytes() {
    let other = "3327603e03f5bd1f830812ca4a789277fc31f577";
    let info = |id: &str| json!({"instance_id_seed": "5e".repeat(20), "app_id": id});
    assert_eq!(boot(kms(json!({}), info(other))).unwrap().app_id.to_string(), other);
    assert_eq!(failure(kms(json!({}), info(&other[2..]))), Failure::ConfigInvalid);
}

#[test]
fn an_instance_that_outlives_its_boot_needs_the_hosts_seed() {
    assert_eq!(failure(kms(json!({}), json!({}))), Failure::ConfigInvalid);
    assert!(boot(kms(json!({"no_instance_id": true}), json!({}))).is_ok());
    // Another seed is another instance, and nothing else.
    let with = |seed: &str| boot(kms(json!({}), json!({"instance_id_seed": seed.repeat(20)}))).unwrap();
    let (one, two) = (with("5e"), with("5f"));
    assert_eq!(one.app_id, two.app_id);
    assert_ne!(one.instance_id, two.instance_id);
}

#[test]
fn p07_t13_t12_what_cannot_be_kept_is_refused_and_never_passed_over() {
    for (extra, words) in [
        (json!({"secure_time": true}), "does not support yet"),
        (json!({"rollback": "refuse"}), "needs key_provider kms"),
        (json!({"rollback": "warn"}), "needs key_provider kms"),
    ] {
        let error = boot([(File::AppCompose, compose(extra))].into()).unwrap_err();
        assert_eq!(error.failure(), Failure::ComposeInvalid);
        assert!(error.to_string().contains(words), "{error}");
    }
    let alike = boot(kms(json!({"rollback": "refuse", "no_instance_id": true}), json!({}))).unwrap_err();
    assert!(alike.to_string().contains("needs instance ids"), "{alike}");
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
