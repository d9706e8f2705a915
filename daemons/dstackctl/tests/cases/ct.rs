// SPDX-License-Identifier: Apache-2.0
//! `ct`: the real binary against a mock of the certificate monitor.

use crate::mock::bus::Bus;
use crate::mock::ctmonitor::{ALERT, CtMonitor, LATER};
use crate::mock::run;
use std::sync::Arc;
use tokio::sync::Notify;

struct World {
    bus: Bus,
    monitor: CtMonitor,
    _connection: zbus::Connection,
}

impl World {
    async fn new() -> Self {
        let (bus, monitor) = (Bus::start(), CtMonitor::default());
        let connection = monitor.start(&bus).await;
        Self { bus, monitor, _connection: connection }
    }

    async fn ctl(&self, args: &[&str]) -> crate::mock::Run {
        run(&self.bus.address, args).await
    }
}

#[tokio::test]
async fn ct_shows_alerts_and_sources() {
    let world = World::new().await;
    let alerts = world.ctl(&["ct", "alerts"]).await;
    assert_eq!(alerts.code, 0, "{alerts:?}");
    for part in
        ["0101010101010101", "unknown-key", "open", "*.apps.example.com", "CN=R11", "2023-11-14T22:13:20Z"]
    {
        assert!(alerts.out.contains(part), "{part}: {alerts:?}");
    }
    let json = world.ctl(&["ct", "alerts", "--json"]).await.json();
    assert_eq!((json[0]["id"].as_str(), json[0]["names"][1].as_str()), (Some(ALERT), Some("b.example")));
    let status = world.ctl(&["ct", "status"]).await;
    for part in ["Watching apps.example.com", "crt.sh apps.example.com", "41", "HTTP status 502", "never"] {
        assert!(status.out.contains(part), "{part}: {status:?}");
    }
    let json = world.ctl(&["ct", "status", "--json"]).await.json();
    assert_eq!((json["known_keys"].as_u64(), json["sources"][0]["failures"].as_u64()), (Some(2), Some(2)));
}

#[tokio::test]
async fn ct_check_fails_for_new_alerts_and_for_trouble() {
    let world = World::new().await;
    let clean = world.ctl(&["ct", "check"]).await;
    assert_eq!((clean.code, clean.out.trim()), (0, "nothing unknown"), "{clean:?}");
    world.monitor.finds.lock().unwrap().1 = "crt.sh: HTTP status 502".into();
    let trouble = world.ctl(&["ct", "check"]).await;
    assert!(trouble.code == 1 && trouble.err.contains("HTTP status 502"), "{trouble:?}");
    world.monitor.finds.lock().unwrap().0 = true;
    let found = world.ctl(&["ct", "check", "--json"]).await;
    assert!(found.code == 1 && found.err.contains("1 new alerts"), "{found:?}");
    assert_eq!(found.json()["new_alerts"][0]["id"], LATER);
    let no_wait = world.ctl(&["ct", "check", "--no-wait"]).await;
    assert!(no_wait.code == 0 && no_wait.out.contains("/job/1"), "{no_wait:?}");
}

#[tokio::test]
async fn ct_check_goes_on_with_a_monitor_that_has_restarted() {
    let (bus, begun) = (Bus::start(), Arc::new(Notify::new()));
    let never = CtMonitor { begun: Some(Arc::clone(&begun)), ..CtMonitor::default() };
    let connection = never.start(&bus).await;
    let (run, next) = tokio::join!(run(&bus.address, &["ct", "check"]), async {
        begun.notified().await;
        drop(connection);
        CtMonitor::default().start(&bus).await
    });
    assert_eq!((run.code, run.out.trim()), (0, "nothing unknown"), "{run:?}");
    drop(next);
}

#[tokio::test]
async fn ct_acknowledges_and_tells_what_is_missing() {
    let world = World::new().await;
    assert_eq!(world.ctl(&["ct", "acknowledge", "x"]).await.code, 3);
    assert_eq!(world.ctl(&["ct", "acknowledge"]).await.code, 2);
    let done = world.ctl(&["ct", "ack", "--all"]).await;
    assert_eq!((done.code, done.out.trim()), (0, "acknowledged: 1"), "{done:?}");
    assert_eq!(*world.monitor.acknowledged.lock().unwrap(), [ALERT]);
    assert!(world.ctl(&["ct", "alerts"]).await.out.contains("acknowledged"));
    let away = Bus::start();
    let none = run(&away.address, &["ct", "alerts"]).await;
    assert!(none.code == 1 && none.err.contains("apt install dstack-ct-monitor"), "{none:?}");
}
