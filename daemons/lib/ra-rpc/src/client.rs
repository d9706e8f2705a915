// SPDX-License-Identifier: Apache-2.0
//! One call to a judged server.

use crate::peer::{Peer, PeerError, Rules, Side, Verifier};
use crate::server::{HANDSHAKE_TIMEOUT, JUDGE_TIMEOUT};
use dstack_rpc::ClientError;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use serde::{Serialize, de::DeserializeOwned};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// TLS failed; the server may have refused our certificate's form.
    #[error("TLS with the server failed: {0}")]
    Tls(#[from] io::Error),
    /// The server is not who it must be.
    #[error("the server is refused: {0}")]
    Peer(#[from] PeerError),
    /// It took too long.
    #[error("no secure connection in time")]
    Timeout,
}

/// A connection to a judged server, for one call.
#[derive(Debug)]
pub struct Connection<S> {
    stream: TlsStream<S>,
    peer: Arc<Peer>,
}

/// Shakes hands over a connected stream and judges the server; nothing is sent to one that is refused.
///
/// # Errors
/// [`ConnectError`].
pub async fn connect<S>(
    stream: S,
    config: Arc<ClientConfig>,
    verifier: &Verifier,
    rules: &Rules,
) -> Result<Connection<S>, ConnectError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let stream = shake_hands(stream, config).await?;
    let chain = chain_of(&stream);
    let judged = timeout(JUDGE_TIMEOUT, verifier.judge(&chain, Side::Server, rules));
    let peer = judged.await.map_err(|_| ConnectError::Timeout)??;
    Ok(Connection { stream, peer: Arc::new(peer) })
}

/// Shakes hands and gives the server's chain, leaf first, for whoever has nobody to trust yet. It proves that the server
/// holds the leaf's key and nothing else: judge the server by [`connect`] before anything is sent.
///
/// # Errors
/// [`ConnectError`].
pub async fn presented<S>(
    stream: S,
    config: Arc<ClientConfig>,
) -> Result<Vec<CertificateDer<'static>>, ConnectError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    Ok(chain_of(&shake_hands(stream, config).await?))
}

async fn shake_hands<S>(stream: S, config: Arc<ClientConfig>) -> Result<TlsStream<S>, ConnectError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    // Never sent: identities are keys, not names.
    let name = ServerName::try_from("dstack.invalid").map_err(io::Error::other)?;
    let handshake = TlsConnector::from(config).connect(name, stream);
    Ok(timeout(HANDSHAKE_TIMEOUT, handshake).await.map_err(|_| ConnectError::Timeout)??)
}

fn chain_of<S>(stream: &TlsStream<S>) -> Vec<CertificateDer<'static>> {
    stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec()
}

impl<S> Connection<S>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    /// The judged server.
    #[must_use]
    pub const fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Calls `path` with JSON arguments.
    ///
    /// # Errors
    /// [`ClientError`]; `Remote` carries what the server said.
    pub async fn call<Q, R>(self, path: &str, args: &Q) -> Result<R, ClientError>
    where
        Q: Serialize + Sync + ?Sized,
        R: DeserializeOwned,
    {
        dstack_rpc::client::call(self.stream, path, args).await
    }
}
