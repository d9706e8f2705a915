// SPDX-License-Identifier: Apache-2.0
//! `cert`: the real binary against a mock of certbot.

use crate::mock::bus::Bus;
use crate::mock::certbot::Certbot;
use crate::mock::{Run, run};

struct World {
    bus: Bus,
    certbot: Certbot,
    _connection: zbus::Connection,
}

impl World {
    async fn new(fails: bool) -> Self {
        Self::of(Certbot { fails, ..Certbot::default() }).await
    }

    async fn of(mut certbot: Certbot) -> Self {
        let bus = Bus::start();
        let connection = certbot.start(&bus).await;
        Self { bus, certbot, _connection: connection }
    }

    async fn ctl(&self, args: &[&str]) -> Run {
        run(&self.bus.address, args).await
    }
}

#[tokio::test]
async fn certificates_are_listed_and_shown() {
    let world = World::new(false).await;
    let list = world.ctl(&["cert", "list"]).await;
    for part in ["a.example", "*.b.example b.example", "valid", "2023-11-14T22:15:00Z", "now"] {
        assert!(list.out.contains(part), "{part}: {list:?}");
    }
    let json = world.ctl(&["cert", "list", "--json"]).await.json();
    assert_eq!(
        (json[0]["not_after"].as_u64(), json[0]["public_key"].as_str()),
        (Some(1_700_000_100), Some("3059"))
    );
    let shown = world.ctl(&["cert", "show", "*.a.example"]).await;
    assert!(shown.out.contains("CN=Test") && shown.out.contains("3001"), "{shown:?}");
    assert_eq!(world.ctl(&["cert", "show", "none.example"]).await.code, 3);
    let status = world.ctl(&["cert", "status"]).await;
    assert!(status.code == 0 && status.out.contains("https://ca.example/acct/1"), "{status:?}");
}

#[tokio::test]
async fn status_is_red_when_a_renewal_or_a_rehearsal_failed() {
    let world = World::new(true).await;
    let status = world.ctl(&["cert", "status"]).await;
    assert!(status.code == 1 && status.out.contains("renewal-failed"), "{status:?}");
    assert!(status.err.contains("b.example: no zone has it"), "{status:?}");
    let world = World::new(false).await;
    world.certbot.problems.lock().unwrap().push("a.example: lacks CAA".into());
    let status = world.ctl(&["cert", "status"]).await;
    assert!(
        status.code == 1 && status.out.contains("failed, 2023") && status.err.contains("lacks CAA"),
        "{status:?}"
    );
    assert_eq!(world.ctl(&["cert", "status", "--json"]).await.json()["well"], false);
}

#[tokio::test]
async fn status_is_red_when_a_certificate_has_expired() {
    let world = World::of(Certbot { expired: true, ..Certbot::default() }).await;
    let status = world.ctl(&["cert", "status"]).await;
    assert!(status.code == 1 && status.out.contains("expired"), "{status:?}");
    let json = world.ctl(&["cert", "status", "--json"]).await;
    assert!(json.code == 1 && json.json()["well"] == false, "{json:?}");
}

#[tokio::test]
async fn jobs_are_followed_to_their_end() {
    let world = World::new(false).await;
    for args in [
        &["cert", "renew"] as &[&str],
        &["cert", "renew", "a.example", "--force"],
        &["cert", "rehearse"],
        &["cert", "caa", "a.example"],
    ] {
        let run = world.ctl(args).await;
        assert_eq!(run.code, 0, "{run:?}");
    }
    let calls = world.certbot.calls.lock().unwrap().clone();
    assert_eq!(calls, ["renew  false", "renew a.example true", "rehearse", "caa a.example"]);
    assert_eq!(world.ctl(&["cert", "renew", "none.example"]).await.code, 3);
    let failing = World::new(true).await;
    let run = failing.ctl(&["cert", "renew"]).await;
    assert!(run.code == 1 && run.err.contains("no zone has it"), "{run:?}");
    let bus = Bus::start();
    let away = crate::mock::run(&bus.address, &["cert", "list"]).await;
    assert!(away.code != 0 && away.err.contains("apt install dstack-certbot"), "{away:?}");
}

#[tokio::test]
async fn what_is_not_valid_after_a_renewal_is_named_with_its_next_try() {
    let world = World::of(Certbot { waits: true, ..Certbot::default() }).await;
    let run = world.ctl(&["cert", "renew"]).await;
    assert!(run.code == 1 && !run.out.contains("renewed"), "{run:?}");
    for part in
        ["b.example", "renewal-failed", "the token is refused", "2023-11-14T23:13:20Z", "cert renew --force"]
    {
        assert!(run.err.contains(part), "{part}: {run:?}");
    }
    let json = world.ctl(&["cert", "renew", "--json"]).await;
    let value = json.json();
    assert!(json.code == 1 && value["result"] == "failed", "{json:?}");
    assert_eq!(value["not_valid"][0]["domain"], "b.example");
    assert_eq!(
        (value["not_valid"][0]["retry"].as_u64(), value["not_valid"].as_array().unwrap().len()),
        (Some(1_700_003_600), 1)
    );
    let other = world.ctl(&["cert", "renew", "*.a.example"]).await;
    assert!(other.code == 0 && other.out.contains("renewed"), "{other:?}");
}

#[tokio::test]
async fn doctor_sees_a_certificate_that_fails() {
    let world = World::of(Certbot { waits: true, ..Certbot::default() }).await;
    let run = world.ctl(&["doctor", "--json"]).await;
    let value = run.json();
    let checks = value["checks"].as_array().unwrap();
    let found = checks.iter().find(|c| c["name"] == "certificate" && c["status"] == "bad");
    let text =
        checks.iter().filter(|c| c["name"] == "certificate").map(|c| c.to_string()).collect::<String>();
    assert!(run.code == 1 && found.is_some() && text.contains("the token is refused"), "{run:?}");
    assert!(
        text.contains("a.example has expired") && text.contains("Misconfigured: certbot.toml"),
        "{run:?}"
    );
}
