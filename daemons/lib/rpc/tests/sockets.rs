// SPDX-License-Identifier: Apache-2.0
//! Server and client over real sockets.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use dstack_rpc::limits::REQUEST_MAX;
use dstack_rpc::teepod::Id;
use dstack_rpc::{Call, ClientError, Listener, Peer, RpcError, ServeOptions, Service, Stream, client};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

#[derive(Default)]
struct Echo {
    hanging: Arc<tokio::sync::Notify>,
}

impl Service for Echo {
    const NAMES: &'static [&'static str] = &["Echo"];

    async fn call(&self, call: Call) -> Result<Vec<u8>, RpcError> {
        match call.method.as_str() {
            "Same" => call.reply(&call.args::<Id>()?),
            "Nothing" => call.reply(&()),
            "Peer" => call.reply(&Id { id: format!("{:?}", call.peer) }),
            "Fail" => Err(RpcError::failed("told to fail")),
            "Hang" => {
                self.hanging.notify_one();
                std::future::pending().await
            }
            other => Err(RpcError::unknown_method(other)),
        }
    }
}

struct Server {
    path: PathBuf,
    _directory: tempfile::TempDir,
    hanging: Arc<tokio::sync::Notify>,
    stop: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<()>,
}

fn start(options: ServeOptions) -> Server {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listener = Listener::from_fd(UnixListener::bind(&path).unwrap().into()).unwrap();
    let (stop, stopped) = oneshot::channel();
    let echo = Echo::default();
    let hanging = Arc::clone(&echo.hanging);
    let router = dstack_rpc::router("/prpc", Arc::new(echo));
    let served = tokio::spawn(dstack_rpc::serve(listener, router, options, async move {
        let _ = stopped.await;
    }));
    Server { path, _directory: directory, hanging, stop, served }
}

impl Server {
    fn connect(&self) -> Stream {
        Stream::from_fd(UnixStream::connect(&self.path).unwrap().into()).unwrap()
    }

    /// Sends bytes, shuts the sending side when asked, and reads until the server closes.
    async fn raw(&self, bytes: &[u8], shutdown: bool) -> String {
        let mut stream = self.connect();
        stream.write_all(bytes).await.unwrap();
        if shutdown {
            stream.shutdown().await.unwrap();
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

#[tokio::test]
async fn json_calls_and_their_errors() {
    let server = start(ServeOptions::default());
    let id = Id { id: "ü".into() };
    let same: Id = client::call(server.connect(), "/prpc/Echo.Same?json", &id).await.unwrap();
    assert_eq!(same, id);
    let () = client::call(server.connect(), "/prpc/Nothing", &()).await.unwrap();
    let peer: Id = client::call(server.connect(), "/prpc/Peer", &()).await.unwrap();
    assert!(peer.id.starts_with("Some(Unix { uid: "), "{}", peer.id);
    for (path, status, message) in [
        ("/prpc/Echo.Fail", 400, "told to fail"),
        ("/prpc/Dance", 404, "there is no method \"Dance\""),
        ("/prpc/Other.Same", 404, "there is no method \"Other.Same\""),
        ("/elsewhere", 404, "HTTP status 404 Not Found"),
    ] {
        match client::call::<_, Id, _>(server.connect(), path, &()).await {
            Err(ClientError::Remote { status: s, message: m }) => {
                assert_eq!((s.as_u16(), m.as_str()), (status, message));
            }
            other => panic!("{path}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_call_without_answer_ends_in_time() {
    let server = start(ServeOptions::default());
    let limit = Duration::from_millis(50);
    let called = client::call_within::<_, Id, _>(server.connect(), "/prpc/Hang", &(), limit).await;
    assert!(matches!(called, Err(ClientError::Timeout(_))), "{called:?}");
}

#[tokio::test]
async fn the_javascript_sdk_half_closes_and_gets_a_length() {
    let server = start(ServeOptions { half_close: true, ..Default::default() });
    let body = r#"{"id":"x"}"#;
    let request = format!(
        "POST /prpc/Echo.Same HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = server.raw(request.as_bytes(), true).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("content-length: 10\r\n") && answer.ends_with(body), "{answer}");
    assert!(!answer.contains("chunked"));
}

#[tokio::test]
async fn get_protobuf_keep_alive_and_close() {
    let server = start(ServeOptions::default());
    let two = "GET /prpc/Same?id=a HTTP/1.1\r\nHost: h\r\n\r\nPOST /prpc/Same HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 3\r\n\r\n\n\u{1}b";
    let answer = server.raw(two.as_bytes(), false).await;
    assert!(answer.contains("{\"id\":\"a\"}"), "{answer}");
    assert!(answer.contains("application/octet-stream") && answer.ends_with("\n\u{1}b"), "{answer}");
    let answer = server
        .raw(b"POST /prpc/Fail HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", false)
        .await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.ends_with("\n\u{c}told to fail"), "{answer}");
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused() {
    let server = start(ServeOptions::default());
    let body = vec![b' '; REQUEST_MAX + 1].into();
    let limit = Duration::from_secs(20);
    let reply = client::exchange(server.connect(), hyper::Method::POST, "/prpc/Same", body, limit).await;
    // The server may close before it has read everything, so that the client sees a broken pipe instead.
    if let Ok(reply) = reply {
        assert_eq!(reply.status.as_u16(), 413);
    }
}

#[tokio::test]
async fn connections_over_the_cap_wait_and_a_stop_drains() {
    let server =
        start(ServeOptions { connections: 1, drain: Duration::from_millis(100), ..Default::default() });
    let hanging = server.connect();
    let hang =
        tokio::spawn(client::call_within::<_, Id, _>(hanging, "/prpc/Hang", &(), Duration::from_secs(30)));
    let limit = Duration::from_millis(200);
    server.hanging.notified().await;
    let second = client::call_within::<_, Id, _>(server.connect(), "/prpc/Same", &(), limit).await;
    assert!(matches!(second, Err(ClientError::Timeout(_))), "{second:?}");
    server.stop.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(5), server.served).await.unwrap().unwrap();
    assert!(hang.await.unwrap().is_err());
}

#[tokio::test]
async fn tcp_and_refused_descriptors() {
    let std = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = std.local_addr().unwrap();
    let listener = Listener::from_fd(std.into()).unwrap();
    let accepted = tokio::spawn(async move { listener.accept().await.unwrap().1 });
    let stream = std::net::TcpStream::connect(address).unwrap();
    assert!(matches!(accepted.await.unwrap(), Peer::Tcp(a) if a.ip().is_loopback()));
    assert!(Listener::from_fd(stream.into()).is_err());
    assert!(Stream::from_fd(std::fs::File::open("/dev/null").unwrap().into()).is_err());
}
