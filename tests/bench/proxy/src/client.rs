// SPDX-License-Identifier: Apache-2.0
//! One test connection through a proxy.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, HandshakeKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_rustls::TlsConnector;

use crate::backend::{frame, sink_bulk, DOWN, ECHO, FRAME, UP};

/// How a connection reaches its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Passthrough, with a full TLS handshake against the backend.
    Tls,
    /// Passthrough, a ClientHello and then plain bytes (see `PORT_RAW`).
    Raw,
    /// TLS ends at the proxy.
    Term,
}

/// Everything needed to open one connection.
#[derive(Clone)]
pub struct Target {
    pub addr: SocketAddr,
    pub path: Path,
    pub sni: String,
    pub tls: Arc<ClientConfig>,
    /// ready-made ClientHello bytes, for `Path::Raw`
    pub hello: Arc<Vec<u8>>,
}

pub enum Conn {
    Raw(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// No single connection of a test may hang longer than this.
pub const OP_LIMIT: Duration = Duration::from_secs(15);

impl Target {
    pub async fn open(&self) -> Result<Conn> {
        let mut s = timeout(OP_LIMIT, TcpStream::connect(self.addr))
            .await
            .context("connect")??;
        s.set_nodelay(true)?;
        match self.path {
            Path::Raw => {
                s.write_all(&self.hello).await?;
                Ok(Conn::Raw(s))
            }
            _ => {
                let name = ServerName::try_from(self.sni.clone())?;
                let c = TlsConnector::from(self.tls.clone());
                let s = timeout(OP_LIMIT, c.connect(name, s))
                    .await
                    .context("handshake timeout")??;
                Ok(Conn::Tls(Box::new(s)))
            }
        }
    }
}

impl Conn {
    pub fn resumed(&self) -> bool {
        match self {
            Conn::Raw(_) => false,
            Conn::Tls(s) => s.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed),
        }
    }

    async fn send(&mut self, f: &[u8]) -> Result<()> {
        match self {
            Conn::Raw(s) => s.write_all(f).await?,
            Conn::Tls(s) => {
                s.write_all(f).await?;
                s.flush().await?;
            }
        }
        Ok(())
    }

    async fn recv_frame(&mut self) -> Result<()> {
        let mut f = [0u8; FRAME];
        match self {
            Conn::Raw(s) => s.read_exact(&mut f).await?,
            Conn::Tls(s) => s.read_exact(&mut f).await?,
        };
        anyhow::ensure!(f[FRAME - 1] == 0x5a, "wrong answer");
        Ok(())
    }

    /// One request of 1 KB and its answer of 1 KB.
    pub async fn echo(&mut self) -> Result<()> {
        timeout(OP_LIMIT, async {
            self.send(&frame(ECHO, 0)).await?;
            self.recv_frame().await
        })
        .await
        .context("no answer in time")?
    }

    /// Send a request, close our sending side, and still expect the answer.
    pub async fn echo_half_closed(&mut self) -> Result<()> {
        timeout(OP_LIMIT, async {
            self.send(&frame(ECHO, 0)).await?;
            match self {
                Conn::Raw(s) => s.shutdown().await?,
                Conn::Tls(s) => s.shutdown().await?,
            }
            self.recv_frame().await
        })
        .await
        .context("no answer in time")?
    }

    pub async fn download(&mut self, len: u64, buf: &mut [u8]) -> Result<()> {
        self.send(&frame(DOWN, len)).await?;
        match self {
            Conn::Raw(s) => sink_bulk(s, len).await?,
            Conn::Tls(s) => {
                let mut left = len;
                while left > 0 {
                    let n = s.read(buf).await?;
                    anyhow::ensure!(n > 0, "closed with {left} bytes missing");
                    left -= n as u64;
                }
            }
        }
        Ok(())
    }

    pub async fn upload(&mut self, len: u64, buf: &[u8]) -> Result<()> {
        self.send(&frame(UP, len)).await?;
        match self {
            Conn::Raw(s) => crate::backend::send_bulk(s, len).await?,
            Conn::Tls(s) => {
                let mut left = len;
                while left > 0 {
                    let n = s.write(&buf[..buf.len().min(left as usize)]).await?;
                    left -= n as u64;
                }
                s.flush().await?;
            }
        }
        self.recv_frame().await
    }

    /// Close in an orderly way, without waiting for the other side.
    pub async fn close(self) {
        let _ = match self {
            Conn::Raw(mut s) => s.shutdown().await,
            Conn::Tls(mut s) => s.shutdown().await,
        };
    }
}
