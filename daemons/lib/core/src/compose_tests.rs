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
        (
            serde_json::json!({"kms_enabled": true, "tproxy_enabled": true, "key_provider_id": "30"}),
            true,
            true,
        ),
        (serde_json::json!({"features": ["kms", "tproxy-net"], "key_provider_id": "30"}), true, true),
        (serde_json::json!({"gateway_enabled": true}), false, true),
        (serde_json::json!({"kms_enabled": true, "key_provider": "none"}), false, false),
    ] {
        let app = compose(extra.clone()).unwrap();
        assert_eq!((app.key_provider() == KeyProvider::Kms, app.wants_tproxy()), (kms, tproxy), "{extra}");
    }
}

#[test]
fn a_port_policy_restricts_only_when_it_says_so() {
    let policy = |policy: serde_json::Value| {
        let policy = compose(serde_json::json!({"port_policy": policy})).unwrap().port_policy.unwrap();
        (policy.allowed(), policy.proxy_protocol())
    };
    assert_eq!(compose(serde_json::json!({"port_policy": null})).unwrap().port_policy, None);
    assert_eq!(policy(serde_json::json!({})), (None, vec![]));
    let ports = serde_json::json!([{"port": 443, "pp": true}, {"port": 80}, {"port": 65535, "pp": false}]);
    assert_eq!(policy(serde_json::json!({"ports": ports})), (None, vec![443]));
    assert_eq!(
        policy(serde_json::json!({"ports": ports, "restrict_mode": true})),
        (Some(vec![443, 80, 65535]), vec![443])
    );
}

#[test]
fn wrong_port_policies_are_named() {
    let port = |number: u32| serde_json::json!({"port": number});
    let many: Vec<_> = (1..=65).map(port).collect();
    for (policy, part) in [
        (serde_json::json!([80]), "invalid type"),
        (serde_json::json!({"ports": [80]}), "invalid type"),
        (serde_json::json!({"ports": [{"pp": true}]}), "missing field `port`"),
        (serde_json::json!({"ports": [port(0)]}), "from 1 to 65535, each once"),
        (serde_json::json!({"ports": [port(65536)]}), "65536"),
        (serde_json::json!({"ports": [port(80), port(80)]}), "from 1 to 65535, each once"),
        (serde_json::json!({"ports": many}), "more than 64 ports"),
        (serde_json::json!({"restrict_mode": true}), "would let nobody in"),
    ] {
        let error = compose(serde_json::json!({"port_policy": policy})).unwrap_err().to_string();
        assert!(error.contains(part), "{policy}: {error}");
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
        (serde_json::json!({"key_provider": "ksm"}), "unknown variant `ksm`"),
        (serde_json::json!({"key_provider_id": "xyz"}), "key_provider_id"),
        (serde_json::json!({"key_provider_id": "00".repeat(601)}), "key_provider_id"),
        (serde_json::json!({"env_signer": "00"}), "Ed25519 public key \"00\" is not allowed: use 64"),
        (serde_json::json!({"upgrade_keys": ["00"]}), "Ed25519 public key"),
        (serde_json::json!({"upgrade_keys": vec!["00".repeat(32); 17]}), "upgrade_keys"),
        (serde_json::json!({"allowed_envs": vec!["A"; 1025]}), "allowed_envs"),
        (serde_json::json!({"rollback": "maybe"}), "unknown variant `maybe`, expected `refuse` or `warn`"),
        (serde_json::json!({"rollback": "warn"}), "needs key_provider kms"),
        (serde_json::json!({"rollback": "refuse", "key_provider": "local"}), "needs key_provider kms"),
        (
            serde_json::json!({
                "rollback": "refuse", "no_instance_id": true, "key_provider": "kms", "key_provider_id": "3059",
            }),
            "needs instance ids",
        ),
        (serde_json::json!({"secure_time": "yes"}), "expected a boolean"),
    ] {
        let error = compose(extra.clone()).unwrap_err().to_string();
        assert!(error.contains(part), "{extra}: {error}");
    }
    assert!(AppCompose::parse(b"").is_err());
    let array = serde_json::json!([2, "hello", "docker-compose", FILE]).to_string();
    assert!(matches!(AppCompose::parse(array.as_bytes()), Err(ComposeError::Field(_))));
    assert!(matches!(AppCompose::parse(&vec![b' '; APP_COMPOSE_MAX + 1]), Err(ComposeError::TooLarge(_))));
}

#[test]
fn t03_an_app_with_a_kms_names_its_kms() {
    for kms in [
        serde_json::json!({"key_provider": "kms"}),
        serde_json::json!({"kms_enabled": true}),
        serde_json::json!({"features": ["kms"]}),
    ] {
        let error = compose(kms.clone()).unwrap_err().to_string();
        assert!(
            error.contains("key_provider_id") && error.contains("dstackctl kms status"),
            "{kms}: {error}"
        );
    }
    let named = compose(serde_json::json!({"key_provider": "kms", "key_provider_id": "3059"})).unwrap();
    assert_eq!(named.key_provider_spki(), [0x30, 0x59]);
    assert!(compose(serde_json::json!({})).unwrap().key_provider_spki().is_empty());
}

#[test]
fn keys_of_the_owner_are_read() {
    let (a, b) = ("aa".repeat(32), "bb".repeat(32));
    let app = compose(serde_json::json!({
        "env_signer": a, "upgrade_keys": [a, b], "rollback": "warn", "secure_time": true, "allowed_envs": ["A"],
        "key_provider": "kms", "key_provider_id": "3059",
    }))
    .unwrap();
    assert_eq!(app.env_signer.map(|k| k.to_string()), Some(a.clone()));
    assert_eq!(app.upgrade_keys.iter().map(ToString::to_string).collect::<Vec<_>>(), [a, b]);
    assert_eq!((app.rollback, app.secure_time), (Some(Rollback::Warn), true));
    assert_eq!(app.allowed_envs.as_deref(), Some(&["A".to_owned()][..]));
    let plain = compose(serde_json::json!({})).unwrap();
    assert_eq!((plain.env_signer, plain.rollback, plain.secure_time), (None, None, false));
}
