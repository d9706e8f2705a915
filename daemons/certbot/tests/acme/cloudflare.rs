// SPDX-License-Identifier: Apache-2.0
//! A local API of Cloudflare: its paths, pages, answers and error codes, writing into the DNS server that the authority
//! asks.

use crate::servers::{SECRET, kdig};
use crate::world::{World, engine, maintain};
use axum::Json;
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use base64::Engine as _;
use dstack_certbot::caa::Caa;
use dstack_certbot::dns::rfc2136::{Algorithm, Key, Rfc2136};
use dstack_certbot::dns::{Data, Provider};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// The token that may do everything.
pub const TOKEN: &str = "good-token";
const ZONE: &str = "023e105f4ecef8ad9ca31a8372d0c353";

/// Whoever writes into the DNS server for the tests.
pub fn writer(port: u16) -> Rfc2136 {
    let secret = base64::engine::general_purpose::STANDARD.decode(SECRET).unwrap().into();
    let key = Key { name: "dstack".into(), algorithm: Algorithm::Sha256, secret };
    Rfc2136::new(format!("127.0.0.1:{port}").parse().unwrap(), None, &key).unwrap()
}

#[derive(Clone)]
struct Api {
    rows: Arc<Mutex<Vec<Value>>>,
    asked: Arc<Mutex<Vec<String>>>,
    dns: u16,
}

fn envelope(result: Value) -> Value {
    json!({"result": result, "success": true, "errors": [], "messages": []})
}

fn refusal(status: u16, code: u64, message: &str) -> Response {
    let body = json!({"result": null, "success": false, "errors": [{"code": code, "message": message}], "messages": []});
    (StatusCode::from_u16(status).unwrap(), Json(body)).into_response()
}

/// A token may be wrong, or may lack the permission to edit.
async fn judge(State(api): State<Api>, request: Request, next: Next) -> Response {
    api.asked.lock().unwrap().push(format!("{} {}", request.method(), request.uri()));
    let token = request.headers().get("authorization").and_then(|v| v.to_str().ok()).unwrap_or_default();
    match token.strip_prefix("Bearer ") {
        Some(TOKEN) => next.run(request).await,
        Some("read-token") if request.method() == "GET" => next.run(request).await,
        Some("read-token") => refusal(403, 10000, "Authentication error"),
        _ => refusal(403, 9109, "Invalid access token"),
    }
}

async fn zones(Query(query): Query<HashMap<String, String>>) -> Json<Value> {
    let found = (query["name"] == "example.test").then(|| json!({"id": ZONE, "name": "example.test"}));
    Json(envelope(json!(found.into_iter().collect::<Vec<_>>())))
}

async fn list(
    State(api): State<Api>,
    Path(zone): Path<String>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    if zone != ZONE {
        return refusal(
            404,
            7003,
            "Could not route to /zones/x/dns_records, perhaps your object identifier is invalid?",
        );
    }
    let number = |key: &str, default: usize| query.get(key).and_then(|v| v.parse().ok()).unwrap_or(default);
    let (per_page, page) = (number("per_page", 100).min(100), number("page", 1));
    let rows = api.rows.lock().unwrap();
    let matching: Vec<&Value> = rows
        .iter()
        .filter(|row| {
            ["name", "type"]
                .iter()
                .all(|key| query.get(*key).is_none_or(|wanted| row[*key] == wanted.as_str()))
        })
        .collect();
    let shown: Vec<&Value> = matching.iter().skip((page - 1) * per_page).take(per_page).copied().collect();
    let mut body = envelope(json!(shown));
    let pages = matching.len().div_ceil(per_page);
    body["result_info"] = json!({"page": page, "per_page": per_page, "count": shown.len(), "total_count": matching.len(), "total_pages": pages});
    Json(body).into_response()
}

fn data_of(row: &Value) -> Data {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    match row["type"].as_str().unwrap() {
        "TXT" => Data::Txt(text(&row["content"]).trim_matches('"').to_owned()),
        "CAA" => Data::Caa(Caa::new(&text(&row["data"]["tag"]), &text(&row["data"]["value"]))),
        other => panic!("{other}"),
    }
}

async fn create(State(api): State<Api>, Json(mut row): Json<Value>) -> Response {
    let data = data_of(&row);
    if api
        .rows
        .lock()
        .unwrap()
        .iter()
        .any(|r| r["name"] == row["name"] && r["type"] == row["type"] && data_of(r) == data)
    {
        return refusal(400, 81058, "An identical record already exists.");
    }
    let name = row["name"].as_str().unwrap().parse().unwrap();
    writer(api.dns).add(&name, &data).await.unwrap();
    let id = format!("{:032x}", api.asked.lock().unwrap().len());
    row["id"] = json!(id);
    if let Data::Caa(caa) = &data {
        row["content"] = json!(caa.to_string());
    }
    api.rows.lock().unwrap().push(row.clone());
    Json(envelope(row)).into_response()
}

async fn remove(State(api): State<Api>, Path((_, id)): Path<(String, String)>) -> Response {
    let found = {
        let mut rows = api.rows.lock().unwrap();
        rows.iter().position(|row| row["id"] == id.as_str()).map(|at| rows.remove(at))
    };
    let Some(row) = found else { return refusal(404, 81044, "Record does not exist.") };
    writer(api.dns).remove(&row["name"].as_str().unwrap().parse().unwrap(), &data_of(&row)).await.unwrap();
    Json(envelope(json!({"id": id}))).into_response()
}

/// Serves it; gives its address.
async fn serve(api: Api) -> String {
    let router = axum::Router::new()
        .route("/zones", get(zones))
        .route("/zones/{zone}/dns_records", get(list).post(create))
        .route("/zones/{zone}/dns_records/{id}", delete(remove))
        .layer(middleware::from_fn_with_state(api.clone(), judge))
        .with_state(api);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

fn toml(world: &World, base: &str, more: &str) -> String {
    let text = world.toml(more, "");
    let dns = text.find("[dns]").unwrap();
    let propagation = text.find("[propagation]").unwrap();
    format!(
        "{}[dns]\nprovider = \"cloudflare\"\n[dns.cloudflare]\nbase_url = \"{base}\"\n{}",
        &text[..dns],
        &text[propagation..]
    )
}

/// With more records of the name than one page has, so that ours are on the second.
#[tokio::test]
async fn issued_and_renewed_by_the_api() {
    let world = World::new();
    let other = |n: usize| json!({"id": format!("other{n}"), "type": "TXT", "name": "_acme-challenge.apps.example.test", "content": format!("\"other{n}\"")});
    let api = Api {
        rows: Arc::new(Mutex::new((0..120).map(other).collect())),
        asked: Arc::default(),
        dns: world.dns,
    };
    let engine = engine(&toml(&world, &serve(api.clone()).await, ""), &world.path("work"));
    maintain(&engine, false).await.unwrap();
    let first = world.check(&engine);
    maintain(&engine, true).await.unwrap();
    assert_ne!(world.check(&engine).public_key, first.public_key);
    let rows = api.rows.lock().unwrap();
    let kinds = |kind: &str| rows.iter().filter(|row| row["type"] == kind).count();
    assert_eq!((kinds("TXT"), kinds("CAA")), (120, 2), "records of others stay, ours are removed");
    let asked = api.asked.lock().unwrap();
    assert!(asked.iter().any(|call| call.contains("page=2")), "{asked:?}");
}

/// When nothing has to be done, the API is asked nothing.
#[tokio::test]
async fn a_run_without_work_costs_no_request() {
    let world = World::new();
    let api = Api { rows: Arc::default(), asked: Arc::default(), dns: world.dns };
    let engine = engine(&toml(&world, &serve(api.clone()).await, ""), &world.path("work"));
    maintain(&engine, false).await.unwrap();
    let first = api.asked.lock().unwrap().len();
    assert!(first < 40, "{first} requests for a first certificate");
    maintain(&engine, false).await.unwrap();
    assert_eq!(api.asked.lock().unwrap().len(), first);
}

#[tokio::test]
async fn tokens_that_lack_something_are_explained() {
    let world = World::new();
    let api = Api { rows: Arc::default(), asked: Arc::default(), dns: world.dns };
    let base = serve(api).await;
    for (token, words) in [("none", "credential certbot-cloudflare"), ("read-token", "Zone / DNS / Edit")] {
        let secrets = |_: &str| Ok(Some(zeroize::Zeroizing::new(token.as_bytes().to_vec())));
        let settings = crate::world::settings(&toml(&world, &base, ""));
        let engine = dstack_certbot::assemble::assemble(settings, &world.path(token), &secrets).unwrap();
        let error = maintain(&engine, true).await.unwrap_err().to_string();
        assert!(error.contains(words), "{token}: {error}");
    }
    let more = "cf_zone_id = \"ffffffffffffffffffffffffffffffff\"";
    let engine = engine(&toml(&world, &base, more), &world.path("work"));
    let error = maintain(&engine, true).await.unwrap_err().to_string();
    assert!(error.contains("cf_zone_id"), "{error}");
    assert_eq!(kdig(world.dns, "_acme-challenge.apps.example.test", "TXT"), [] as [&str; 0]);
}
