// SPDX-License-Identifier: Apache-2.0
//! The operator's webhook only narrows.

use crate::keys::{COMPOSE, other_compose};
use crate::world::{Boot, Setup, WANTS, World, reason};
use dstack_kms::settings::{Endpoint, Webhook};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

/// Answers each question with this HTTP reply; an empty one is never sent.
fn serve(socket: &Path, reply: String) -> tokio::task::JoinHandle<String> {
    let listener = UnixListener::bind(socket).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = Vec::new();
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&asked).contains("\"root\"") {
            let read = stream.read(&mut buffer).await.unwrap();
            asked.extend_from_slice(&buffer[..read]);
        }
        if reply.is_empty() {
            std::future::pending::<()>().await;
        }
        stream.write_all(reply.as_bytes()).await.unwrap();
        String::from_utf8(asked).unwrap()
    })
}

/// SHA-256 over registers and more, hex.
fn sha256(registers: &[[u8; 48]], more: &[u8]) -> String {
    hex::encode(Sha256::new().chain_update(registers.as_flattened()).chain_update(more).finalize())
}

fn http(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

async fn world(socket: PathBuf) -> World {
    let endpoint = Endpoint::Unix(socket);
    let webhook = Webhook { endpoint, base: String::new(), timeout: Duration::from_millis(300) };
    World::with(Setup { webhook: Arc::new(webhook), ..Setup::default() }).await
}

#[tokio::test]
async fn t17_everything_but_a_yes_is_a_denial() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        (http("200 OK", r#"{"isAllowed":false,"reason":"not today"}"#), "not today"),
        (http("200 OK", "{}"), "denied"),
        (http("200 OK", "yes"), "failed"),
        (http("500 Broken", r#"{"isAllowed":true}"#), "failed"),
        (String::new(), "did not answer"),
    ];
    for (number, (reply, expected)) in cases.into_iter().enumerate() {
        let socket = dir.path().join(number.to_string());
        let server = serve(&socket, reply);
        let error = reason(world(socket).await.app_key(&Boot::of(COMPOSE, WANTS)).await);
        assert!(error.contains(expected) && error.contains("webhook"), "{number}: {error}");
        server.abort();
    }
    let absent = world(dir.path().join("absent")).await;
    assert!(reason(absent.app_key(&Boot::of(COMPOSE, WANTS)).await).contains("denial"));
}

#[tokio::test]
async fn t17_a_yes_lets_pass_and_never_widens() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("yes");
    let yes = http("200 OK", r#"{"isAllowed":true,"gatewayAppId":"any"}"#);
    let server = serve(&socket, yes.clone());
    let world = world(socket).await;
    let boot = Boot::of(COMPOSE, WANTS);
    let keys = world.app_key(&boot).await.unwrap();
    assert_eq!(keys.gateway_app_id, "", "a webhook names no gateway");
    let asked = server.await.unwrap();
    for part in [
        "POST /bootAuth/app".to_owned(),
        format!("\"appId\":\"{}\"", boot.app),
        format!("\"composeHash\":\"{}\"", boot.hash()),
        "\"tcbStatus\":\"UpToDate\"".into(),
        "\"mrAggregated\":\"".into(),
        format!("\"mrImage\":\"{}\"", sha256(&[[1; 48], [0; 48], [0; 48]], &[])),
        format!("\"mrSystem\":\"{}\"", sha256(&[[1; 48], [0; 48], [0; 48], [0; 48]], &[0; 32])),
        format!("\"mrKeyProvider\":\"{}\",\"keyProviderInfo\":\"\"", "00".repeat(32)),
    ] {
        assert!(asked.contains(&part), "{part} in {asked}");
    }
    // What the registry refuses is refused without asking.
    let claimed = Boot::of(&other_compose(1), WANTS).claiming(boot.app);
    assert!(reason(world.app_key(&claimed).await).contains("not allowed"));
}
