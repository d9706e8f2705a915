// SPDX-License-Identifier: Apache-2.0
//! An ingress with two instances.

use super::bus::Bus;
use dstack_service::api::tproxy1::{Error, InstanceRow, NAME, PATH, RouteRow};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use zbus::{Connection, OwnedVariant, Variant, interface};

/// What was called.
#[derive(Debug, Clone, Default)]
pub struct Tproxy {
    pub calls: Arc<Mutex<Vec<String>>>,
}

pub const ONLINE: &str = "0101010101010101010101010101010101010101";
pub const CLONED: &str = "0202020202020202020202020202020202020202";

fn row(id: &str, online: bool, clone_alarm: u64) -> InstanceRow {
    let values = [
        ("id", Variant::from(id.to_owned())),
        ("app", Variant::from("aa".repeat(20))),
        ("address", Variant::from("10.0.0.2".to_owned())),
        ("public_key", Variant::from("key".to_owned())),
        ("registered", Variant::from(1_700_000_000_u64)),
        ("handshake", Variant::from(if online { 1_700_000_100_u64 } else { 0 })),
        ("online", Variant::from(online)),
        ("drained", Variant::from(false)),
        ("clone_alarm", Variant::from(clone_alarm)),
        ("connected", Variant::from(7_u64)),
        ("failed", Variant::from(1_u64)),
        ("open", Variant::from(3_u64)),
    ];
    values.into_iter().map(|(k, v)| (k.to_owned(), OwnedVariant::try_from(v).unwrap())).collect()
}

impl Tproxy {
    pub async fn start(&self, bus: &Bus) -> Connection {
        let builder = zbus::conn::Builder::address(bus.address.as_str());
        builder.serve_at(PATH, self.clone()).name(NAME).build().await.unwrap()
    }

    fn change(&self, verb: &str, instance: &str) -> Result<(), Error> {
        self.calls.lock().unwrap().push(format!("{verb} {instance}"));
        match instance {
            ONLINE | CLONED => Ok(()),
            other => Err(Error::NoSuchInstance(format!("no instance {other} is registered"))),
        }
    }
}

#[interface(name = "org.dstack.tproxy1.Manager")]
impl Tproxy {
    fn list_instances(&self) -> Vec<InstanceRow> {
        vec![row(ONLINE, true, 0), row(CLONED, false, 5)]
    }

    fn get_instance(&self, instance: String) -> Result<InstanceRow, Error> {
        self.change("Get", &instance).map(|()| row(&instance, true, 0))
    }

    fn list_routes(&self) -> Vec<RouteRow> {
        Vec::new()
    }

    fn drain(&self, instance: String) -> Result<(), Error> {
        self.change("Drain", &instance)
    }

    fn undrain(&self, instance: String) -> Result<(), Error> {
        self.change("Undrain", &instance)
    }

    fn remove(&self, instance: String) -> Result<(), Error> {
        self.change("Remove", &instance)
    }

    fn stats(&self) -> HashMap<String, u64> {
        HashMap::from([("accepted".to_owned(), 9), ("open".to_owned(), 3)])
    }

    #[zbus(property)]
    fn configured(&self) -> bool {
        true
    }

    #[zbus(property)]
    fn base_domain(&self) -> String {
        "apps.example.com".into()
    }

    #[zbus(property)]
    fn endpoint(&self) -> String {
        "192.0.2.1:51820".into()
    }

    #[zbus(property)]
    fn public_key(&self) -> String {
        "server key".into()
    }

    #[zbus(property)]
    fn status(&self) -> String {
        "Serving apps.example.com: 2 instances, 1 online".into()
    }

    #[zbus(property)]
    fn registered(&self) -> u32 {
        2
    }

    #[zbus(property)]
    fn online(&self) -> u32 {
        1
    }

    #[zbus(property)]
    fn generation(&self) -> u64 {
        4
    }

    #[zbus(property)]
    fn version(&self) -> String {
        "0.1.0".into()
    }
}
