// SPDX-License-Identifier: Apache-2.0
//! Finding out whether an app answers at its mapped ports.

use crate::client::Client;
use dstack_service::api::teepod1::Port;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// How long to wait for the first answer after the app is up.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// There is no event for "the app listens now", so it is asked again after this time.
const PAUSE: Duration = Duration::from_millis(300);

/// What a port said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// Nobody listens, or the connection is closed at once.
    Nothing,
    /// Something listens, but does not speak HTTP.
    Open,
    /// An HTTP answer.
    Http,
    /// Not asked, since it cannot be reached from here.
    NotAsked,
}

impl Answer {
    /// For people.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Nothing => "does not answer yet",
            Self::Open => "accepts connections",
            Self::Http => "answers",
            Self::NotAsked => "not checked from here",
        }
    }
}

/// A mapped TCP port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// `http://ADDRESS:PORT/`.
    pub url: String,
    /// Port in the VM.
    pub vm_port: u16,
    /// What it said.
    pub answer: Answer,
}

/// Asks every TCP port, all at once, until it answers or patience ends.
pub async fn ask_all(client: &Client, ports: &[Port], patience: Duration) -> Vec<Reach> {
    let tcp = ports.iter().filter(|p| p.0 == "tcp");
    let asked = tcp.map(|port| ask(client.remote.as_deref(), port, patience));
    futures_util::future::join_all(asked).await
}

async fn ask(remote: Option<&str>, (_, address, host_port, vm_port): &Port, patience: Duration) -> Reach {
    let address: IpAddr = address.parse().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let (name, local) = reachable(address, remote);
    let url = format!("http://{name}:{host_port}/");
    let answer = match local {
        None => Answer::NotAsked,
        Some(ip) => until_answer(SocketAddr::new(ip, *host_port), patience).await,
    };
    Reach { url, vm_port: *vm_port, answer }
}

/// How a listening address is written in a URL, and the address to ask at, if it can be asked from here.
fn reachable(address: IpAddr, remote: Option<&str>) -> (String, Option<IpAddr>) {
    let host = remote.map(|r| r.rsplit_once('@').map_or(r, |(_, host)| host));
    match (address, host) {
        (ip, Some(host)) if ip.is_unspecified() => (host.to_owned(), None),
        (ip, Some(_)) => (written(ip), None),
        (IpAddr::V4(ip), None) if ip.is_unspecified() => {
            (Ipv4Addr::LOCALHOST.to_string(), Some(Ipv4Addr::LOCALHOST.into()))
        }
        (IpAddr::V6(ip), None) if ip.is_unspecified() => {
            (written(Ipv6Addr::LOCALHOST.into()), Some(Ipv6Addr::LOCALHOST.into()))
        }
        (ip, None) => (written(ip), Some(ip)),
    }
}

fn written(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

async fn until_answer(address: SocketAddr, patience: Duration) -> Answer {
    let deadline = Instant::now() + patience;
    loop {
        let answer = attempt(address).await;
        if answer != Answer::Nothing || Instant::now() + PAUSE > deadline {
            return answer;
        }
        sleep(PAUSE).await;
    }
}

/// One connection with one request. A forwarder accepts before the app does, so only bytes, or silence, count.
async fn attempt(address: SocketAddr) -> Answer {
    let Ok(Ok(mut stream)) = timeout(ATTEMPT, TcpStream::connect(address)).await else {
        return Answer::Nothing;
    };
    let request =
        format!("GET / HTTP/1.1\r\nHost: {address}\r\nUser-Agent: dstackctl\r\nConnection: close\r\n\r\n");
    if stream.write_all(request.as_bytes()).await.is_err() {
        return Answer::Nothing;
    }
    let mut head = [0; 5];
    match timeout(ATTEMPT, stream.read_exact(&mut head)).await {
        Err(_) => Answer::Open,
        Ok(Ok(_)) if head == *b"HTTP/" => Answer::Http,
        Ok(Ok(_)) => Answer::Open,
        Ok(Err(_)) => Answer::Nothing,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[test]
    fn addresses() {
        for (address, remote, url, local) in [
            ("127.0.0.1", None, "127.0.0.1", true),
            ("0.0.0.0", None, "127.0.0.1", true),
            ("::", None, "[::1]", true),
            ("0.0.0.0", Some("root@box"), "box", false),
            ("127.0.0.1", Some("box"), "127.0.0.1", false),
            ("fd00::1", None, "[fd00::1]", true),
        ] {
            let (name, ip) = reachable(address.parse().unwrap(), remote);
            assert_eq!((name.as_str(), ip.is_some()), (url, local), "{address} {remote:?}");
        }
    }

    async fn serve(reply: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 256];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(reply).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn answers() {
        assert_eq!(attempt(serve(b"HTTP/1.1 200 OK\r\n\r\n").await).await, Answer::Http);
        assert_eq!(attempt(serve(b"220 mail\r\n").await).await, Answer::Open);
        assert_eq!(attempt(serve(b"").await).await, Answer::Nothing);
    }
}
