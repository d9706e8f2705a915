// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]

use super::*;
use dstack_testing::bus::PrivateBus;
use std::sync::Arc;
use tokio::sync::Notify;
use zbus::{fdo, interface};

const NAME: &str = "org.dstack.asking1";
const PATH: &str = "/org/dstack/asking1";

/// A bus of the test's own.
struct Bus {
    bus: PrivateBus,
    _dir: tempfile::TempDir,
}

impl Bus {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { bus: PrivateBus::start(dir.path()), _dir: dir }
    }

    async fn connect(&self) -> Connection {
        self.bus.connect().await
    }

    /// A daemon that has had so many jobs. It says when it is called, and ends a job only as the test says.
    async fn daemon(&self, jobs: u32) -> (Connection, Arc<Notify>) {
        let (connection, called) = (self.connect().await, Arc::new(Notify::new()));
        let manager = Manager { jobs, called: called.clone() };
        connection.object_server().at(PATH, manager).await.unwrap();
        connection.request_name(NAME).await.unwrap();
        (connection, called)
    }
}

struct Manager {
    jobs: u32,
    called: Arc<Notify>,
}

#[interface(name = "org.dstack.asking1.Manager")]
impl Manager {
    fn begin(&mut self, fine: bool) -> fdo::Result<OwnedObjectPath> {
        self.jobs += 1;
        self.called.notify_one();
        if !fine {
            return Err(fdo::Error::AccessDenied("no".into()));
        }
        Ok(path(self.jobs))
    }
}

fn path(job: u32) -> OwnedObjectPath {
    OwnedObjectPath::try_from(format!("{PATH}/job/{job}")).unwrap()
}

async fn say(daemon: &Connection, job: u32, result: &str) {
    let body = (job, path(job), result);
    let interface = format!("{NAME}.Manager");
    daemon.emit_signal(None::<&str>, PATH, interface.as_str(), "JobRemoved", &body).await.unwrap();
}

fn asked(
    bus: &Bus,
    fine: bool,
    patience: u64,
) -> tokio::task::JoinHandle<Result<String, AskError<zbus::Error>>> {
    let address = bus.bus.address.clone();
    tokio::spawn(async move {
        let client = zbus::conn::Builder::address(address.as_str()).build().await?;
        let begin = async |owner: OwnedUniqueName| {
            let interface = format!("{NAME}.Manager");
            let reply =
                client.call_method(Some(owner), PATH, Some(interface.as_str()), "Begin", &fine).await?;
            reply.body().deserialize()
        };
        ask_within(&client, NAME, begin, Duration::from_secs(patience)).await
    })
}

#[tokio::test]
async fn a_job_ends_by_its_own_daemons_word() {
    let bus = Bus::new();
    let (daemon, called) = bus.daemon(0).await;
    let other = bus.connect().await;
    let asked = asked(&bus, true, 20);
    called.notified().await;
    say(&other, 1, "failed").await;
    say(&daemon, 2, "canceled").await;
    say(&daemon, 1, "done").await;
    assert_eq!(asked.await.unwrap().unwrap(), "done");
}

#[tokio::test]
async fn a_restarted_daemon_is_asked_again_and_its_numbers_mean_other_jobs() {
    let bus = Bus::new();
    let (daemon, called) = bus.daemon(0).await;
    let asked = asked(&bus, true, 20);
    called.notified().await;
    daemon.close().await.unwrap();
    // The number of before is somebody else's job now, which may end before we have asked again.
    let (daemon, called) = bus.daemon(1).await;
    say(&daemon, 1, "failed").await;
    called.notified().await;
    say(&daemon, 2, "done").await;
    assert_eq!(asked.await.unwrap().unwrap(), "done");
}

#[tokio::test]
async fn a_daemon_that_stays_away_or_ends_again_is_named() {
    let bus = Bus::new();
    let (daemon, called) = bus.daemon(0).await;
    let away = asked(&bus, true, 1);
    called.notified().await;
    daemon.close().await.unwrap();
    let error = away.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("dstack-asking has ended") && error.contains("systemctl status"), "{error}");
    let (daemon, called) = bus.daemon(0).await;
    let twice = asked(&bus, true, 20);
    called.notified().await;
    daemon.close().await.unwrap();
    let (daemon, called) = bus.daemon(0).await;
    called.notified().await;
    daemon.close().await.unwrap();
    let error = twice.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("twice"), "{error}");
}

#[tokio::test]
async fn a_refusal_is_passed_on() {
    let bus = Bus::new();
    let (_daemon, _called) = bus.daemon(0).await;
    let error = asked(&bus, false, 20).await.unwrap().unwrap_err();
    assert!(matches!(&error, AskError::Refused(e) if e.to_string().contains("AccessDenied")), "{error}");
    assert_eq!(unit("org.dstack.ctmonitor1"), "dstack-ct-monitor");
}
