// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use super::*;
use crate::testing;
use dstack_core::config_disk::File as ConfigFile;
use serde_json::Value;

fn sample(extra: &Value) -> Inputs {
    let mut files = testing::files(testing::compose(extra), &[]);
    let hints =
        json!({"docker_registry": "http://evil.example", "registry_mirrors": ["http://evil.example"]});
    files.insert(ConfigFile::SysConfig, hints.to_string().into_bytes());
    files.insert(ConfigFile::UserConfig, b"hi".to_vec());
    testing::inputs(&files)
}

fn rendered(layout: &Layout, inputs: &Inputs, env: &Opened) -> Vec<Output> {
    let keys = BootKeys::ephemeral(inputs, 1_800_000_000).unwrap();
    let facts = Facts { platform: "simulated", realm: "test:00", keys: &keys, env, rollback: "off" };
    render(layout, inputs, &facts).unwrap()
}

/// The bytes of one file.
fn find<'a>(outputs: &'a [Output], name: &str) -> &'a [u8] {
    &outputs.iter().find(|o| o.path.ends_with(name)).unwrap().bytes
}

#[test]
fn t05_registries_come_from_the_measured_compose_alone() {
    let inputs = sample(&json!({"insecure_registries": ["registry.test:5000"]}));
    let outputs = rendered(&Layout::default(), &inputs, &Opened::default());
    assert!(outputs.iter().all(|o| !String::from_utf8_lossy(&o.bytes).contains("evil")));
    let daemon: Value = serde_json::from_slice(&docker_daemon(&inputs.compose)).unwrap();
    assert_eq!(daemon["insecure-registries"], json!(["registry.test:5000"]));
    assert_eq!(daemon["registry-mirrors"], json!([]));
    assert_eq!((&daemon["log-driver"], &daemon["data-root"]), (&json!("journald"), &json!("/data/docker")));
}

#[test]
fn p03_secrets_are_for_their_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::at(&dir.path().join("run"), dir.path());
    let env = Opened { env: [("TOKEN".into(), "s3cret".into())].into(), ..Opened::default() };
    let outputs = rendered(&layout, &sample(&json!({})), &env);
    for _ in 0..2 {
        write_all(&layout, &outputs).unwrap();
    }
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&layout.private()), 0o700);
    let keys = String::from_utf8(find(&outputs, "app-keys.json").to_vec()).unwrap();
    let scalar = serde_json::from_str::<Value>(&keys).unwrap()["k256_key"].as_str().unwrap().to_owned();
    for output in &outputs {
        let text = String::from_utf8_lossy(&output.bytes);
        let secret = text.contains("s3cret") || text.contains(&scalar);
        assert_eq!(mode(&output.path), if secret { 0o600 } else { output.mode }, "{output:?}");
        assert_eq!(fs::read(&output.path).unwrap(), *output.bytes);
        assert!(!format!("{output:?}").contains("s3cret"));
    }
    assert_eq!(mode(&layout.app_keys()), 0o600);
    let names = fs::read_dir(layout.run()).unwrap().count() + fs::read_dir(layout.private()).unwrap().count();
    assert_eq!(names, outputs.len() + 1, "no temporary file stays");
}

#[test]
fn the_exact_compose_bytes_are_kept() {
    let inputs = sample(&json!({"zzz": 1.0}));
    let outputs = rendered(&Layout::default(), &inputs, &Opened::default());
    assert_eq!(find(&outputs, "app-compose.json"), inputs.compose_bytes);
}

#[test]
fn an_instance_says_what_may_be_believed_about_it() {
    let facts = |extra: &Value, authenticated| {
        let env = Opened { authenticated, skipped: vec!["X".into()], ..Opened::default() };
        let outputs = rendered(&Layout::default(), &sample(extra), &env);
        serde_json::from_slice::<Value>(find(&outputs, "instance.json")).unwrap()
    };
    let plain = facts(&json!({}), None);
    for (key, value) in [
        ("platform", "simulated"),
        ("realm", "test:00"),
        ("key_provider", "none"),
        ("key_provider_id", ""),
        ("images", "unpinned"),
        ("env", "none"),
        ("time", "floor"),
        ("rollback", "off"),
    ] {
        assert_eq!(plain[key], value, "{key}");
    }
    assert_eq!(plain["env_skipped"], json!(["X"]));
    assert_eq!(facts(&json!({}), Some(true))["env"], "authenticated");
    let digest = format!("services: {{a: {{image: 'b@sha256:{}'}}}}", "0".repeat(64));
    let pinned = facts(&json!({"docker_compose_file": digest}), Some(false));
    assert_eq!((&pinned["images"], &pinned["env"]), (&json!("pinned"), &json!("unauthenticated")));
}
