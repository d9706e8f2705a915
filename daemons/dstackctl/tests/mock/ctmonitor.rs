// SPDX-License-Identifier: Apache-2.0
//! A certificate monitor with an alert, that finds another one in each check.

use super::bus::Bus;
use dstack_service::api::ctmonitor1::{AlertRow, Error, NAME, PATH, SourceRow};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, OwnedObjectPath, OwnedVariant, Variant, interface};

pub const ALERT: &str = "0101010101010101010101010101010101010101010101010101010101010101";
pub const LATER: &str = "0202020202020202020202020202020202020202020202020202020202020202";

/// What it has.
#[derive(Debug, Clone, Default)]
pub struct CtMonitor {
    pub acknowledged: Arc<Mutex<Vec<String>>>,
    /// What the next check finds, and what goes wrong in it.
    pub finds: Arc<Mutex<(bool, String)>>,
    /// Told of each check that has begun; such a check never ends.
    pub begun: Option<Arc<Notify>>,
    pub checked: Arc<Mutex<bool>>,
}

fn owned(values: Vec<(&str, Variant<'_>)>) -> HashMap<String, OwnedVariant> {
    values.into_iter().map(|(k, v)| (k.to_owned(), OwnedVariant::try_from(v).unwrap())).collect()
}

fn row(id: &str, acknowledged: bool) -> AlertRow {
    owned(vec![
        ("id", Variant::from(id.to_owned())),
        ("kind", Variant::from("unknown-key".to_owned())),
        ("text", Variant::from("text".to_owned())),
        ("place", Variant::from("https://crt.sh/?id=7".to_owned())),
        ("names", Variant::from(vec!["*.apps.example.com".to_owned(), "b.example".to_owned()])),
        ("issuer", Variant::from("CN=R11".to_owned())),
        ("first_seen", Variant::from(1_700_000_000_u64)),
        ("acknowledged", Variant::from(u64::from(acknowledged))),
        ("settled", Variant::from(0_u64)),
    ])
}

impl CtMonitor {
    pub async fn start(&self, bus: &Bus) -> Connection {
        let builder = zbus::conn::Builder::address(bus.address.as_str());
        builder.serve_at(PATH, self.clone()).name(NAME).build().await.unwrap()
    }

    fn has(&self, id: &str) -> bool {
        self.acknowledged.lock().unwrap().iter().any(|a| a == id)
    }
}

#[interface(name = "org.dstack.ctmonitor1.Manager")]
impl CtMonitor {
    async fn check(
        &self,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> Result<OwnedObjectPath, Error> {
        let job = OwnedObjectPath::try_from("/org/dstack/ctmonitor1/job/1").unwrap();
        if let Some(begun) = &self.begun {
            begun.notify_one();
            return Ok(job);
        }
        *self.checked.lock().unwrap() = self.finds.lock().unwrap().0;
        Self::job_removed(&emitter, 1, job.clone(), "done").await?;
        Ok(job)
    }

    fn list_alerts(&self) -> Vec<AlertRow> {
        let mut rows = vec![row(ALERT, self.has(ALERT))];
        if *self.checked.lock().unwrap() {
            rows.push(row(LATER, self.has(LATER)));
        }
        rows
    }

    fn list_sources(&self) -> Vec<SourceRow> {
        vec![owned(vec![
            ("name", Variant::from("crt.sh apps.example.com".to_owned())),
            ("last_success", Variant::from(1_700_000_000_u64)),
            ("failures", Variant::from(2_u32)),
            ("pending", Variant::from(3_u64)),
            ("position", Variant::from(41_u64)),
            ("error", Variant::from("HTTP status 502".to_owned())),
        ])]
    }

    fn acknowledge(&self, id: String) -> Result<(), Error> {
        if ![ALERT, LATER].contains(&id.as_str()) {
            return Err(Error::NoSuchAlert(format!("there is no alert {id}")));
        }
        self.acknowledged.lock().unwrap().push(id);
        Ok(())
    }

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: OwnedObjectPath,
        result: &str,
    ) -> zbus::Result<()>;

    #[zbus(property)]
    fn configured(&self) -> bool {
        true
    }

    #[zbus(property)]
    fn domains(&self) -> Vec<String> {
        vec!["apps.example.com".into()]
    }

    #[zbus(property)]
    fn status(&self) -> String {
        "Watching apps.example.com".into()
    }

    #[zbus(property)]
    fn alerts(&self) -> u32 {
        1
    }

    #[zbus(property)]
    fn known_keys(&self) -> u32 {
        2
    }

    #[zbus(property)]
    fn last_check(&self) -> u64 {
        1_700_000_100
    }

    #[zbus(property)]
    fn last_success(&self) -> u64 {
        0
    }

    #[zbus(property)]
    fn last_error(&self) -> String {
        self.finds.lock().unwrap().1.clone()
    }

    #[zbus(property)]
    fn version(&self) -> String {
        "0.1.0".into()
    }
}
