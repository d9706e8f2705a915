// SPDX-License-Identifier: Apache-2.0
//! Keys, secrets and upgrades: the real binary against mocks of teepod and of a key service, on a private bus and over
//! RA-TLS.

use crate::mock;
use crate::mock::bus::Bus;
use crate::mock::kms::{Kms, deny};
use crate::mock::teepod::{Teepod, VmState};
use crate::mock::{command, finish, home, run};
use dstack_core::compose::{AppCompose, KeyProvider, Rollback};
use dstack_core::ids::{AppId, ComposeHash};
use dstack_keys::env::{Sent, verify};
use dstack_ra_tls::certificate::{Custody, Usage};
use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, BufReader};
use zbus::Connection;

const FILE: &str = "services:\n  web:\n    image: nginx@sha256:00\n";

struct World {
    bus: Bus,
    teepod: Teepod,
    kms: Arc<Kms>,
    on_bus: Option<Connection>,
    directory: tempfile::TempDir,
}

impl World {
    /// A host with its own key service.
    async fn new() -> Self {
        let mut world = Self::remote().await;
        world.on_bus = Some(world.kms.start(&world.bus).await);
        world
    }

    /// A host without one; it may be served over the network.
    async fn remote() -> Self {
        let bus = Bus::start();
        let teepod = Teepod::start(&bus).await;
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("docker-compose.yaml"), FILE).unwrap();
        Self { bus, teepod, kms: Kms::new(), on_bus: None, directory }
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    fn own(&self, name: &str) -> PathBuf {
        home(&self.bus.address).join(name)
    }

    async fn ctl(&self, args: &[&str]) -> mock::Run {
        run(&self.bus.address, args).await
    }

    async fn deploy(&self, name: &str, more: &[&str]) -> mock::Run {
        let compose = self.path("docker-compose.yaml");
        let mut args = vec!["deploy", &compose, "--name", name, "--no-start"];
        args.extend(more);
        self.ctl(&args).await
    }

    fn vm(&self, name: &str) -> VmState {
        self.teepod.shared.vms.lock().unwrap().get(name).cloned().unwrap()
    }

    /// The compose file of a VM, as the guest reads it.
    fn compose(&self, name: &str) -> AppCompose {
        AppCompose::parse(&self.vm(name).compose).unwrap()
    }

    /// What the guest does with the secrets of a VM: check the sender, then decrypt.
    fn secrets(&self, name: &str) -> Vec<(String, String)> {
        let vm = self.vm(name);
        let (app, hash): (AppId, _) = (vm.app_id.parse().unwrap(), ComposeHash::of(&vm.compose));
        let signer = self.compose(name).env_signer.unwrap();
        verify(&signer, &Sent::new(&app, &hash, &vm.env.0), &vm.env.1).unwrap();
        self.kms.open(&app, &vm.env.0).into_iter().map(|(k, v)| (k, v.to_string())).collect()
    }
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t03_deploy_names_the_key_service_in_the_measured_document() {
    let world = World::new().await;
    let run = world.deploy("a", &[]).await;
    assert_eq!(run.code, 0, "{run:?}");
    let compose = world.compose("a");
    assert_eq!(compose.key_provider(), KeyProvider::Kms);
    assert_eq!(compose.key_provider_spki(), world.kms.ca_public_key());
    assert_eq!((compose.env_signer, compose.allowed_envs), (None, Some(vec![])));
    assert!(
        run.err.contains("owner can derive every app's keys") && !run.err.contains("fresh at each boot"),
        "{run:?}"
    );
    let none = world.deploy("b", &["--key-provider", "none"]).await;
    assert!(none.code == 0 && none.err.contains("fresh at each boot"), "{none:?}");
    assert_eq!(world.compose("b").key_provider(), KeyProvider::None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t03_without_a_key_service_the_default_is_none_and_asking_for_one_says_how_to_get_it() {
    let world = World::remote().await;
    let run = world.deploy("a", &[]).await;
    assert!(run.code == 0 && run.err.contains("fresh at each boot"), "{run:?}");
    for more in [&["--key-provider", "kms"][..], &["-e", "A=s3cret"], &["--kms", "local"]] {
        let run = world.deploy("b", more).await;
        assert!(run.code == 1 && run.err.contains("dstackctl kms bootstrap"), "{more:?}: {run:?}");
        assert!(!run.err.contains("s3cret"), "{run:?}");
    }
    world.kms.state.lock().unwrap().bootstrapped = false;
    let _bus = world.kms.start(&world.bus).await;
    let run = world.deploy("c", &[]).await;
    assert!(run.code == 0 && run.err.contains("fresh at each boot"), "{run:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t09_p06_secrets_are_encrypted_and_signed_here() {
    let world = World::new().await;
    let file = world.file(".env", "# keys\nTOKEN='s3cret one'\nexport OTHER=\"two\\nlines\"\n");
    let compose = world.path("docker-compose.yaml");
    let args =
        ["deploy", &compose, "--name", "a", "--no-start", "--env-file", &file, "-e", "FROM_ENV", "-e", "X=y"];
    let child = command(&world.bus.address, &args).env("FROM_ENV", "s3cret three").spawn().unwrap();
    let run = finish(child).await;
    assert_eq!(run.code, 0, "{run:?}");
    assert!(!format!("{run:?}").contains("s3cret"), "{run:?}");
    let expected =
        [("FROM_ENV", "s3cret three"), ("OTHER", "two\nlines"), ("TOKEN", "s3cret one"), ("X", "y")];
    assert_eq!(world.secrets("a"), pairs(&expected));
    let names = ["FROM_ENV", "OTHER", "TOKEN", "X"].map(str::to_owned).to_vec();
    assert_eq!(world.compose("a").allowed_envs, Some(names));
    assert!(!String::from_utf8(world.vm("a").compose).unwrap().contains("s3cret"));
    let key = std::fs::metadata(world.own("config/dstack/env-signer.pem")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
    let mut sent = std::fs::read_dir(world.own("state/dstack/sent").join(world.vm("a").app_id)).unwrap();
    let sent = std::fs::read_to_string(sent.next().unwrap().unwrap().path()).unwrap();
    assert!(!sent.contains("s3cret"), "{sent}");
    // The same user's key signs the next app too.
    assert_eq!(world.deploy("b", &["-e", "A=1"]).await.code, 0);
    assert_eq!(world.compose("a").env_signer, world.compose("b").env_signer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p06_a_key_that_the_root_did_not_sign_gets_no_secret() {
    let world = World::new().await;
    world.kms.state.lock().unwrap().forges = true;
    let run = world.deploy("a", &["-e", "A=s3cret"]).await;
    assert!(run.code == 1 && run.err.contains("nothing is encrypted"), "{run:?}");
    assert!(world.teepod.shared.vms.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t10_reserved_names_and_broken_files_are_refused_without_a_value() {
    let world = World::new().await;
    let file = world.file(".env", "A=1\nB='s3cret\n");
    for (more, part) in [
        (["-e", "LD_PRELOAD=s3cret"], "reserved"),
        (["-e", "DOCKER_HOST"], "reserved"),
        (["-e", "SURELY_NOT_SET"], "environment"),
        (["--env-file", &file], "line 2"),
    ] {
        let run = world.deploy("a", &more).await;
        assert!(run.code == 2 && run.err.contains(part) && !run.err.contains("s3cret"), "{run:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t15_a_key_service_is_looked_at_before_it_is_trusted() {
    let world = World::remote().await;
    let url = world.kms.serve().await;
    let nobody = world.ctl(&["kms", "trust", &url]).await;
    assert!(nobody.code == 2 && nobody.err.contains("--fingerprint"), "{nobody:?}");
    assert!(nobody.err.contains("this machine's owner can derive every app's keys"), "{nobody:?}");
    assert!(
        nobody.err.contains("nothing is protected") && nobody.err.contains(&world.kms.fingerprint()),
        "{nobody:?}"
    );
    let wrong = world.ctl(&["kms", "trust", &url, "--fingerprint", &"ab".repeat(32)]).await;
    assert!(wrong.code == 1 && wrong.err.contains("not the one you gave"), "{wrong:?}");
    assert!(!world.own("config/dstack/trust").exists());
    let right = world.ctl(&["kms", "trust", &url, "--fingerprint", &world.kms.fingerprint()]).await;
    assert!(right.code == 0 && right.out.starts_with("trusted: "), "{right:?}");
    let status = world.ctl(&["kms", "status", "--json"]).await.json();
    assert_eq!(status["local"], json!({"installed": false}));
    assert_eq!(status["trusted"][0]["fingerprint"], world.kms.fingerprint());
    assert_eq!(
        (&status["trusted"][0]["custody"], &status["trusted"][0]["default"]),
        (&json!("host"), &json!(true))
    );
    let table = world.ctl(&["kms", "status"]).await;
    assert!(table.out.contains("kms.test") && table.out.contains("default"), "{table:?}");
    assert_eq!(world.ctl(&["kms", "untrust", "kms.test"]).await.code, 0);
    assert_eq!(world.ctl(&["kms", "untrust", "kms.test"]).await.code, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t15_what_contradicts_its_own_certificate_is_not_trusted() {
    type Lie = fn(&mut dstack_rpc::kms::GetMetaResponse);
    let lies: [(Lie, &str); 5] = [
        (|m| m.ca_public_key = vec![1], "another CA key"),
        (|m| m.custody = "cvm".into(), "another realm or custody"),
        (|m| m.realm = "intel".into(), "another realm or custody"),
        (|m| m.k256_pubkey = vec![2; 32], "no k256"),
        (|m| m.k256_pubkey = vec![9; 33], "k256 root key is none"),
    ];
    let world = World::remote().await;
    let url = world.kms.serve().await;
    for (lie, part) in lies {
        world.kms.state.lock().unwrap().lies = Some(lie);
        let run = world.ctl(&["kms", "trust", &url, "--yes"]).await;
        assert!(run.code == 1 && run.err.contains(part), "{part}: {run:?}");
    }
    let app = world.kms.serve_as(Usage::AppCustom).await;
    let run = world.ctl(&["kms", "trust", &app, "--yes"]).await;
    assert!(run.code == 1 && run.err.contains("app:custom"), "an app is no key service: {run:?}");
    let cvm = Kms::with_custody(Custody::Cvm).serve().await;
    let run = world.ctl(&["kms", "trust", &cvm, "--yes"]).await;
    assert!(run.code == 1 && run.err.contains("no quote that shows it"), "{run:?}");
    assert!(!world.own("config/dstack/trust").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t15_another_key_at_the_same_place_is_no_silent_change() {
    let world = World::remote().await;
    let url = world.kms.serve().await;
    assert_eq!(world.ctl(&["kms", "trust", &url, "--yes"]).await.code, 0);
    let other = Kms::new().serve().await;
    let run = world.ctl(&["kms", "trust", &other, "--yes"]).await;
    assert!(run.code == 1 && run.err.contains("another one") && run.err.contains("untrust"), "{run:?}");
    assert_eq!(world.ctl(&["kms", "trust", &url, "--yes"]).await.code, 0, "the same again is fine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t15_p06_secrets_go_to_a_pinned_key_service_over_the_network() {
    let world = World::remote().await;
    let url = world.kms.serve().await;
    assert_eq!(world.ctl(&["kms", "trust", &url, "--yes"]).await.code, 0);
    let run = world.deploy("a", &["-e", "A=s3cret"]).await;
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(world.secrets("a"), pairs(&[("A", "s3cret")]));
    assert!(world.kms.called("rpc GetAppEnvEncryptPubKey"));
    world.kms.state.lock().unwrap().forges = true;
    let run = world.deploy("b", &["-e", "A=s3cret"]).await;
    assert!(run.code == 1 && run.err.contains("nothing is encrypted"), "{run:?}");
    // Somebody else answers at the pinned address: another CA.
    let mut files = std::fs::read_dir(world.own("config/dstack/trust")).unwrap().map(|e| e.unwrap().path());
    let path = files.find(|p| p.extension().is_some_and(|e| e == "json")).unwrap();
    let elsewhere = Kms::new().serve().await;
    std::fs::write(&path, std::fs::read_to_string(&path).unwrap().replace(&url, &elsewhere)).unwrap();
    let run = world.deploy("c", &["-e", "A=s3cret"]).await;
    assert!(run.code == 1 && run.err.contains("pinned authority") && run.err.contains("untrust"), "{run:?}");
    assert_eq!(world.teepod.shared.vms.lock().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t09_an_upgrade_keeps_key_service_sender_and_secrets() {
    let world = World::new().await;
    assert_eq!(world.deploy("a", &["-e", "A=s3cret"]).await.code, 0);
    let before = world.compose("a");
    let (app, blob) = (world.vm("a").app_id, world.vm("a").env.0);
    let second = world.file("second.yaml", "services:\n  web:\n    image: nginx@sha256:01\n");
    let run = world.ctl(&["vm", "upgrade", "a", &second]).await;
    assert_eq!(run.code, 0, "{run:?}");
    let (after, hash) = (world.compose("a"), ComposeHash::of(&world.vm("a").compose).to_string());
    assert_eq!((&after.key_provider_id, after.env_signer), (&before.key_provider_id, before.env_signer));
    assert_eq!(after.allowed_envs, before.allowed_envs);
    assert_eq!(world.vm("a").env.0, blob, "not encrypted again");
    assert_eq!(world.secrets("a"), pairs(&[("A", "s3cret")]));
    let command = format!("dstackctl kms allow-upgrade {app} {hash}");
    assert!(run.err.contains(&command), "{run:?}");
    let allowed: Vec<&str> = command.split(' ').skip(1).collect();
    assert_eq!(world.ctl(&allowed).await.code, 0);
    let json = world.ctl(&["vm", "upgrade", "a", &second, "--json"]).await;
    assert_eq!(json.json()["allowed"], true, "{json:?}");
    let fresh = world.ctl(&["vm", "upgrade", "a", &second, "-e", "B=other"]).await;
    assert_eq!(fresh.code, 0, "{fresh:?}");
    assert_eq!(world.secrets("a"), pairs(&[("B", "other")]));
    assert_eq!(world.compose("a").allowed_envs, Some(vec!["B".to_owned()]));
    let none = world.ctl(&["vm", "upgrade", "a", &second, "--no-secrets"]).await;
    assert!(none.code == 0 && world.vm("a").env == (vec![], vec![]), "{none:?}");
    assert_eq!(world.compose("a").allowed_envs, Some(vec![]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t13_rollback_protection_is_measured_and_carried_over() {
    let world = World::new().await;
    assert_eq!(world.deploy("a", &["--rollback", "refuse"]).await.code, 0);
    assert_eq!(world.compose("a").rollback, Some(Rollback::Refuse));
    let second = world.file("second.yaml", "services:\n  web:\n    image: nginx@sha256:01\n");
    for (options, kept) in [
        (&[][..], Some(Rollback::Refuse)),
        (&["--rollback", "warn"], Some(Rollback::Warn)),
        (&["--rollback", "off"], None),
    ] {
        let run = world.ctl(&[&["vm", "upgrade", "a", &second], options].concat()).await;
        assert_eq!((run.code, world.compose("a").rollback), (0, kept), "{run:?}");
    }
    let without = world.deploy("b", &["--rollback", "refuse", "--key-provider", "none"]).await;
    assert!(without.code != 0 && without.err.contains("needs key_provider kms"), "{without:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t09_each_vm_of_an_app_keeps_the_secrets_it_was_sent() {
    let world = World::new().await;
    assert_eq!(world.deploy("a", &["-e", "A=one"]).await.code, 0);
    let document = world.file("app-compose.json", std::str::from_utf8(&world.vm("a").compose).unwrap());
    let second = ["deploy", &document, "--name", "b", "--no-start", "-e", "A=two"];
    assert_eq!(world.ctl(&second).await.code, 0);
    assert_eq!(world.vm("a").app_id, world.vm("b").app_id);
    let file = world.file("second.yaml", "services:\n  web:\n    image: nginx@sha256:01\n");
    for vm in ["a", "b"] {
        let run = world.ctl(&["vm", "upgrade", vm, &file]).await;
        assert_eq!(run.code, 0, "{run:?}");
    }
    assert_eq!(world.secrets("a"), pairs(&[("A", "one")]));
    assert_eq!(world.secrets("b"), pairs(&[("A", "two")]));
    assert!(!world.own("state/dstack/a.json").exists(), "an id is no path");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t09_p06_what_was_not_sent_from_here_is_not_signed() {
    let world = World::new().await;
    assert_eq!(world.deploy("a", &["-e", "A=s3cret"]).await.code, 0);
    let second = world.file("second.yaml", "services:\n  web:\n    image: nginx@sha256:01\n");
    std::fs::remove_dir_all(world.own("state")).unwrap();
    let run = world.ctl(&["vm", "upgrade", "a", &second]).await;
    assert!(run.code == 1 && run.err.contains("--env-file"), "{run:?}");
    std::fs::remove_file(world.own("config/dstack/env-signer.pem")).unwrap();
    let run = world.ctl(&["vm", "upgrade", "a", &second, "-e", "A=s3cret"]).await;
    assert!(run.code == 1 && run.err.contains("--env-signer"), "{run:?}");
    assert!(world.compose("a").docker_compose_file.unwrap().contains("sha256:00"), "nothing was changed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t08_the_owner_signs_and_the_key_service_gets_it() {
    let world = World::new().await;
    let owner = world.path("owner.pem");
    let made = world.ctl(&["app", "keygen", "-o", &owner]).await;
    assert_eq!(made.code, 0, "{made:?}");
    assert!(world.ctl(&["app", "keygen", "-o", &owner]).await.err.contains("exists"), "never replaced");
    let public = world.path("owner.pem.pub");
    assert_eq!(world.deploy("a", &["--upgrade-key", &public]).await.code, 0);
    let keys: Vec<String> = world.compose("a").upgrade_keys.iter().map(ToString::to_string).collect();
    assert_eq!(keys, [made.out.trim()]);
    let app = world.vm("a").app_id;
    let first = world.file("first.json", std::str::from_utf8(&world.vm("a").compose).unwrap());
    let second = world.file("second.yaml", "services:\n  web:\n    image: nginx@sha256:01\n");
    let upgraded = world.ctl(&["vm", "upgrade", "a", &second]).await;
    assert!(upgraded.err.contains("dstackctl app sign-upgrade"), "{upgraded:?}");
    assert_eq!(world.compose("a").upgrade_keys.len(), 1, "carried over");
    let hash = ComposeHash::of(&world.vm("a").compose).to_string();
    let (file, seq) = (world.path("upgrade.json"), "1");
    let args = ["app", "sign-upgrade", "--key", &owner, "--app", &app, "--hash", &hash, "--seq", seq];
    let mut args = args.to_vec();
    args.extend(["--not-after", "30d", "--revoke-below", "1", "--first-compose", &first, "-o", &file]);
    let signed = world.ctl(&args).await;
    assert_eq!(signed.code, 0, "{signed:?}");
    let shown = world.ctl(&["app", "show", &file, "--json"]).await.json();
    assert_eq!((&shown["compose_hash"], &shown["signed_by"]), (&json!(hash), &json!([made.out.trim()])));
    assert_eq!(world.ctl(&["app", "show", &first, "--json"]).await.json()["upgrades"], "owner");
    assert_eq!(world.ctl(&["app", "show", &owner, "--json"]).await.json()["public_key"], made.out.trim());
    assert_eq!(world.ctl(&["kms", "submit-upgrade", &file]).await.code, 0);
    assert!(world.kms.called("SubmitUpgrade 1"));
    let url = world.kms.serve().await;
    assert_eq!(world.ctl(&["kms", "trust", &url, "--yes"]).await.code, 0);
    let remote = world.ctl(&["kms", "submit-upgrade", &file, "--kms", "kms.test"]).await;
    assert!(remote.code == 0 && world.kms.called("rpc SubmitUpgrade"), "{remote:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_service_of_this_host() {
    let world = World::new().await;
    world.kms.state.lock().unwrap().bootstrapped = false;
    let status = world.ctl(&["kms", "status"]).await;
    assert!(status.out.contains("dstackctl kms bootstrap"), "{status:?}");
    let made = world.ctl(&["kms", "bootstrap", "kms.test"]).await;
    assert!(made.code == 0 && made.out.contains(&world.kms.fingerprint()), "{made:?}");
    assert!(made.err.contains("owner can derive every app's keys"), "{made:?}");
    let again = world.ctl(&["kms", "bootstrap", "kms.test"]).await;
    assert!(again.code == 1 && again.err.contains("already"), "{again:?}");
    let status = world.ctl(&["kms", "status"]).await;
    for part in ["kms.test", "https://10.0.0.7:9043", &world.kms.fingerprint(), "nothing is protected"] {
        assert!(status.out.contains(part), "{part}: {status:?}");
    }
    let (app, hash) = ("11".repeat(20), "22".repeat(32));
    assert_eq!(
        world.ctl(&["kms", "allow-upgrade", &app, &hash]).await.out,
        format!("allowed: {app} {hash}\n")
    );
    assert_eq!(world.ctl(&["kms", "allow-upgrade", &app, &hash[..40]]).await.code, 0);
    let list = world.ctl(&["kms", "upgrades", &app]).await;
    assert!(list.out.contains(&hash) && list.out.contains("operator"), "{list:?}");
    let revoked = world.ctl(&["kms", "revoke-upgrade", &app, &hash]).await;
    assert!(revoked.code == 3 && revoked.err.contains("is not allowed for app"), "{revoked:?}");
    let forgotten = world.ctl(&["kms", "forget-disk", &app, &hash[..40]]).await;
    assert_eq!(forgotten.out, format!("forgotten: {app} {}\n", &hash[..40]));
    assert!(world.kms.called(&format!("ForgetDisk {app} {}", &hash[..40])));
    assert_eq!(world.ctl(&["kms", "forget-disk", &app, "../x"]).await.code, 2);
    let log = world.ctl(&["kms", "release-log", &app, "--after", "4"]).await;
    assert!(log.out.contains("released") && log.out.contains("2023-11-14"), "{log:?}");
    assert_eq!(world.ctl(&["kms", "release-log", &app, "--json"]).await.json()[0]["seq"], 1);
    let ahead = world.ctl(&["kms", "forecast"]).await;
    for part in ["now", "refused", "2100-01-01T00:00:00Z", "grace-ends", "OutOfDate"] {
        assert!(ahead.out.contains(part), "{part}: {ahead:?}");
    }
    assert_eq!(world.ctl(&["kms", "forecast", "--json"]).await.json()[1]["cause"], "grace-ends");
    assert_eq!(world.ctl(&["kms", "allow-peer", "aa", "--ttl", "10min"]).await.code, 0);
    assert!(world.kms.called("AllowPeer aa 600"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t23_the_log_of_a_trusted_key_service_is_signed() {
    let world = World::remote().await;
    let url = world.kms.serve().await;
    assert_eq!(world.ctl(&["kms", "trust", &url, "--yes"]).await.code, 0);
    let app = "11".repeat(20);
    let args = ["kms", "release-log", app.as_str(), "--kms", "kms.test"];
    let log = world.ctl(&args).await;
    assert!(log.code == 0 && log.out.contains("denied") && log.err.contains("is signed"), "{log:?}");
    world.kms.state.lock().unwrap().forges = true;
    let forged = world.ctl(&args).await;
    assert!(forged.code == 1 && forged.err.contains("not signed") && forged.out.is_empty(), "{forged:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t15_a_source_of_root_keys_is_confirmed_like_any_other() {
    let world = World::new().await;
    let source = Kms::new();
    let url = source.serve().await;
    let nobody = world.ctl(&["kms", "onboard", &url]).await;
    assert!(nobody.code == 2 && !world.kms.called(&format!("Onboard {url}")), "{nobody:?}");
    let run = world.ctl(&["kms", "onboard", &url, "--fingerprint", &source.fingerprint()]).await;
    assert_eq!(run.code, 0, "{run:?}");
    assert!(world.kms.called(&format!("Onboard {url} {}", hex::encode(source.ca_public_key()))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_of_keys_is_told_with_its_command() {
    let world = World::new().await;
    let compose = world.path("docker-compose.yaml");
    let child = command(&world.bus.address, &["deploy", &compose, "--name", "refused"]).spawn().unwrap();
    let mut child = child;
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut seen = String::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        seen.push_str(&line);
        if line.contains("starting QEMU") {
            break;
        }
    }
    let vm = world.vm("refused");
    let hash = ComposeHash::of(&vm.compose).to_string();
    let bus = world.on_bus.as_ref().unwrap();
    let other = deny(bus, &AppId::from([9; 20]), &hash).await;
    let reason = deny(bus, &vm.app_id.parse().unwrap(), &hash).await;
    while let Some(line) = lines.next_line().await.unwrap() {
        seen.push_str(&line);
    }
    assert_eq!(finish(child).await.code, 1, "{seen}");
    assert!(seen.contains("refused the app keys") && seen.contains(&reason), "{seen}");
    assert!(!seen.contains(&other), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t05_an_app_with_keys_is_pinned_unless_tags_are_allowed() {
    let world = World::new().await;
    let tagged =
        world.file("docker-compose.yaml", "services:\n  web:\n    image: 127.0.0.1:1/app:1 # mine\n");
    let run = world.deploy("a", &[]).await;
    assert!(
        run.code == 1 && run.err.contains("--allow-tags") && run.err.contains("127.0.0.1:1/app:1"),
        "{run:?}"
    );
    let allowed = world.deploy("b", &["--allow-tags"]).await;
    assert!(allowed.code == 0 && allowed.err.contains("images=unpinned"), "{allowed:?}");
    let json = world.deploy("c", &["--allow-tags", "--json"]).await.json();
    assert_eq!((&json["images"], &json["key_provider"]), (&json!("unpinned"), &json!("kms")));
    let none = world.deploy("d", &["--key-provider", "none"]).await;
    assert!(none.code == 0 && none.err.contains("--pin"), "{none:?}");
    let registry = registry().await;
    std::fs::write(&tagged, format!("services:\n  web:\n    image: {registry}/app:1 # mine\n")).unwrap();
    let pinned = world.deploy("e", &["--registry-insecure", &registry]).await;
    assert_eq!(pinned.code, 0, "{pinned:?}");
    let digest = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    let expected = format!("services:\n  web:\n    image: {registry}/app:1@{digest} # mine\n");
    assert_eq!(world.compose("e").docker_compose_file.unwrap(), expected);
    assert!(
        pinned.err.contains(&format!("{registry}/app:1 -> {registry}/app:1@{digest}")),
        "the diff: {pinned:?}"
    );
    let document = world.file("app-compose.json", std::str::from_utf8(&world.vm("b").compose).unwrap());
    let fixed = world.ctl(&["deploy", &document, "--name", "f", "--no-start"]).await;
    assert!(fixed.code == 1 && fixed.err.contains("--allow-tags"), "{fixed:?}");
}

/// A registry in which every manifest is `{}`.
async fn registry() -> String {
    use tokio::io::AsyncWriteExt;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut lines = BufReader::new(&mut stream).lines();
            while lines.next_line().await.unwrap().is_some_and(|l| !l.is_empty()) {}
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await.unwrap();
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t03_a_document_is_used_as_it_is_and_must_name_somebody_trusted() {
    let world = World::new().await;
    assert_eq!(world.deploy("a", &["-e", "A=s3cret"]).await.code, 0);
    let document = world.file("app-compose.json", std::str::from_utf8(&world.vm("a").compose).unwrap());
    let args = |more: &[&str]| {
        let mut args =
            vec!["deploy".to_owned(), document.clone(), "--name".into(), "b".into(), "--no-start".into()];
        args.extend(more.iter().map(|a| (*a).to_owned()));
        args
    };
    let ctl = async |more: &[&str]| {
        let args = args(more);
        world.ctl(&args.iter().map(String::as_str).collect::<Vec<_>>()).await
    };
    let stranger = ctl(&["-e", "B=1"]).await;
    assert!(stranger.code == 1 && stranger.err.contains("allowed_envs"), "{stranger:?}");
    let same = ctl(&["-e", "A=other"]).await;
    assert_eq!(same.code, 0, "{same:?}");
    assert_eq!(world.secrets("b"), pairs(&[("A", "other")]));
    assert_eq!(world.vm("b").compose, world.vm("a").compose);
    let text = std::fs::read_to_string(&document).unwrap();
    let other = text.replace(&hex::encode(world.kms.ca_public_key()), "3059");
    std::fs::write(&document, other).unwrap();
    let unknown = ctl(&["-e", "A=s3cret"]).await;
    assert!(unknown.code == 1 && unknown.err.contains("is not trusted on this machine"), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t16_another_hosts_key_service_is_not_taken_at_its_word() {
    let world = World::new().await;
    if std::process::Command::new("systemd-stdio-bridge").arg("--help").output().is_err() {
        eprintln!("skipped: systemd-stdio-bridge is not installed");
        return;
    }
    let ssh = world.file("ssh", "#!/bin/sh\nexec \"$4\" -p \"$DBUS_SYSTEM_BUS_ADDRESS\"\n");
    std::fs::set_permissions(&ssh, PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", world.directory.path().display(), std::env::var("PATH").unwrap());
    let compose = world.path("docker-compose.yaml");
    let deploy = async |name: &str| {
        let args = ["-H", "box", "deploy", &compose, "--name", name, "--no-start", "-e", "A=s3cret"];
        finish(command(&world.bus.address, &args).env("PATH", &path).spawn().unwrap()).await
    };
    let run = deploy("a").await;
    assert!(run.code == 1 && run.err.contains("not trusted on this machine"), "{run:?}");
    let url = world.kms.serve().await;
    assert_eq!(world.ctl(&["kms", "trust", &url, "--yes"]).await.code, 0);
    let run = deploy("a").await;
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(world.secrets("a"), pairs(&[("A", "s3cret")]));
}
