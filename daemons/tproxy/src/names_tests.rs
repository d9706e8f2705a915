// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]

use super::*;
use std::collections::HashMap;
use std::sync::Mutex;

/// Records by name; a name without values fails.
#[derive(Debug, Default)]
struct Zone {
    records: HashMap<String, Vec<String>>,
    asked: Mutex<Vec<String>>,
}

impl Lookup for Zone {
    fn txt<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Txt, String>> {
        self.asked.lock().unwrap().push(name.to_owned());
        Box::pin(async {
            match self.records.get(name) {
                None => Ok(Txt { values: Vec::new(), ttl: 0 }),
                Some(values) if values.is_empty() => Err("SERVFAIL".to_owned()),
                Some(values) => Ok(Txt { values: values.clone(), ttl: 60 }),
            }
        })
    }
}

const ID: &str = "3327603e03f5bd1f830812ca4a789277fc31f577";
const PREFIX: &str = "_dstack-app-address";

async fn resolve(records: &[(&str, &[&str])], name: &str) -> (Answer, Vec<String>) {
    let values = |values: &[&str]| values.iter().map(|v| (*v).to_owned()).collect();
    let records = records.iter().map(|(name, v)| ((*name).to_owned(), values(v))).collect();
    let zone = Arc::new(Zone { records, ..Zone::default() });
    let answer = Names::new(Arc::<Zone>::clone(&zone)).resolve(name, PREFIX).await;
    let asked = zone.asked.lock().unwrap().clone();
    (answer, asked)
}

#[tokio::test]
async fn the_first_usable_record_counts() {
    let value = format!("{ID}:8443");
    let target = Some(Target { id: ID.parse().unwrap(), port: 8443 });
    for record in [
        "_dstack-app-address.www.example.org",
        "_tapp-address.www.example.org",
        "_dstack-app-address-wildcard.example.org",
    ] {
        let (answer, asked) = resolve(&[(record, &[&value])], "www.example.org").await;
        assert_eq!(answer, Answer { target, ttl: 60 }, "{record}");
        assert_eq!(asked.last().unwrap(), record);
    }
    let mixed = ["v=spf1", &value];
    assert_eq!(resolve(&[("_tapp-address.a.b", &mixed)], "a.b").await.0.target, target);
}

#[tokio::test]
async fn p29_a_record_names_no_address() {
    for value in ["127.0.0.1:80", "10.0.0.2:80", "localhost:80", "[::1]:80", "3327:80", "x", ""] {
        let (answer, _) =
            resolve(&[("_dstack-app-address.www.example.org", &[value])], "www.example.org").await;
        assert_eq!(answer, Answer { target: None, ttl: NEGATIVE_TTL }, "{value}");
    }
}

#[tokio::test]
async fn no_answer_and_a_failure_are_kept_for_a_moment() {
    assert_eq!(resolve(&[], "www.example.org").await.0, Answer { target: None, ttl: NEGATIVE_TTL });
    let failing: &[(&str, &[&str])] = &[("_tapp-address.www.example.org", &[])];
    assert_eq!(resolve(failing, "www.example.org").await.0, Answer { target: None, ttl: FAILED_TTL });
    for bad in ["", "localhost", "a b.c", "A.b", "a..b", "a.b.", "*.b.c", "ä.b", &"a.".repeat(130)] {
        let (answer, asked) = resolve(&[], bad).await;
        assert_eq!((answer.target, asked.len()), (None, 0), "{bad}");
    }
}

#[test]
fn questions_stay_names() {
    assert_eq!(questions("a.b", "_tapp-address"), ["_tapp-address.a.b"]);
    let long = format!("{}.org", ["x".repeat(60).as_str(); 4].join("."));
    assert!(is_name(&long) && questions(&long, PREFIX).iter().all(|q| q.len() <= NAME_MAX));
}

/// Never answers.
#[derive(Debug)]
struct Silent;

impl Lookup for Silent {
    fn txt<'a>(&'a self, _name: &'a str) -> BoxFuture<'a, Result<Txt, String>> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn a_flood_of_names_is_bounded() {
    let names = Names::new(Arc::new(Silent));
    let mut pending: Vec<_> = (0..WAITING).map(|_| Box::pin(names.resolve("a.b", PREFIX))).collect();
    for lookup in &mut pending {
        assert!(futures_util::poll!(lookup).is_pending());
    }
    assert_eq!(names.resolve("a.b", PREFIX).await, Answer { target: None, ttl: 1 });
    pending.pop();
    assert!(futures_util::poll!(Box::pin(names.resolve("a.b", PREFIX))).is_pending());
}
