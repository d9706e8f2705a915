// SPDX-License-Identifier: Apache-2.0
//! Checks, alerts and their end, over the bus.

use crate::certs::{issue, key_id};
use crate::server::Reply;
use crate::world::{NAMES, OURS, PATIENCE, THEIRS, World};
use dstack_service::api::ctmonitor1::{AlertRow, Error};
use futures_util::StreamExt;
use std::process::Command;
use tokio::time::timeout;

fn text(row: &AlertRow, key: &str) -> String {
    row[key].try_clone().unwrap().try_into().unwrap()
}

fn number(row: &AlertRow, key: &str) -> u64 {
    row[key].try_clone().unwrap().try_into().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_settings_it_says_so_and_does_nothing() {
    let mut world = World::stopped(false).await;
    world.start().await;
    assert!(!world.manager.configured().await.unwrap());
    let status = world.manager.status().await.unwrap();
    assert!(status.contains("ct-monitor.toml") && status.contains("systemctl restart"), "{status}");
    for refused in [
        world.manager.check().await.map(drop),
        world.manager.list_alerts().await.map(drop),
        world.manager.list_sources().await.map(drop),
        world.manager.acknowledge("x").await,
    ] {
        assert!(matches!(&refused, Err(Error::NotConfigured(m)) if m.contains("domains")), "{refused:?}");
    }
    assert_eq!(world.timer().await, Some(0), "the timer comes before the settings");
    assert!(world.crtsh.server.take().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_is_told_once_and_stays_until_somebody_has_looked() {
    let mut world = World::new().await;
    world.crtsh.list(1, issue(&OURS, &NAMES, 1, 0, false));
    assert_eq!(world.check().await.unwrap(), "done");
    let manager = world.manager.clone();
    assert_eq!((manager.alerts().await.unwrap(), manager.known_keys().await.unwrap()), (0, 1));
    assert!(manager.last_check().await.unwrap() > 0 && manager.last_error().await.unwrap().is_empty());
    assert_eq!(manager.domains().await.unwrap(), ["apps.example.com"]);
    let mut told = manager.receive_unknown_key().await.unwrap();
    world.crtsh.list(2, issue(&THEIRS, &NAMES, 2, 0, false));
    assert_eq!(world.check().await.unwrap(), "done");
    let signal = timeout(PATIENCE, told.next()).await.unwrap().unwrap();
    let args = signal.args().unwrap();
    let id = key_id(&THEIRS);
    assert_eq!(
        (args.id().as_str(), args.names().as_slice()),
        (id.as_str(), &["*.apps.example.com".to_owned()][..])
    );
    let rows = manager.list_alerts().await.unwrap();
    assert_eq!(
        (rows.len(), text(&rows[0], "id"), text(&rows[0], "kind")),
        (1, id.clone(), "unknown-key".into())
    );
    assert!(text(&rows[0], "place").ends_with("/?id=2") && text(&rows[0], "serial") == "2");
    let sources = manager.list_sources().await.unwrap();
    assert_eq!(
        (sources.len(), number(&sources[0], "position"), text(&sources[0], "error")),
        (2, 2, String::new())
    );
    assert!(text(&sources[1], "name").ends_with(" *.example.com"), "{sources:?}");
    assert!(manager.status().await.unwrap().contains("1 alerts"));
    // It survives a kill, and is not told again.
    world.kill().await;
    world.start().await;
    assert_eq!(world.check().await.unwrap(), "done");
    assert_eq!((manager.alerts().await.unwrap(), manager.list_alerts().await.unwrap().len()), (1, 1));
    assert!(matches!(manager.acknowledge("0123456789").await, Err(Error::NoSuchAlert(_))));
    manager.acknowledge(&id[..8]).await.unwrap();
    assert_eq!(manager.alerts().await.unwrap(), 0);
    assert!(number(&manager.list_alerts().await.unwrap()[0], "acknowledged") > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_timers_program_fails_for_new_alerts_alone() {
    let world = World::new().await;
    assert_eq!(world.timer().await, Some(0));
    world.crtsh.list(2, issue(&THEIRS, &NAMES, 2, 0, false));
    assert_eq!(world.timer().await, Some(3));
    assert_eq!(world.timer().await, Some(0), "each once");
    world.crtsh.fault("?q=", Reply::page(429, "Too Many Requests").with("Retry-After", "600"));
    assert_eq!(world.timer().await, Some(1));
    let error = world.manager.last_error().await.unwrap();
    assert!(error.contains("429") && world.manager.status().await.unwrap().contains("429"), "{error}");
    let sources = world.manager.list_sources().await.unwrap();
    assert!(number(&sources[0], "retry_at") > world.manager.last_check().await.unwrap() + 500);
    assert!(world.manager.last_success().await.unwrap() > 0);
}

/// The daemon is killed in the midst of a check, and another process of it begins to number its jobs anew.
#[tokio::test(flavor = "multi_thread")]
async fn the_timers_program_outlives_a_restart_of_the_daemon() {
    let mut world = World::new().await;
    world.crtsh.list(2, issue(&THEIRS, &NAMES, 2, 0, false));
    // It takes the connection and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (file, url) = (world.path("etc/ct-monitor.toml"), format!("http://{}", silent.local_addr().unwrap()));
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, good.replace(&world.crtsh.server.url, &url)).unwrap();
    world.kill().await;
    world.start().await;
    let mut begun = world.manager.receive_job_new().await.unwrap();
    let mut asking = world.spawn_timer();
    timeout(PATIENCE, begun.next()).await.unwrap().unwrap();
    std::fs::write(&file, good).unwrap();
    world.kill().await;
    world.start().await;
    let status = timeout(PATIENCE, asking.wait()).await.expect("it waits for a job that nobody has").unwrap();
    assert_eq!(status.code(), Some(3), "the check was made, and its alert counts");
}

#[tokio::test(flavor = "multi_thread")]
async fn certbot_tells_its_keys_over_the_bus() {
    let mut world = World::stopped(true).await;
    world.configure("certbot.enabled=true");
    world.crtsh.list(1, issue(&OURS, &NAMES, 1, 0, false));
    world.start().await;
    assert_eq!(world.check().await.unwrap(), "done");
    assert_eq!((world.manager.alerts().await.unwrap(), world.manager.known_keys().await.unwrap()), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn p30_without_certbot_nothing_is_judged() {
    let mut world = World::stopped(false).await;
    world.configure("certbot.enabled=true");
    world.crtsh.list(1, issue(&OURS, &NAMES, 1, 0, false));
    world.start().await;
    assert_eq!(world.check().await.unwrap(), "failed");
    let error = world.manager.last_error().await.unwrap();
    assert!(error.contains("certbot") && world.manager.list_alerts().await.unwrap().is_empty(), "{error}");
    assert_eq!(world.timer().await, Some(1));
    assert!(world.crtsh.server.take().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn p30_damaged_state_and_settings_are_told_and_left_alone() {
    let mut world = World::stopped(false).await;
    world.configure(&format!("known_keys=['{}']", key_id(&OURS)));
    std::fs::write(world.path("state/alerts.json"), "{").unwrap();
    let said = world.start_and_fail();
    assert!(said.contains("alerts.json") && said.contains("damaged"), "{said}");
    assert_eq!(std::fs::read(world.path("state/alerts.json")).unwrap(), b"{");
    world.configure("domians=[]");
    let said = world.start_and_fail();
    assert!(said.contains("domians") && said.contains("ct-monitor.toml"), "{said}");
    std::fs::remove_file(world.path("state/alerts.json")).unwrap();
    world.configure(&format!("known_keys=['{}']", key_id(&OURS)));
    world.start().await;
}

/// A call as an unprivileged user; gives its output.
fn call(world: &World, member: &str, arguments: &[&str]) -> String {
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "busctl"])
        .arg(format!("--address={}", world.address))
        .args([
            "call",
            "org.dstack.ctmonitor1",
            "/org/dstack/ctmonitor1",
            "org.dstack.ctmonitor1.Manager",
            member,
        ])
        .args(arguments)
        .output()
        .unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn p32_each_verb_has_its_action() {
    if !rustix::process::geteuid().is_root() || Command::new("busctl").arg("--version").output().is_err() {
        // The host tests hold this, too; without root there is no second user to ask as.
        eprintln!("skipped: needs root and busctl");
        return;
    }
    let world = World::new().await;
    let cases: [(&str, &[&str], &str); 4] = [
        ("ListAlerts", &[], "inspect"),
        ("ListSources", &[], "inspect"),
        ("Check", &[], "check"),
        ("Acknowledge", &["s", "x"], "acknowledge"),
    ];
    for (member, arguments, action) in cases {
        let action = format!("org.dstack.ctmonitor1.{action}");
        world.polkit.inner.lock().unwrap().denied.insert(action.clone());
        let said = call(&world, member, arguments);
        assert!(said.contains("Access denied"), "{member}: {said}");
        let asked = world.polkit.inner.lock().unwrap().asked.pop().unwrap();
        assert_eq!((asked.0, asked.1["verb"].as_str()), (action, member));
    }
}
