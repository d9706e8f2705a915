// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;

const FILE: &str = "services:\n  web:\n    image: nginx\n";

fn compose(extra: serde_json::Value) -> Result<AppCompose, ComposeError> {
    let mut object = serde_json::json!({
        "manifest_version": 2, "name": "hello", "runner": "docker-compose", "docker_compose_file": FILE,
    });
    for (key, value) in extra.as_object().unwrap() {
        object.as_object_mut().unwrap().insert(key.clone(), value.clone());
    }
    AppCompose::parse(object.to_string().as_bytes())
}

#[test]
fn defaults_are_closed() {
    let app = compose(serde_json::json!({})).unwrap();
    assert!(!app.public_logs && !app.public_sysinfo && app.public_tcbinfo);
    assert_eq!(app.key_provider(), KeyProvider::None);
    assert!(app.insecure_registries.is_empty());
}

#[test]
fn switches_of_all_versions_mean_the_same() {
    for (extra, kms, tproxy) in [
        (serde_json::json!({"kms_enabled": true, "tproxy_enabled": true}), true, true),
        (serde_json::json!({"features": ["kms", "tproxy-net"]}), true, true),
        (serde_json::json!({"gateway_enabled": true}), false, true),
        (serde_json::json!({"kms_enabled": true, "key_provider": "none"}), false, false),
    ] {
        let app = compose(extra.clone()).unwrap();
        assert_eq!((app.key_provider() == KeyProvider::Kms, app.wants_tproxy()), (kms, tproxy), "{extra}");
    }
}

#[test]
fn wrong_input_is_named() {
    for (extra, part) in [
        (serde_json::json!({"manifest_version": 9}), "manifest_version"),
        (serde_json::json!({"name": ""}), "name"),
        (serde_json::json!({"runner": "podman"}), "docker-compose"),
        (serde_json::json!({"runner": "bash"}), "bash_script"),
        (serde_json::json!({"docker_compose_file": null}), "docker_compose_file"),
        (serde_json::json!({"docker_compose_file": "services: [}"}), "YAML"),
        (serde_json::json!({"docker_compose_file": "web: {}"}), "services"),
        (serde_json::json!({"docker_compose_file": "services: {}"}), "services"),
        (serde_json::json!({"storage_fs": "zfs"}), "storage_fs"),
    ] {
        let error = compose(extra.clone()).unwrap_err().to_string();
        assert!(error.contains(part), "{extra}: {error}");
    }
    assert!(AppCompose::parse(b"").is_err());
    let array = serde_json::json!([2, "hello", "docker-compose", FILE]).to_string();
    assert!(matches!(AppCompose::parse(array.as_bytes()), Err(ComposeError::Field(_))));
    assert!(matches!(AppCompose::parse(&vec![b' '; APP_COMPOSE_MAX + 1]), Err(ComposeError::TooLarge(_))));
}
