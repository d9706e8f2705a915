// SPDX-License-Identifier: Apache-2.0
//! `proxy`: the real binary against a mock of the ingress.

use crate::mock::bus::Bus;
use crate::mock::run;
use crate::mock::tproxy::{CLONED, ONLINE, Tproxy};

struct World {
    bus: Bus,
    tproxy: Tproxy,
    _connection: zbus::Connection,
}

impl World {
    async fn new() -> Self {
        let (bus, tproxy) = (Bus::start(), Tproxy::default());
        let connection = tproxy.start(&bus).await;
        Self { bus, tproxy, _connection: connection }
    }

    async fn ctl(&self, args: &[&str]) -> crate::mock::Run {
        run(&self.bus.address, args).await
    }
}

#[tokio::test]
async fn proxy_lists_and_shows() {
    let world = World::new().await;
    let list = world.ctl(&["proxy", "list"]).await;
    assert_eq!(list.code, 0, "{list:?}");
    for part in [ONLINE, CLONED, "online", "cloned", "10.0.0.2", "2023-11-14T22:15:00Z", "never"] {
        assert!(list.out.contains(part), "{part}: {list:?}");
    }
    let json = world.ctl(&["proxy", "list", "--json"]).await.json();
    assert_eq!((json[0]["id"].as_str(), json[0]["online"].as_bool()), (Some(ONLINE), Some(true)));
    assert_eq!(json[1]["clone_alarm"].as_u64(), Some(5));
    let one = world.ctl(&["proxy", "info", ONLINE]).await;
    assert!(one.out.contains("3 open, 7 made, 1 failed"), "{one:?}");
    let info = world.ctl(&["proxy", "info"]).await;
    for part in ["apps.example.com", "192.0.2.1:51820 server key", "2 registered, 1 online", "generation 4"] {
        assert!(info.out.contains(part), "{part}: {info:?}");
    }
    assert_eq!(world.ctl(&["proxy", "info", "--json"]).await.json()["generation"], 4);
    assert_eq!(world.ctl(&["proxy", "stats", "--json"]).await.json()["accepted"], 9);
    assert!(world.ctl(&["proxy", "stats"]).await.out.contains("accepted"));
}

#[tokio::test]
async fn proxy_changes_instances_and_tells_what_is_missing() {
    let world = World::new().await;
    for (verb, said) in [("drain", "drained"), ("undrain", "undrained"), ("remove", "removed")] {
        let done = world.ctl(&["proxy", verb, ONLINE]).await;
        assert_eq!((done.code, done.out.trim()), (0, format!("{said}: {ONLINE}").as_str()), "{done:?}");
    }
    let calls = world.tproxy.calls.lock().unwrap().clone();
    assert_eq!(calls, ["Drain", "Undrain", "Remove"].map(|verb| format!("{verb} {ONLINE}")));
    let unknown = world.ctl(&["proxy", "drain", &"03".repeat(20)]).await;
    assert_eq!(unknown.code, 3, "{unknown:?}");
    let away = Bus::start();
    let none = run(&away.address, &["proxy", "list"]).await;
    assert!(none.code != 0 && none.err.contains("apt install dstack-tproxy"), "{none:?}");
}
