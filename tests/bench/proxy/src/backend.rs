// SPDX-License-Identifier: Apache-2.0
//! The backends: what stands in for the VMs.
//!
//! All speak one small protocol of 1024-byte request frames: byte 0 is the
//! operation, bytes 1..9 a big-endian length.
//!
//! * `ECHO`: answer one 1024-byte frame;
//! * `DOWN n`: send n bytes;
//! * `UP n`: read n bytes, then answer one frame.
//!
//! On plain sockets bulk data is sent with sendfile(2) and swallowed with
//! MSG_TRUNC, so that the ends cost next to nothing and the proxy is measured.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use rustix::fs::{memfd_create, sendfile, MemfdFlags};
use rustix::net::{recv, RecvFlags};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::net::{PORT_AGENT, PORT_PLAIN, PORT_RAW, PORT_TLS};

pub const FRAME: usize = 1024;
pub const ECHO: u8 = 1;
pub const DOWN: u8 = 2;
pub const UP: u8 = 3;

pub fn frame(op: u8, len: u64) -> [u8; FRAME] {
    let mut f = [0x5a; FRAME];
    f[0] = op;
    f[1..9].copy_from_slice(&len.to_be_bytes());
    f
}

fn parse(f: &[u8; FRAME]) -> (u8, u64) {
    (f[0], u64::from_be_bytes(f[1..9].try_into().unwrap()))
}

const FILE_LEN: usize = 1 << 20;

/// A memory file full of bytes, the source for sendfile(2).
fn source() -> &'static OwnedFd {
    static FD: OnceLock<OwnedFd> = OnceLock::new();
    FD.get_or_init(|| {
        let fd = memfd_create("proxybench", MemfdFlags::CLOEXEC).expect("memfd_create failed");
        let data = vec![0xa5u8; FILE_LEN];
        assert_eq!(rustix::io::write(&fd, &data), Ok(data.len()));
        fd
    })
}

/// Send `len` bytes on a plain socket without touching them.
pub async fn send_bulk(s: &TcpStream, len: u64) -> std::io::Result<()> {
    let mut left = len;
    let mut pos = 0;
    while left > 0 {
        s.writable().await?;
        let want = left.min(FILE_LEN as u64 - pos) as usize;
        match s.try_io(Interest::WRITABLE, || {
            let mut off = pos;
            Ok(sendfile(s, source(), Some(&mut off), want)?)
        }) {
            Ok(n) => {
                left -= n as u64;
                pos = (pos + n as u64) % FILE_LEN as u64;
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Swallow `len` bytes from a plain socket without copying them out.
pub async fn sink_bulk(s: &TcpStream, len: u64) -> std::io::Result<()> {
    let mut left = len;
    let mut untouched = vec![0u8; (4 << 20).min(len as usize)];
    while left > 0 {
        s.readable().await?;
        let want = left.min(untouched.len() as u64) as usize;
        match s.try_io(Interest::READABLE, || {
            Ok(recv(s, &mut untouched[..want], RecvFlags::TRUNC)?.1)
        }) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => left -= n as u64,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Read one ClientHello, however many TLS records it is cut into.
async fn read_client_hello(s: &mut TcpStream) -> Result<()> {
    let mut hs = Vec::new();
    loop {
        let mut head = [0u8; 5];
        s.read_exact(&mut head).await?;
        anyhow::ensure!(head[0] == 22, "not a handshake record");
        let len = u16::from_be_bytes([head[3], head[4]]) as usize;
        let at = hs.len();
        hs.resize(at + len, 0);
        s.read_exact(&mut hs[at..]).await?;
        if hs.len() >= 4 {
            let need = 4 + u32::from_be_bytes([0, hs[1], hs[2], hs[3]]) as usize;
            if hs.len() >= need {
                return Ok(());
            }
            anyhow::ensure!(hs.len() < 65536, "ClientHello too long");
        }
    }
}

async fn serve_tcp(mut s: TcpStream, raw: bool) -> Result<()> {
    s.set_nodelay(true)?;
    if raw {
        read_client_hello(&mut s).await?;
    }
    let mut f = [0u8; FRAME];
    loop {
        if s.read_exact(&mut f).await.is_err() {
            return Ok(());
        }
        match parse(&f) {
            (ECHO, _) => s.write_all(&f).await?,
            (DOWN, n) => send_bulk(&s, n).await?,
            (UP, n) => {
                sink_bulk(&s, n).await?;
                s.write_all(&f).await?;
            }
            (op, _) => anyhow::bail!("unknown operation {op}"),
        }
    }
}

async fn serve_tls<S: AsyncRead + AsyncWrite + Unpin>(mut s: S) -> Result<()> {
    let mut f = [0u8; FRAME];
    loop {
        if s.read_exact(&mut f).await.is_err() {
            return Ok(());
        }
        match parse(&f) {
            (ECHO, _) => {
                s.write_all(&f).await?;
                s.flush().await?;
            }
            (DOWN, mut n) => {
                let buf = vec![0xa5u8; 64 << 10];
                while n > 0 {
                    n -= s.write(&buf[..buf.len().min(n as usize)]).await? as u64;
                }
                s.flush().await?;
            }
            (UP, mut n) => {
                let mut buf = vec![0u8; 64 << 10];
                while n > 0 {
                    let max = buf.len().min(n as usize);
                    let got = s.read(&mut buf[..max]).await?;
                    anyhow::ensure!(got > 0, "closed during an upload");
                    n -= got as u64;
                }
                s.write_all(&f).await?;
                s.flush().await?;
            }
            (op, _) => anyhow::bail!("unknown operation {op}"),
        }
    }
}

/// Stub of the VM agent's HTTP endpoint: any request gets `{"tcb_info":""}` and
/// default-like fields, which the original takes as "no port restrictions".
async fn serve_agent(mut s: TcpStream) -> Result<()> {
    let mut buf = [0u8; 4096];
    let _ = s.read(&mut buf).await?;
    let body = r#"{"app_id":"","instance_id":"","app_cert":"","tcb_info":"","app_name":"","device_id":"","mr_aggregated":"","os_image_hash":"","key_provider_info":"","compose_hash":"","vm_config":"","cloud_vendor":"","cloud_product":"","attestation":""}"#;
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    s.write_all(head.as_bytes()).await?;
    s.write_all(body.as_bytes()).await?;
    Ok(())
}

fn listen(ip: Ipv4Addr, port: u16) -> Result<TcpListener> {
    let s = TcpSocket::new_v4()?;
    s.set_reuseaddr(true)?;
    s.bind(SocketAddr::from((ip, port)))
        .with_context(|| format!("binding {ip}:{port}"))?;
    Ok(s.listen(8192)?)
}

/// Start every backend on every given loopback address.
pub fn start(ips: &[Ipv4Addr], tls: Arc<ServerConfig>) -> Result<()> {
    let acceptor = TlsAcceptor::from(tls);
    for &ip in ips {
        anyhow::ensure!(ip.is_loopback(), "{ip} is not a loopback address");
        for port in [PORT_PLAIN, PORT_RAW, PORT_TLS, PORT_AGENT] {
            let l = listen(ip, port)?;
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                while let Ok((s, _)) = l.accept().await {
                    let acceptor = acceptor.clone();
                    tokio::spawn(async move {
                        let _ = match port {
                            PORT_PLAIN => serve_tcp(s, false).await,
                            PORT_RAW => serve_tcp(s, true).await,
                            PORT_AGENT => serve_agent(s).await,
                            _ => {
                                let _ = s.set_nodelay(true);
                                match acceptor.accept(s).await {
                                    Ok(s) => serve_tls(s).await,
                                    Err(_) => Ok(()),
                                }
                            }
                        };
                    });
                }
            });
        }
    }
    Ok(())
}
