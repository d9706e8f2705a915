// SPDX-License-Identifier: Apache-2.0
//! The control plane's end of the socket to its data planes (`core::flow`).
//!
//! Each that connects says hello and gets settings, certificates and all routes, then what changes. One that is too slow
//! for the changes gets all routes again; one that takes nothing at all is cut off, and connects anew.

use crate::engine::Engine;
use crate::names::Names;
use dstack_core::flow::{
    self, Certificate, Config, Decoder, FromFlow, Instance, Message, PROTOCOL, Parsed, ToFlow,
};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Time for the hello, and for a write that does not advance.
const PATIENCE: Duration = Duration::from_secs(30);
/// Data planes at a time: one that serves, and those that drain.
const SESSIONS: usize = 64;
/// Most instances of one frame.
const CHUNK: usize = 16_384;
/// Answers that wait for their way out.
const ANSWERS: usize = 1024;
/// Pause after a failed `accept`, so that a lack of descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What every data plane is told beside the routes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Feed {
    /// Settings.
    pub config: Config,
    /// Certificates.
    pub certificates: Vec<Certificate>,
}

/// What sessions share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The engine.
    pub engine: Engine,
    /// What is told beside the routes.
    pub feed: watch::Receiver<Arc<Feed>>,
    /// Who looks up custom domains.
    pub names: Names,
    /// Users that may connect: certificates' keys go over this socket.
    pub users: Arc<Vec<u32>>,
}

/// Serves data planes until it is dropped.
pub async fn serve(listener: UnixListener, shared: Shared) {
    let mut sessions = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            Some(_) = sessions.join_next() => continue,
            accepted = listener.accept(), if sessions.len() < SESSIONS => accepted,
        };
        match accepted {
            Ok((stream, _)) if is_allowed(&stream, &shared.users) => {
                let shared = shared.clone();
                sessions.spawn(async move {
                    if let Err(error) = session(stream, shared).await {
                        tracing::info!("a data plane has gone: {error}");
                    }
                });
            }
            Ok(_) => tracing::warn!("somebody who is no data plane connected to its socket"),
            Err(error) => {
                tracing::warn!("data planes cannot connect: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_allowed(stream: &UnixStream, users: &[u32]) -> bool {
    stream.peer_cred().is_ok_and(|peer| users.contains(&peer.uid()))
}

/// A connected data plane.
struct Session {
    shared: Shared,
    writer: OwnedWriteHalf,
    number: u64,
    answers: mpsc::Sender<ToFlow>,
    lookups: JoinSet<()>,
}

async fn session(stream: UnixStream, shared: Shared) -> io::Result<()> {
    let (mut reader, writer) = stream.into_split();
    let mut decoder = Decoder::default();
    let hello = timeout(PATIENCE, hello(&mut reader, &mut decoder)).await;
    let (generation, pid) = hello.map_err(|_| io::Error::other("it said no hello"))??;
    tracing::info!("data plane {generation} is connected (process {pid})");
    let number = shared.engine.flows().join(generation, pid);
    let (answers, ready) = mpsc::channel(ANSWERS);
    let flows = shared.engine.clone();
    let session = Session { shared, writer, number, answers, lookups: JoinSet::new() };
    let result = session.run(reader, decoder, ready).await;
    flows.flows().leave(number);
    result
}

async fn hello(reader: &mut OwnedReadHalf, decoder: &mut Decoder) -> io::Result<(u64, u32)> {
    loop {
        if let Some(body) = decoder.next_frame().map_err(io::Error::other)? {
            return match flow::parse::<FromFlow>(body).map_err(io::Error::other)? {
                Parsed::Known(FromFlow::Hello { version, generation, pid }) => {
                    if version != PROTOCOL {
                        tracing::info!("a data plane speaks version {version}, this is {PROTOCOL}");
                    }
                    Ok((generation, pid))
                }
                _ => Err(io::Error::other("its first frame is no hello")),
            };
        }
        read(reader, decoder).await?;
    }
}

async fn read(reader: &mut OwnedReadHalf, decoder: &mut Decoder) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    match reader.read(&mut buffer).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        read => {
            decoder.push(buffer.get(..read).unwrap_or_default());
            Ok(())
        }
    }
}

impl Session {
    async fn run(
        mut self,
        mut reader: OwnedReadHalf,
        mut decoder: Decoder,
        mut ready: mpsc::Receiver<ToFlow>,
    ) -> io::Result<()> {
        let mut feed = self.shared.feed.clone();
        let first = Arc::clone(&feed.borrow_and_update());
        self.feed(&first).await?;
        let mut routes = self.all_routes().await?;
        // What came together with the hello.
        self.take(&mut decoder)?;
        loop {
            tokio::select! {
                read = read(&mut reader, &mut decoder) => {
                    read?;
                    self.take(&mut decoder)?;
                }
                Ok(()) = feed.changed() => {
                    let fed = Arc::clone(&feed.borrow_and_update());
                    self.feed(&fed).await?;
                }
                change = routes.recv() => match change {
                    Ok(change) => self.send(&*change).await?,
                    Err(RecvError::Lagged(_)) => routes = self.all_routes().await?,
                    Err(RecvError::Closed) => return Ok(()),
                },
                Some(answer) = ready.recv() => self.send(&answer).await?,
                Some(_) = self.lookups.join_next() => {}
            }
        }
    }

    async fn feed(&mut self, feed: &Feed) -> io::Result<()> {
        self.send(&ToFlow::Config(feed.config.clone())).await?;
        if feed.certificates.is_empty() {
            // They cannot be read now: a data plane that has them from before goes on with them.
            return Ok(());
        }
        self.send(&ToFlow::Certificates(feed.certificates.clone())).await
    }

    /// Sends all routes; changes from then on come from what this returns.
    async fn all_routes(&mut self) -> io::Result<broadcast::Receiver<Arc<ToFlow>>> {
        let (mut instances, changes) = self.shared.engine.subscribe();
        let rest: Vec<Instance> = instances.split_off(instances.len().min(CHUNK));
        self.send(&ToFlow::Routes { instances }).await?;
        for chunk in rest.chunks(CHUNK) {
            self.send(&ToFlow::RouteDelta { upsert: chunk.to_vec(), remove: Vec::new() }).await?;
        }
        Ok(changes)
    }

    async fn send<M: Message>(&mut self, message: &M) -> io::Result<()> {
        let frame = flow::format(message).map_err(io::Error::other)?;
        let written = timeout(PATIENCE, self.writer.write_all(&frame)).await;
        written.map_err(|_| io::Error::other("it takes nothing"))?
    }

    fn take(&mut self, decoder: &mut Decoder) -> io::Result<()> {
        while let Some(body) = decoder.next_frame().map_err(io::Error::other)? {
            match flow::parse::<FromFlow>(body).map_err(io::Error::other)? {
                Parsed::Known(message) => self.handle(message),
                Parsed::Unknown(kind) => tracing::debug!("a data plane says {kind:?}, which is skipped"),
            }
        }
        Ok(())
    }

    fn handle(&mut self, message: FromFlow) {
        let flows = self.shared.engine.flows();
        match message {
            FromFlow::Hello { .. } => {}
            FromFlow::Stats(stats) => flows.count(self.number, *stats),
            FromFlow::Drained {} => flows.drained(self.number),
            FromFlow::Name { name } => {
                let (names, answers) = (self.shared.names.clone(), self.answers.clone());
                let prefix = self.shared.engine.settings().proxy.txt_prefix.clone();
                self.lookups.spawn(async move {
                    let answer = names.resolve(&name, &prefix).await;
                    let answer = ToFlow::NameAnswer { name, target: answer.target, ttl: answer.ttl };
                    // The session may be over.
                    drop(answers.send(answer).await);
                });
            }
        }
    }
}

/// Settings for data planes.
#[must_use]
pub fn config(proxy: &crate::settings::Proxy) -> Config {
    let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let timeouts = &proxy.timeouts;
    Config {
        base_domains: vec![proxy.base_domain.clone()],
        timeouts: flow::Timeouts {
            connect: ms(timeouts.connect),
            handshake: ms(timeouts.handshake),
            idle: timeouts.idle.map(ms),
            write: timeouts.write.map(ms),
            shutdown: ms(timeouts.shutdown),
            total: timeouts.total.map(ms),
        },
        connect_top_n: proxy.connect_top_n,
        tappd_port: proxy.tappd_port,
        connections_per_app: proxy.connections_per_app,
        ktls: proxy.ktls,
        ..Config::default()
    }
}
