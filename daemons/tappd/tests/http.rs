// SPDX-License-Identifier: Apache-2.0
//! The doors over real sockets: what is public, what is not, and to whom.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod common;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use common::{Journal, eventually};
use dstack_rpc::guest::{ListContainersResponse, SysInfo};
use dstack_rpc::{Call, Format, Listener, Peer, RpcError, ServeOptions, Service, Stream, client};
use dstack_tappd::agent::Agent;
use dstack_tappd::app::App;
use dstack_tappd::attest::Attestor;
use dstack_tappd::guest_api::{GuestApi, Power};
use dstack_tappd::logs::{Logs, Place};
use dstack_tappd::settings::Settings;
use dstack_tappd::vault::Vault;
use hyper::Method;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener};

const CONTAINERS: &str = r#"[{"Id":"ab","Names":["/app-web-1"],"Image":"web","Command":"run --token=secret",
    "Created":1700000000,"State":"running","Status":"Up 3 minutes"}]"#;

/// A stand-in for Docker that answers every request with the list above.
fn docker(directory: &Path) -> std::path::PathBuf {
    let path = directory.join("docker.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let read = stream.read(&mut request).await.unwrap();
            assert!(request[..read].starts_with(b"GET /v1.41/containers/json?all=true HTTP/1.1\r\n"));
            let length = CONTAINERS.len();
            let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{CONTAINERS}");
            stream.write_all(reply.as_bytes()).await.unwrap();
        }
    });
    path
}

fn agent(directory: &Path, app: App) -> Arc<Agent> {
    let settings = Settings { docker_socket: docker(directory), ..Settings::default() };
    let logs = Logs::start(Place::Directory(directory.into())).unwrap();
    let attestor = Attestor::new(directory, Arc::new(dstack_tdx_attest::detect));
    let vault = Vault::new(attestor, None, None).unwrap();
    Arc::new(Agent::new(app, vault, logs, &settings))
}

struct Server {
    address: std::net::SocketAddr,
    agent: Arc<Agent>,
}

fn serve(directory: &Path, app: App) -> Server {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let agent = agent(directory, app);
    let router = dstack_tappd::http::router(Arc::clone(&agent));
    let listener = Listener::from_fd(listener.into()).unwrap();
    tokio::spawn(dstack_rpc::serve(listener, router, ServeOptions::default(), std::future::pending()));
    Server { address, agent }
}

impl Server {
    async fn get(&self, path: &str) -> (u16, String) {
        let stream = Stream::Tcp(TcpStream::connect(self.address).await.unwrap());
        let limit = Duration::from_secs(10);
        let reply = client::exchange(stream, Method::GET, path, Default::default(), limit).await.unwrap();
        (reply.status.as_u16(), String::from_utf8(reply.body.to_vec()).unwrap())
    }
}

fn public() -> App {
    App { public_logs: true, public_sysinfo: true, name: "hello".into(), ..App::default() }
}

#[tokio::test]
async fn a_private_app_shows_its_ids_only() {
    let directory = tempfile::tempdir().unwrap();
    let server = serve(directory.path(), App { app_id: "aa".into(), ..App::default() });
    let (status, page) = server.get("/").await;
    assert!(status == 200 && page.contains("aa") && !page.contains("app-web-1") && !page.contains("Uptime"));
    assert_eq!(server.get("/metrics").await.0, 403);
    let (status, error) = server.get("/logs/app-web-1?follow").await;
    assert!(status == 403 && error.contains("public_logs"), "{error}");
    let (_, info) = server.get("/prpc/Worker.Info").await;
    assert!(info.contains(r#""app_id":"aa""#) && info.contains(r#""public_logs":false"#), "{info}");
}

#[tokio::test]
async fn a_public_app_shows_everything() {
    let directory = tempfile::tempdir().unwrap();
    let server = serve(directory.path(), public());
    let (_, page) = server.get("/").await;
    assert!(page.contains("app-web-1") && page.contains("Uptime") && !page.contains("secret"), "{page}");
    assert!(server.get("/style.css").await.1.contains("color-scheme"));
    assert!(server.get("/metrics").await.1.ends_with("# EOF\n"));
    assert!(server.get("/prpc/Version").await.1.contains(dstack_tappd::agent::VERSION));
    assert_eq!(server.get("/prpc/Worker.Dance").await.0, 404);
    assert_eq!(server.get("/nothing").await.0, 404);
}

#[tokio::test]
async fn logs_and_their_errors() {
    let Some(mut journal) = Journal::create() else { return };
    journal.line("app-web-1", "6", b"hello");
    let server = serve(journal.directory.path(), public());
    eventually(async || server.get("/logs/web?text&bare").await.1 == "hello\n").await;
    assert_eq!(server.get("/logs/web").await.1, "{\"channel\":\"stdout\",\"message\":\"aGVsbG8K\"}\n");
    assert_eq!(server.get("/logs/%2Fapp-web-1?text&bare&tail=0").await, (200, String::new()));
    for path in ["/logs/none", "/logs/..%2Fetc", "/logs/a%00b", "/logs/a%0Ab"] {
        let (status, body) = server.get(path).await;
        assert!(status == 200 && body.starts_with("{\"error\":\"") && body.ends_with("\"}"), "{path} {body}");
    }
    let (status, body) = server.get("/logs/web?tail=x").await;
    assert!(status == 400 && body.contains("tail must be"), "{body}");
}

#[tokio::test]
async fn a_follower_that_goes_away_frees_its_place_and_a_stop_ends_the_others() {
    let Some(mut journal) = Journal::create() else { return };
    journal.line("c", "6", b"hello");
    let server = serve(journal.directory.path(), public());
    eventually(async || server.get("/logs/c?text&bare").await.1 == "hello\n").await;
    // More than there are places, one after the other: each must be freed although nothing is written.
    for _ in 0..dstack_tappd::logs::engine::READERS_MAX * 2 {
        let mut head = [0; 12];
        let open = async |head: &mut [u8; 12]| {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            stream.write_all(b"GET /logs/c?follow HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
            stream.read_exact(head).await.unwrap();
            let mut rest = [0; 4096];
            let read = stream.read(&mut rest).await.unwrap();
            !String::from_utf8_lossy(&rest[..read]).contains("already")
        };
        eventually(async || open(&mut head).await).await;
    }
    let follow = server.get("/logs/c?follow&text&bare");
    let stop = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.agent.stop();
    };
    assert_eq!(tokio::join!(follow, stop).0.1, "hello\n");
}

#[derive(Default)]
struct Switch(Arc<AtomicU32>);

impl Power for Switch {
    async fn shut_down(&self) -> Result<(), String> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

const METHODS: [&str; 5] = ["Info", "SysInfo", "NetworkInfo", "ListContainers", "Shutdown"];

async fn ask<P: Power>(api: &GuestApi<P>, method: &str, peer: Option<Peer>) -> Result<Vec<u8>, RpcError> {
    let format = Format::Json;
    let service = String::new();
    let call = Call { service, method: method.into(), format, body: Default::default(), query: None, peer };
    api.call(call).await
}

#[tokio::test]
async fn t18_the_guest_api_answers_the_host_alone() {
    let directory = tempfile::tempdir().unwrap();
    let count = Arc::new(AtomicU32::new(0));
    let api = GuestApi::new(agent(directory.path(), App::default()), Switch(Arc::clone(&count)));
    let others = [
        None,
        Some(Peer::Vsock { cid: 1, port: 7 }),
        Some(Peer::Vsock { cid: 3, port: 7 }),
        Some(Peer::Tcp("127.0.0.1:1".parse().unwrap())),
        Some(Peer::Unix { uid: 0, gid: 0, pid: Some(1) }),
    ];
    for peer in others {
        for method in METHODS {
            let refused = ask(&api, method, peer.clone()).await.unwrap_err();
            assert_eq!(refused.status.as_u16(), 403, "{method} {peer:?}");
        }
    }
    assert_eq!(count.load(Ordering::Relaxed), 0);
    let host = Some(Peer::Vsock { cid: 2, port: 1 });
    for method in METHODS {
        ask(&api, method, host.clone()).await.unwrap();
    }
    assert_eq!(count.load(Ordering::Relaxed), 1);
    let info: SysInfo = serde_json::from_slice(&ask(&api, "SysInfo", host.clone()).await.unwrap()).unwrap();
    assert!(info.total_memory > 0);
    let list = ask(&api, "ListContainers", host.clone()).await.unwrap();
    let list: ListContainersResponse = serde_json::from_slice(&list).unwrap();
    assert_eq!(
        list.containers.first().map(|c| (c.state.as_str(), c.command.as_str())),
        Some(("running", ""))
    );
    assert_eq!(ask(&api, "Shutdown", host.clone()).await.unwrap(), b"null");
    assert_eq!(ask(&api, "Dance", host).await.unwrap_err().status.as_u16(), 404);
}

/// Asks the guest API's router for a container's log as this peer.
async fn ask_logs(agent: &Arc<Agent>, peer: Option<Peer>) -> StatusCode {
    let mut request = Request::get("/logs/web?text").body(Body::empty()).unwrap();
    if let Some(peer) = peer {
        request.extensions_mut().insert(peer);
    }
    let mut router = dstack_tappd::guest_api::router(Arc::clone(agent), Switch(Arc::default()));
    tower_service::Service::call(&mut router, request).await.unwrap().status()
}

#[tokio::test]
async fn t18_the_host_reads_public_logs_and_no_others() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let host = Some(Peer::Vsock { cid: 2, port: 1 });
    let public = agent(one.path(), App { public_logs: true, ..App::default() });
    let private = agent(two.path(), App::default());
    assert_eq!(ask_logs(&public, host.clone()).await, StatusCode::OK);
    assert_eq!(ask_logs(&private, host).await, StatusCode::FORBIDDEN);
    for peer in [None, Some(Peer::Vsock { cid: 3, port: 1 })] {
        assert_eq!(ask_logs(&public, peer).await, StatusCode::FORBIDDEN);
    }
}
