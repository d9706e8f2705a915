// SPDX-License-Identifier: Apache-2.0
//! A user-space WireGuard daemon, by its socket `/run/wireguard/<interface>.sock`. Connecting starts it where systemd
//! listens there (`dstack-wireguard@<interface>.socket`).

use crate::{Error, InterfaceName, InterfaceStatus, Peer, PrivateKey, PublicKey};
use dstack_core::wireguard::uapi::{self, REPLY_MAX, Set, UapiError};
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use zeroize::Zeroizing;

/// Time for one request, with the start of the daemon.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// First size of a reply's buffer, bytes.
const REPLY_FIRST: usize = 16 * 1024;

/// The directory of the daemons' sockets.
#[derive(Debug, Clone)]
pub(crate) struct UserSpace(pub(crate) PathBuf);

impl UserSpace {
    pub(crate) async fn device(
        &self,
        name: &InterfaceName,
        key: &PrivateKey,
        port: Option<u16>,
    ) -> Result<(), Error> {
        let mut set = Set::new(0);
        set.device(key, port);
        self.set(name, set).await
    }

    pub(crate) async fn update(
        &self,
        name: &InterfaceName,
        upsert: impl ExactSizeIterator<Item = &Peer>,
        remove: &[PublicKey],
    ) -> Result<(), Error> {
        let mut set = Set::new(upsert.len() + remove.len());
        remove.iter().for_each(|key| set.remove(key));
        upsert.for_each(|peer| set.peer(peer));
        self.set(name, set).await
    }

    pub(crate) async fn dump(&self, name: &InterfaceName) -> Result<InterfaceStatus, Error> {
        let reply = self.ask(name, uapi::GET.as_bytes()).await.map_err(|e| socket(name, e))?;
        let device = uapi::parse_get(&reply).map_err(|e| refused(name, e))?;
        Ok(InterfaceStatus { listen_port: device.listen_port, peers: device.peers })
    }

    /// Whether the daemon answers; starts it.
    pub(crate) async fn probe(&self, name: &InterfaceName) -> Result<(), Error> {
        let reply = self.ask(name, uapi::GET.as_bytes()).await;
        let reply = reply.map_err(|error| Error::Missing { name: name.clone(), error })?;
        uapi::parse_get(&reply).map(drop).map_err(|e| refused(name, e))
    }

    async fn set(&self, name: &InterfaceName, set: Set) -> Result<(), Error> {
        let reply = self.ask(name, set.finish().as_bytes()).await.map_err(|e| socket(name, e))?;
        uapi::parse_set(&reply).map_err(|e| refused(name, e))
    }

    /// One request and its reply on a connection of their own.
    async fn ask(&self, name: &InterfaceName, request: &[u8]) -> io::Result<Zeroizing<Vec<u8>>> {
        let path = self.0.join(format!("{name}.sock"));
        let exchange = async {
            let mut stream = UnixStream::connect(&path).await?;
            stream.write_all(request).await?;
            read_reply(&mut stream).await
        };
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("{} does not answer", path.display()));
        timeout(REQUEST_TIMEOUT, exchange).await.map_err(late)?
    }
}

/// Reads up to the empty line. The private key is in it, so no buffer is left behind unwiped.
async fn read_reply(stream: &mut UnixStream) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut reply = Zeroizing::new(Vec::with_capacity(REPLY_FIRST));
    while !reply.ends_with(b"\n\n") {
        if reply.len() == reply.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity(reply.capacity() * 4));
            larger.extend_from_slice(&reply);
            reply = larger;
        }
        if reply.len() >= REPLY_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the reply is too large"));
        }
        let room = reply.capacity() - reply.len();
        if (&mut *stream).take(room as u64).read_buf(&mut *reply).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(reply)
}

fn socket(name: &InterfaceName, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Error::NoInterface(name.clone()),
        _ => Error::Socket { name: name.clone(), error },
    }
}

fn refused(name: &InterfaceName, error: UapiError) -> Error {
    Error::Uapi { name: name.clone(), error }
}
