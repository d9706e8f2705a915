// SPDX-License-Identifier: Apache-2.0
//! `limit`: the least work a passthrough proxy can do, as a yardstick.
//!
//! One thread per core, each with its own SO_REUSEPORT listener and epoll. A
//! connection is peeked at (MSG_PEEK), its SNI looked up in a hash map, the
//! backend dialled without blocking, and then bytes move either through one
//! per-thread buffer (`copy`) or through a pipe with splice(2) (`splice`), or
//! by copying until `splice_after` bytes have moved. A pipe belongs to a
//! connection only while the receiver is too slow to take what is in it.
//!
//! It has no timeouts, limits or half-open protection: a bound, not a proxy.

use std::collections::HashMap;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustix::event::epoll::{self, EventFlags};
use rustix::io::Errno;
use rustix::net::{
    sockopt, AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType,
};
use rustix::pipe::{PipeFlags, SpliceFlags};

pub struct Options {
    pub listen: SocketAddrV4,
    pub threads: usize,
    /// bytes moved by copying before splice takes over; 0 = splice always,
    /// u64::MAX = copy always
    pub splice_after: u64,
}

const BUF: usize = 64 << 10;
const PIPE: usize = 1 << 20;

/// Read `name ip:port` lines.
pub fn read_routes(path: &std::path::Path) -> Result<HashMap<Vec<u8>, SocketAddrV4>> {
    let mut m = HashMap::new();
    for line in std::fs::read_to_string(path)?.lines() {
        if let Some((name, to)) = line.split_once(' ') {
            m.insert(name.as_bytes().to_vec(), to.parse()?);
        }
    }
    Ok(m)
}

pub fn run(o: Options, routes: HashMap<Vec<u8>, SocketAddrV4>) -> Result<()> {
    let routes = Arc::new(routes);
    let mut threads = Vec::new();
    for _ in 0..o.threads {
        let fd = socket()?;
        sockopt::set_socket_reuseaddr(&fd, true)?;
        sockopt::set_socket_reuseport(&fd, true)?;
        rustix::net::bind(&fd, &o.listen).with_context(|| format!("bind {}", o.listen))?;
        rustix::net::listen(&fd, 4096)?;
        let worker = Worker::new(fd, routes.clone(), o.splice_after)?;
        threads.push(std::thread::spawn(move || worker.run()));
    }
    for t in threads {
        let _ = t.join();
    }
    Ok(())
}

fn socket() -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::NONBLOCK,
        None,
    )
}

struct Pipe {
    rd: OwnedFd,
    wr: OwnedFd,
}

/// One direction of a connection.
#[derive(Default)]
struct Dir {
    /// bytes held in `pipe` or `held`
    pending: usize,
    pipe: Option<Pipe>,
    held: Vec<u8>,
    eof: bool,
    done: bool,
    moved: u64,
}

struct Link {
    client: OwnedFd,
    server: Option<OwnedFd>,
    dialling: bool,
    /// client, server: it has closed its sending side
    hup: [bool; 2],
    /// from the client, from the server
    dir: [Dir; 2],
}

struct Worker {
    listener: OwnedFd,
    ep: OwnedFd,
    routes: Arc<HashMap<Vec<u8>, SocketAddrV4>>,
    after: u64,
    links: Vec<Option<Box<Link>>>,
    free: Vec<usize>,
    pipes: Vec<Pipe>,
    buf: Vec<u8>,
}

const LISTENER: u64 = u64::MAX;

impl Worker {
    fn new(
        listener: OwnedFd,
        routes: Arc<HashMap<Vec<u8>, SocketAddrV4>>,
        after: u64,
    ) -> Result<Worker> {
        let ep = epoll::create(epoll::CreateFlags::empty())?;
        let data = epoll::EventData::new_u64(LISTENER);
        epoll::add(&ep, &listener, data, EventFlags::IN)?;
        Ok(Worker {
            listener,
            ep,
            routes,
            after,
            links: Vec::new(),
            free: Vec::new(),
            pipes: Vec::new(),
            buf: vec![0; BUF],
        })
    }

    fn run(mut self) {
        let mut ev = Vec::with_capacity(256);
        loop {
            ev.clear();
            // an interrupted wait brings no events
            let _ = epoll::wait(&self.ep, rustix::buffer::spare_capacity(&mut ev), None);
            for e in &ev {
                let (token, flags) = (e.data.u64(), e.flags);
                if token == LISTENER {
                    self.accept();
                    continue;
                }
                let (slot, side) = ((token >> 1) as usize, (token & 1) as usize);
                self.event(slot, side, flags);
            }
        }
    }

    fn accept(&mut self) {
        for _ in 0..64 {
            let Ok(client) = rustix::net::accept_with(&self.listener, SocketFlags::NONBLOCK) else {
                return;
            };
            let _ = sockopt::set_tcp_nodelay(&client, true);
            let link = Box::new(Link {
                client,
                server: None,
                dialling: false,
                hup: [false; 2],
                dir: Default::default(),
            });
            let slot = self.free.pop().unwrap_or_else(|| {
                self.links.push(None);
                self.links.len() - 1
            });
            let data = epoll::EventData::new_u64((slot as u64) << 1);
            let _ = epoll::add(&self.ep, &link.client, data, EDGES);
            self.links[slot] = Some(link);
            self.dial(slot); // the ClientHello is often there already
        }
    }

    fn event(&mut self, slot: usize, side: usize, events: EventFlags) {
        let Some(l) = self.links[slot].as_mut() else {
            return;
        };
        if events.intersects(EventFlags::RDHUP | BROKEN) {
            l.hup[side] = true;
        }
        if l.server.is_none() {
            self.dial(slot);
            return;
        }
        if l.dialling {
            if side == 0 {
                return; // its bytes stay in the socket until the backend is up
            }
            if events.intersects(BROKEN) {
                self.close(slot);
                return;
            }
            if !events.contains(EventFlags::OUT) {
                return;
            }
            l.dialling = false;
        }
        self.pump(slot);
    }

    /// Peek at the ClientHello, and once the SNI is known dial the backend.
    fn dial(&mut self, slot: usize) {
        let l = self.links[slot].as_mut().unwrap();
        let n = match rustix::net::recv(&l.client, &mut self.buf[..], RecvFlags::PEEK) {
            Ok((n, _)) if n > 0 => n,
            Err(Errno::AGAIN) => return,
            _ => return self.close(slot),
        };
        let to = match sni(&self.buf[..n]) {
            Sni::Partial => return,
            Sni::Bad => None,
            Sni::Name(name) => self.routes.get(name).copied(),
        };
        let Some(to) = to else {
            return self.close(slot);
        };
        let Ok(server) = socket() else {
            return self.close(slot);
        };
        let _ = sockopt::set_tcp_nodelay(&server, true);
        let now = match rustix::net::connect(&server, &to) {
            Ok(()) => true,
            Err(Errno::INPROGRESS) => false,
            Err(_) => return self.close(slot),
        };
        let l = self.links[slot].as_mut().unwrap();
        l.dialling = !now;
        let data = epoll::EventData::new_u64((slot as u64) << 1 | 1);
        let _ = epoll::add(&self.ep, &server, data, EDGES);
        l.server = Some(server);
        if now {
            self.pump(slot);
        }
    }

    /// Edge-triggered: move everything both ways until it would block.
    fn pump(&mut self, slot: usize) {
        let mut l = self.links[slot].take().unwrap();
        let mut alive = true;
        for i in 0..2 {
            alive &= self.pump_one(&mut l, i);
        }
        let finished = l.dir[0].done && l.dir[1].done;
        self.links[slot] = Some(l);
        if !alive || finished {
            self.close(slot);
        }
    }

    fn pump_one(&mut self, l: &mut Link, i: usize) -> bool {
        let Some(server) = &l.server else {
            return false;
        };
        let (from, to) = if i == 0 {
            (&l.client, server)
        } else {
            (server, &l.client)
        };
        let hup = l.hup[i];
        let d = &mut l.dir[i];
        loop {
            // 1. what is pending goes out first
            while d.pending > 0 {
                let sent = match &d.pipe {
                    Some(p) => rustix::pipe::splice(&p.rd, None, to, None, d.pending, SPLICE),
                    None => {
                        let at = d.held.len() - d.pending;
                        rustix::net::send(to, &d.held[at..], SendFlags::NOSIGNAL)
                    }
                };
                match sent {
                    Ok(n) => d.pending -= n,
                    Err(e) => return e == Errno::AGAIN,
                }
            }
            if let Some(p) = d.pipe.take() {
                self.pipes.push(p);
            }
            if !d.held.is_empty() {
                d.held = Vec::new();
            }
            if d.eof {
                if !d.done {
                    let _ = rustix::net::shutdown(to, Shutdown::Write);
                    d.done = true;
                }
                return true;
            }
            // 2. take more
            if d.moved < self.after {
                let n = match rustix::net::recv(from, &mut self.buf[..], RecvFlags::empty()) {
                    Ok((n, _)) => n,
                    Err(e) => return e == Errno::AGAIN,
                };
                if n == 0 {
                    d.eof = true;
                    continue;
                }
                d.moved += n as u64;
                let sent = match rustix::net::send(to, &self.buf[..n], SendFlags::NOSIGNAL) {
                    Ok(sent) => sent,
                    Err(Errno::AGAIN) => 0,
                    Err(_) => return false,
                };
                if sent < n {
                    d.held = self.buf[sent..n].to_vec();
                    d.pending = n - sent;
                } else if n < BUF && !hup {
                    return true; // short read: empty now, and an edge will follow
                }
            } else {
                let Some(p) = self.pipes.pop().or_else(new_pipe) else {
                    return false;
                };
                match rustix::pipe::splice(from, None, &p.wr, None, PIPE, SPLICE) {
                    Ok(n) if n > 0 => {
                        d.moved += n as u64;
                        d.pending = n;
                        d.pipe = Some(p);
                    }
                    end => {
                        self.pipes.push(p);
                        if let Err(e) = end {
                            return e == Errno::AGAIN;
                        }
                        d.eof = true;
                    }
                }
            }
        }
    }

    fn close(&mut self, slot: usize) {
        if self.links[slot].take().is_some() {
            self.free.push(slot);
        }
    }
}

const EDGES: EventFlags = EventFlags::IN
    .union(EventFlags::OUT)
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);
const BROKEN: EventFlags = EventFlags::HUP.union(EventFlags::ERR);
const SPLICE: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

fn new_pipe() -> Option<Pipe> {
    let (rd, wr) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK).ok()?;
    let _ = rustix::pipe::fcntl_setpipe_size(&wr, PIPE);
    Some(Pipe { rd, wr })
}

enum Sni<'a> {
    Name(&'a [u8]),
    Partial,
    Bad,
}

/// SNI of a ClientHello that lies in one TLS record.
fn sni(b: &[u8]) -> Sni<'_> {
    if b.len() < 5 {
        return Sni::Partial;
    }
    if b[0] != 22 {
        return Sni::Bad;
    }
    let end = 5 + u16::from_be_bytes([b[3], b[4]]) as usize;
    if end > 5 + 16384 {
        return Sni::Bad;
    }
    if b.len() < end {
        return Sni::Partial;
    }
    fn inner(b: &[u8]) -> Option<&[u8]> {
        let u16_at = |at: usize| Some(u16::from_be_bytes([*b.get(at)?, *b.get(at + 1)?]) as usize);
        let mut at = 4 + 34;
        at += 1 + *b.get(at)? as usize;
        at += 2 + u16_at(at)?;
        at += 1 + *b.get(at)? as usize;
        at += 2;
        loop {
            let (kind, len) = (u16_at(at)?, u16_at(at + 2)?);
            if kind == 0 {
                let n = u16_at(at + 7)?;
                return b.get(at + 9..at + 9 + n);
            }
            at += 4 + len;
        }
    }
    match inner(&b[5..end]) {
        Some(n) => Sni::Name(n),
        None => Sni::Bad,
    }
}
