// SPDX-License-Identifier: Apache-2.0
//! A server that answers as crt.sh does, and as what stands before it does when crt.sh is down.

use crate::certs::Issued;
use crate::server::{Handler, Reply, Server};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use time::OffsetDateTime;

#[derive(Default)]
pub struct State {
    pub listed: BTreeMap<u64, Issued>,
    /// Answers to targets that contain a text, before anything else.
    pub faults: Vec<(String, Reply)>,
}

pub struct Crtsh {
    pub server: Server,
    pub state: Arc<Mutex<State>>,
}

fn stamp(time: OffsetDateTime) -> String {
    let (date, clock) = (time.date(), time.time());
    format!("{date}T{:02}:{:02}:{:02}", clock.hour(), clock.minute(), clock.second())
}

fn entry(id: u64, issued: &Issued) -> serde_json::Value {
    serde_json::json!({
        "issuer_ca_id": 295_815,
        "issuer_name": "C=XX, O=Test, CN=Test CA",
        "common_name": issued.names.first(),
        "name_value": issued.names.join("\n"),
        "id": id,
        "entry_timestamp": format!("{}.825", stamp(issued.not_before)),
        "not_before": stamp(issued.not_before),
        "not_after": stamp(issued.not_after),
        "serial_number": format!("{:016x}", issued.serial),
        "result_count": 2,
    })
}

pub fn answer(state: &State, target: &str) -> Reply {
    if let Some((_, reply)) = state.faults.iter().find(|(part, _)| target.contains(part.as_str())) {
        return reply.clone();
    }
    if let Some(query) = target.strip_prefix("/?q=") {
        assert!(query.ends_with("&output=json&limit=10000"), "{target}");
        let list: Vec<_> = state.listed.iter().rev().map(|(id, issued)| entry(*id, issued)).collect();
        return Reply::ok(serde_json::to_vec(&list).unwrap()).with("Content-Type", "application/json");
    }
    let id = target.strip_prefix("/?d=").and_then(|id| id.parse().ok());
    match id.and_then(|id: u64| state.listed.get(&id)) {
        Some(issued) => Reply::ok(issued.pem.clone()).with("Content-Type", "application/pkix-cert"),
        None => Reply::page(404, "Not Found"),
    }
}

impl Crtsh {
    pub async fn start() -> Self {
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        let handler: Handler = Arc::new(move |target| answer(&shared.lock().unwrap(), target));
        Self { server: Server::start(handler).await, state }
    }

    pub fn list(&self, id: u64, issued: Issued) {
        self.state.lock().unwrap().listed.insert(id, issued);
    }

    pub fn fault(&self, part: &str, reply: Reply) {
        self.state.lock().unwrap().faults.push((part.into(), reply));
    }

    pub fn mend(&self) {
        self.state.lock().unwrap().faults.clear();
    }
}
