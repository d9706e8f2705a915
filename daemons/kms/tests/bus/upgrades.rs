// SPDX-License-Identifier: Apache-2.0
//! The registry over the bus, and policy that is read again.

use crate::world::World;
use dstack_core::ids::ComposeHash;
use dstack_service::api::kms1::{Error, Options};

#[tokio::test]
async fn upgrades_are_files_that_survive() {
    let mut world = World::new().await;
    let (app, hash) = (ComposeHash::of(b"1").app_id().to_string(), ComposeHash::of(b"2"));
    let short = hash.app_id().to_string();
    world.manager.allow_upgrade(&app, &short).await.unwrap();
    assert!(world.path("state/upgrade_registry").join(&app).join(&short).exists());
    world.kill().await;
    world.start().await;
    let rows = world.manager.list_upgrades(&app).await.unwrap();
    assert_eq!(rows, [(app.clone(), "first".into(), 0), (short, "operator".into(), 0)]);
    world.manager.revoke_upgrade(&app, &hash.to_string()).await.unwrap();
    let rows = world.manager.list_upgrades(&app).await.unwrap();
    assert_eq!(rows[1], (hash.to_string(), "revoked".into(), 0));
    let unknown = world.manager.revoke_upgrade(&app, &"0".repeat(64)).await;
    assert!(matches!(unknown, Err(Error::NoSuchUpgrade(_))));
    assert!(matches!(world.manager.allow_upgrade("../x", "y").await, Err(Error::InvalidArgument(_))));
    assert!(matches!(world.manager.submit_upgrade("{}").await, Err(Error::InvalidArgument(_))));
}

#[tokio::test]
async fn the_log_is_empty_at_first() {
    let world = World::new().await;
    world.manager.bootstrap("kms.example.org", Options::new()).await.unwrap();
    assert!(world.manager.get_release_log(&"0".repeat(40), 0, 0).await.unwrap().is_empty());
    assert!(world.manager.forecast().await.unwrap().is_empty());
    let (key, signature) = world.manager.get_app_env_key(&"0".repeat(40)).await.unwrap();
    assert_eq!((key.len(), signature.len()), (32, 65));
}

#[tokio::test]
async fn a_wrong_policy_leaves_the_old_one_in_force() {
    let world = World::new().await;
    std::fs::create_dir(world.path("etc/policy.d")).unwrap();
    std::fs::write(world.path("etc/policy.d/a.toml"), "min_evaluation_number = 3").unwrap();
    world.manager.reload().await.unwrap();
    std::fs::write(world.path("etc/policy.d/b.toml"), "allow_any = true").unwrap();
    let error = world.manager.reload().await.unwrap_err();
    assert!(matches!(&error, Error::Misconfigured(m) if m.contains("b.toml")), "{error}");
    assert!(world.start_and_fail(), "a start with a wrong policy");
}

#[tokio::test]
async fn p02_no_secret_is_in_argv_or_environment() {
    let world = World::new().await;
    world.manager.bootstrap("kms.example.org", Options::new()).await.unwrap();
    let record = std::fs::read_to_string(world.path("credentials/kmsroot")).unwrap();
    let keys: Vec<&str> = record.split('"').filter(|part| part.len() == 64).collect();
    assert_eq!(keys.len(), 2);
    let pid = world.kms.as_ref().unwrap().0.id();
    for file in ["cmdline", "environ"] {
        let text =
            String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/{file}")).unwrap()).into_owned();
        assert!(keys.iter().all(|key| !text.contains(key)), "{file}");
    }
    for directory in ["state", "cache", "run"] {
        for entry in walk(&world.path(directory)) {
            let bytes = std::fs::read(&entry).unwrap();
            let text = String::from_utf8_lossy(&bytes);
            assert!(keys.iter().all(|key| !text.contains(key)), "{}", entry.display());
        }
    }
}

fn walk(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(walk(&path));
        } else {
            files.push(path);
        }
    }
    files
}
