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
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;

use anyhow::{bail, Result};

pub struct Options {
    pub listen: SocketAddrV4,
    pub threads: usize,
    /// bytes moved by copying before splice takes over; 0 = splice always,
    /// u64::MAX = copy always
    pub splice_after: u64,
}

const BUF: usize = 64 << 10;
const PIPE: usize = 1 << 20;

fn last() -> std::io::Error {
    std::io::Error::last_os_error()
}

fn sockaddr(a: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: a.port().to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from(*a.ip()).to_be(),
        },
        sin_zero: [0; 8],
    }
}

fn set_opt(fd: i32, level: i32, name: i32, v: i32) {
    unsafe { libc::setsockopt(fd, level, name, (&v as *const i32).cast(), 4) };
}

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
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let routes = Arc::new(routes);
    let mut threads = Vec::new();
    for _ in 0..o.threads {
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0) };
        set_opt(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
        set_opt(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1);
        let a = sockaddr(o.listen);
        if unsafe { libc::bind(fd, (&a as *const libc::sockaddr_in).cast(), 16) } != 0 {
            bail!("bind {}: {}", SocketAddr::V4(o.listen), last());
        }
        unsafe { libc::listen(fd, 4096) };
        let (routes, after) = (routes.clone(), o.splice_after);
        threads.push(std::thread::spawn(move || {
            Worker::new(fd, routes, after).run()
        }));
    }
    for t in threads {
        let _ = t.join();
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Pipe {
    rd: i32,
    wr: i32,
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
    /// client, server
    fd: [i32; 2],
    dialling: bool,
    /// the peer of fd[i] has closed its sending side
    hup: [bool; 2],
    /// dir[i] reads fd[i] and writes fd[1 - i]
    dir: [Dir; 2],
}

struct Worker {
    listener: i32,
    ep: i32,
    routes: Arc<HashMap<Vec<u8>, SocketAddrV4>>,
    after: u64,
    links: Vec<Option<Box<Link>>>,
    free: Vec<usize>,
    pipes: Vec<Pipe>,
    buf: Vec<u8>,
}

const LISTENER: u64 = u64::MAX;

impl Worker {
    fn new(listener: i32, routes: Arc<HashMap<Vec<u8>, SocketAddrV4>>, after: u64) -> Worker {
        let ep = unsafe { libc::epoll_create1(0) };
        let w = Worker {
            listener,
            ep,
            routes,
            after,
            links: Vec::new(),
            free: Vec::new(),
            pipes: Vec::new(),
            buf: vec![0; BUF],
        };
        w.watch(listener, libc::EPOLLIN as u32, LISTENER);
        w
    }

    fn watch(&self, fd: i32, events: u32, token: u64) {
        let mut e = libc::epoll_event { events, u64: token };
        unsafe { libc::epoll_ctl(self.ep, libc::EPOLL_CTL_ADD, fd, &mut e) };
    }

    fn run(mut self) {
        let mut ev = vec![libc::epoll_event { events: 0, u64: 0 }; 256];
        loop {
            let n = unsafe { libc::epoll_wait(self.ep, ev.as_mut_ptr(), 256, -1) };
            for e in ev.iter().take(n.max(0) as usize) {
                let token = e.u64;
                if token == LISTENER {
                    self.accept();
                    continue;
                }
                let (slot, side) = ((token >> 1) as usize, (token & 1) as usize);
                self.event(slot, side, e.events);
            }
        }
    }

    fn accept(&mut self) {
        for _ in 0..64 {
            let fd = unsafe {
                libc::accept4(
                    self.listener,
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                    libc::SOCK_NONBLOCK,
                )
            };
            if fd < 0 {
                return;
            }
            set_opt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
            let link = Box::new(Link {
                fd: [fd, -1],
                dialling: false,
                hup: [false; 2],
                dir: Default::default(),
            });
            let slot = self.free.pop().unwrap_or_else(|| {
                self.links.push(None);
                self.links.len() - 1
            });
            self.links[slot] = Some(link);
            self.watch(fd, EDGES, (slot as u64) << 1);
            self.dial(slot); // the ClientHello is often there already
        }
    }

    fn event(&mut self, slot: usize, side: usize, events: u32) {
        let Some(l) = self.links[slot].as_mut() else {
            return;
        };
        if events & (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0 {
            l.hup[side] = true;
        }
        if l.fd[1] < 0 {
            self.dial(slot);
            return;
        }
        if l.dialling {
            if side == 0 {
                return; // its bytes stay in the socket until the backend is up
            }
            if events & (libc::EPOLLERR as u32 | libc::EPOLLHUP as u32) != 0 {
                self.close(slot);
                return;
            }
            if events & libc::EPOLLOUT as u32 == 0 {
                return;
            }
            l.dialling = false;
        }
        self.pump(slot);
    }

    /// Peek at the ClientHello, and once the SNI is known dial the backend.
    fn dial(&mut self, slot: usize) {
        let l = self.links[slot].as_mut().unwrap();
        let n = unsafe { libc::recv(l.fd[0], self.buf.as_mut_ptr().cast(), BUF, libc::MSG_PEEK) };
        if n <= 0 {
            if n == 0 || last().kind() != std::io::ErrorKind::WouldBlock {
                self.close(slot);
            }
            return;
        }
        let to = match sni(&self.buf[..n as usize]) {
            Sni::Partial => return,
            Sni::Bad => None,
            Sni::Name(name) => self.routes.get(name).copied(),
        };
        let Some(to) = to else {
            return self.close(slot);
        };
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0) };
        set_opt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
        let a = sockaddr(to);
        let r = unsafe { libc::connect(fd, (&a as *const libc::sockaddr_in).cast(), 16) };
        let l = self.links[slot].as_mut().unwrap();
        l.fd[1] = fd;
        if r != 0 && last().raw_os_error() != Some(libc::EINPROGRESS) {
            return self.close(slot);
        }
        l.dialling = r != 0;
        let now = !l.dialling;
        self.watch(fd, EDGES, (slot as u64) << 1 | 1);
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
        let (from, to, hup) = (l.fd[i], l.fd[1 - i], l.hup[i]);
        let d = &mut l.dir[i];
        loop {
            // 1. what is pending goes out first
            while d.pending > 0 {
                let r = match d.pipe {
                    Some(p) => unsafe {
                        libc::splice(
                            p.rd,
                            std::ptr::null_mut(),
                            to,
                            std::ptr::null_mut(),
                            d.pending,
                            SPLICE,
                        )
                    },
                    None => unsafe {
                        let at = d.held.len() - d.pending;
                        libc::send(
                            to,
                            d.held[at..].as_ptr().cast(),
                            d.pending,
                            libc::MSG_NOSIGNAL,
                        )
                    },
                };
                if r < 0 {
                    return last().kind() == std::io::ErrorKind::WouldBlock;
                }
                d.pending -= r as usize;
            }
            if let Some(p) = d.pipe.take() {
                self.pipes.push(p);
            }
            if !d.held.is_empty() {
                d.held = Vec::new();
            }
            if d.eof {
                if !d.done {
                    unsafe { libc::shutdown(to, libc::SHUT_WR) };
                    d.done = true;
                }
                return true;
            }
            // 2. take more
            if d.moved < self.after {
                let n = unsafe { libc::recv(from, self.buf.as_mut_ptr().cast(), BUF, 0) };
                if n < 0 {
                    return last().kind() == std::io::ErrorKind::WouldBlock;
                }
                if n == 0 {
                    d.eof = true;
                    continue;
                }
                d.moved += n as u64;
                let n = n as usize;
                let r = unsafe { libc::send(to, self.buf.as_ptr().cast(), n, libc::MSG_NOSIGNAL) };
                if r < 0 && last().kind() != std::io::ErrorKind::WouldBlock {
                    return false;
                }
                let sent = r.max(0) as usize;
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
                let n = unsafe {
                    libc::splice(
                        from,
                        std::ptr::null_mut(),
                        p.wr,
                        std::ptr::null_mut(),
                        PIPE,
                        SPLICE,
                    )
                };
                if n <= 0 {
                    self.pipes.push(p);
                    if n < 0 {
                        return last().kind() == std::io::ErrorKind::WouldBlock;
                    }
                    d.eof = true;
                    continue;
                }
                d.moved += n as u64;
                d.pending = n as usize;
                d.pipe = Some(p);
            }
        }
    }

    fn close(&mut self, slot: usize) {
        let Some(l) = self.links[slot].take() else {
            return;
        };
        for fd in l.fd {
            if fd >= 0 {
                unsafe { libc::close(fd) };
            }
        }
        for d in l.dir {
            if let Some(p) = d.pipe {
                unsafe {
                    libc::close(p.rd);
                    libc::close(p.wr);
                }
            }
        }
        self.free.push(slot);
    }
}

const EDGES: u32 = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET) as u32;
const SPLICE: u32 = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;

fn new_pipe() -> Option<Pipe> {
    let mut p = [0i32; 2];
    if unsafe { libc::pipe2(p.as_mut_ptr(), libc::O_NONBLOCK) } != 0 {
        return None;
    }
    unsafe { libc::fcntl(p[1], libc::F_SETPIPE_SZ, PIPE as i32) };
    Some(Pipe { rd: p[0], wr: p[1] })
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
