// SPDX-License-Identifier: Apache-2.0
//! The real program, a control plane of ours, and instances on loopback addresses.

use dstack_core::flow::{
    self, Certificate, Config, Decoder, FromFlow, Instance, Parsed, Secret, Stats, Target, ToFlow,
};
use rustix::net::{getsockname, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open};
use std::collections::{BTreeSet, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub const BASE: &str = "app.test";
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn id(byte: u8) -> String {
    hex(byte).repeat(20)
}

fn hex(byte: u8) -> String {
    format!("{byte:02x}")
}

pub fn instance(id: u8, app: u8, address: &str) -> Instance {
    Instance {
        instance_id: [id; 20].into(),
        app_id: [app; 20].into(),
        address: address.parse().unwrap(),
        handshake: Some(u64::from(id)),
        port_policy: None,
        proxy_protocol: BTreeSet::new(),
        draining: false,
    }
}

pub fn config() -> Config {
    Config { base_domains: vec![BASE.into()], ..Config::default() }
}

/// What the control plane says to a data plane that connects, and how it answers names.
#[derive(Clone, Default)]
pub struct Script {
    pub config: Config,
    pub certificates: Vec<Certificate>,
    pub instances: Vec<Instance>,
    pub names: HashMap<String, Option<Target>>,
}

pub struct World {
    pub child: Child,
    pub ingress: SocketAddr,
    pub passthrough: SocketAddr,
    pub http: SocketAddr,
    /// Another ingress, on `::1`, when asked for.
    pub ingress6: Option<SocketAddr>,
    _directory: tempfile::TempDir,
    link: Arc<Mutex<Option<UnixStream>>>,
    script: Arc<Mutex<Script>>,
    pub heard: Receiver<FromFlow>,
}

fn serve(
    listener: UnixListener,
    script: Arc<Mutex<Script>>,
    link: Arc<Mutex<Option<UnixStream>>>,
    heard: std::sync::mpsc::Sender<FromFlow>,
) {
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let start = script.lock().unwrap().clone();
        for message in [
            ToFlow::Config(start.config),
            ToFlow::Certificates(start.certificates),
            ToFlow::Routes { instances: start.instances },
        ] {
            stream.write_all(&flow::format(&message).unwrap()).unwrap();
        }
        *link.lock().unwrap() = Some(stream.try_clone().unwrap());
        let (mut decoder, mut piece) = (Decoder::default(), [0; 65_536]);
        while let Ok(count @ 1..) = stream.read(&mut piece) {
            decoder.push(&piece[..count]);
            while let Some(body) = decoder.next_frame().unwrap() {
                let Parsed::Known(message) = flow::parse::<FromFlow>(body).unwrap() else {
                    panic!("unknown")
                };
                if let FromFlow::Name { name } = &message
                    && let Some(target) = script.lock().unwrap().names.get(name)
                {
                    let answer = ToFlow::NameAnswer { name: name.clone(), target: *target, ttl: 60 };
                    stream.write_all(&flow::format(&answer).unwrap()).unwrap();
                }
                if heard.send(message).is_err() {
                    return;
                }
            }
        }
    }
}

impl World {
    pub fn new(script: Script) -> Self {
        Self::start(script, None, false)
    }

    /// With so many descriptors.
    pub fn limited(script: Script, descriptors: u32) -> Self {
        Self::start(script, Some(descriptors), false)
    }

    /// With an ingress on `::1` too.
    pub fn dual(script: Script) -> Self {
        Self::start(script, None, true)
    }

    fn start(script: Script, descriptors: Option<u32>, dual: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("flow.sock");
        let (link, script) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new(script)));
        let (sender, heard) = channel();
        let listener = UnixListener::bind(&socket).unwrap();
        let shared = (Arc::clone(&script), Arc::clone(&link));
        std::thread::spawn(move || serve(listener, shared.0, shared.1, sender));
        // Where the tests run that were built elsewhere.
        let built = env!("CARGO_BIN_EXE_dstack-tproxy-flow");
        let program = std::env::var("DSTACK_TPROXY_FLOW").unwrap_or_else(|_| built.into());
        let limit = descriptors.map_or(String::new(), |limit| format!("ulimit -n {limit}; "));
        let second = if dual { "--listen [::1]:0 " } else { "" };
        let listen = format!(
            "--listen 127.0.0.1:0 {second}--listen-passthrough 127.0.0.1:0 --listen-http 127.0.0.1:0"
        );
        let line = format!(
            "{limit}exec {program} --generation 3 --workers 2 --control {} {listen}",
            socket.display()
        );
        let mut child = Command::new("/bin/sh").args(["-c", &line]).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut address = || lines.next().unwrap().unwrap().split_once(' ').unwrap().1.parse().unwrap();
        let (ingress, ingress6) = (address(), dual.then(&mut address));
        let (passthrough, http) = (address(), address());
        let world =
            Self { child, ingress, passthrough, http, ingress6, _directory: directory, link, script, heard };
        world.expect(|message| matches!(message, FromFlow::Hello { version: 1, generation: 3, .. }));
        world
    }

    /// Says something to the data plane, and to the next that connects.
    pub fn say(&self, change: impl FnOnce(&mut Script), message: &ToFlow) {
        change(&mut self.script.lock().unwrap());
        let frame = flow::format(message).unwrap();
        self.link.lock().unwrap().as_ref().unwrap().write_all(&frame).unwrap();
    }

    /// The control plane goes away for a moment.
    pub fn restart_control(&self) {
        let link = self.link.lock().unwrap().take().unwrap();
        link.shutdown(std::net::Shutdown::Both).unwrap();
        self.expect(|message| matches!(message, FromFlow::Hello { .. }));
    }

    pub fn expect(&self, wanted: impl Fn(&FromFlow) -> bool) -> FromFlow {
        let end = Instant::now() + PATIENCE;
        let mut last = None;
        loop {
            match self.heard.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(message) if wanted(&message) => return message,
                Ok(message) => last = Some(message),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("not heard in time; the last was {last:?}")
                }
            }
        }
    }

    /// Waits until the numbers say so.
    pub fn counted(&self, wanted: impl Fn(&Stats) -> bool) {
        self.expect(|message| matches!(message, FromFlow::Stats(stats) if wanted(stats)));
    }

    /// Resident memory of the process, bytes.
    pub fn resident(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
    }

    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// The process sees at once whatever has happened meanwhile.
    pub fn frozen(&self, meanwhile: impl FnOnce()) {
        self.signal(Signal::STOP);
        meanwhile();
        self.signal(Signal::CONT);
    }

    /// The listening socket of an address: the same one that the process has, as systemd has it in service.
    pub fn listener(&self, address: SocketAddr) -> OwnedFd {
        let process = pidfd_open(self.pid(), PidfdFlags::empty()).unwrap();
        let numbers = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        let numbers = numbers.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap());
        let mut all = numbers.filter_map(|fd| pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()).ok());
        let is_it = |fd: &OwnedFd| {
            sockopt::socket_acceptconn(fd).is_ok_and(|listens| listens)
                && getsockname(fd)
                    .is_ok_and(|name| SocketAddr::try_from(name).is_ok_and(|name| name == address))
        };
        all.find(is_it).expect("it listens there")
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An instance's port: each connection gets a thread.
pub fn serve_port(address: &str, act: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    serve_at(address, 0, act)
}

/// The same at a port of one's choice.
fn serve_at(address: &str, port: u16, act: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    let address: IpAddr = address.parse().unwrap();
    let listener = TcpListener::bind((address, port)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let act = Arc::new(act);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let act = Arc::clone(&act);
            std::thread::spawn(move || act(stream));
        }
    });
    port
}

/// Sends back whatever comes, until the end.
pub fn echo(address: &str) -> u16 {
    echo_at(address, 0)
}

/// The same at a port of one's choice.
pub fn echo_at(address: &str, port: u16) -> u16 {
    serve_at(address, port, |mut stream| {
        let mut other = stream.try_clone().unwrap();
        if std::io::copy(&mut stream, &mut other).is_ok() {
            let _ = other.shutdown(std::net::Shutdown::Write);
        }
    })
}

pub fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

pub fn key_pair(ed25519: bool) -> (String, String) {
    let algorithm = if ed25519 { &rcgen::PKCS_ED25519 } else { &rcgen::PKCS_ECDSA_P256_SHA256 };
    let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
    let params = rcgen::CertificateParams::new(vec![format!("*.{BASE}")]).unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

pub fn certificate(ed25519: bool) -> Certificate {
    let (chain, key) = key_pair(ed25519);
    Certificate { names: vec![format!("*.{BASE}")], chain, key: Secret::from(key) }
}
