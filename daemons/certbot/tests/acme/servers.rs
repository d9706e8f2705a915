// SPDX-License-Identifier: Apache-2.0
//! The authority and the DNS server.

use dstack_testing::process::Process;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A port that is free for both protocols.
pub fn free_port() -> u16 {
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        if UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Secret of the key `dstack` of the DNS server.
pub const SECRET: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

const ZONE: &str = "@ 3600 SOA ns1 admin 1 3600 600 86400 60\n@ 3600 NS ns1\nns1 3600 A 127.0.0.1\n\
                    alias 3600 CNAME ns1\n";

/// Knot with the zone `example.test`.
pub fn knot(dir: &Path, port: u16) -> Process {
    let dir = dir.join(format!("knot-{port}"));
    std::fs::create_dir_all(dir.join("db")).unwrap();
    std::fs::write(dir.join("example.test.zone"), ZONE).unwrap();
    let at = dir.display();
    let config = format!(
        "server:\n    rundir: {at}\n    listen: 127.0.0.1@{port}\n    background-workers: 1\n    udp-workers: 1\n    tcp-workers: 1\n\
         database:\n    storage: {at}/db\nlog:\n  - target: {at}/log\n    any: info\n\
         key:\n  - id: dstack\n    algorithm: hmac-sha256\n    secret: {SECRET}\n\
         acl:\n  - id: update\n    key: dstack\n    action: update\n\
         zone:\n  - domain: example.test\n    storage: {at}\n    file: example.test.zone\n    acl: update\n"
    );
    std::fs::write(dir.join("knot.conf"), config).unwrap();
    let notify = UnixDatagram::bind(dir.join("notify")).unwrap();
    notify.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let child = Command::new("knotd")
        .arg("-c")
        .arg(dir.join("knot.conf"))
        .env("NOTIFY_SOCKET", dir.join("notify"))
        .env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("knotd is needed: apt install knot");
    let process = Process(child);
    let mut text = [0; 1024];
    loop {
        let read = notify.recv(&mut text).expect("knotd does not say that it is ready");
        if String::from_utf8_lossy(&text[..read]).contains("READY=1") {
            return process;
        }
    }
}

/// Pebble; gives the URL of its directory. Who signed its own TLS certificate is in `roots.pem`.
pub fn pebble(
    dir: &Path,
    dns: u16,
    env: &[(&str, &str)],
    external: Option<(&str, &str)>,
) -> (Process, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    for (name, text) in
        [("roots.pem", &certificate), ("tls-cert.pem", &certificate), ("tls-key.pem", &key.serialize_pem())]
    {
        std::fs::write(dir.join(name), text).unwrap();
    }
    let (port, management) = (free_port(), free_port());
    let at = dir.display();
    let bindings = external.map_or(String::new(), |(id, key)| {
        format!(",\"externalAccountBindingRequired\":true,\"externalAccountMACKeys\":{{\"{id}\":\"{key}\"}}")
    });
    let config = format!(
        "{{\"pebble\":{{\"listenAddress\":\"127.0.0.1:{port}\",\"managementListenAddress\":\"127.0.0.1:{management}\",\
         \"certificate\":\"{at}/tls-cert.pem\",\"privateKey\":\"{at}/tls-key.pem\",\"httpPort\":5002,\"tlsPort\":5001{bindings}}}}}"
    );
    std::fs::write(dir.join("pebble.json"), config).unwrap();
    (pebble_again(dir, dns, env, port), format!("https://127.0.0.1:{port}/dir"))
}

/// Pebble once more, with the files of before and nothing of what it knew.
pub fn pebble_again(dir: &Path, dns: u16, env: &[(&str, &str)], port: u16) -> Process {
    let mut command = Command::new("pebble");
    command.arg("-config").arg(dir.join("pebble.json")).args(["-dnsserver", &format!("127.0.0.1:{dns}")]);
    if !env.iter().any(|(name, _)| *name == "PEBBLE_VA_SLEEPTIME") {
        command.env("PEBBLE_VA_NOSLEEP", "1");
    }
    let mut child = command
        .envs(env.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("pebble is needed: apt install pebble");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let process = Process(child);
    loop {
        let line = lines.next().expect("pebble has ended").unwrap();
        if line.contains("ACME directory available at") {
            break;
        }
    }
    // It says so before it listens, and nothing after that.
    let begin = std::time::Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(begin.elapsed() < Duration::from_secs(20), "pebble does not listen");
        std::thread::sleep(Duration::from_millis(5));
    }
    // It stops when nobody reads what it says.
    std::thread::spawn(move || lines.for_each(drop));
    process
}

/// What `kdig` sees, one line a record.
pub fn kdig(port: u16, name: &str, kind: &str) -> Vec<String> {
    let output = Command::new("kdig")
        .args(["@127.0.0.1", "-p", &port.to_string(), name, kind, "+short"])
        .output()
        .expect("kdig is needed: apt install knot-dnsutils");
    assert!(output.status.success());
    let mut lines: Vec<String> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| line.trim_end().to_owned()).collect();
    lines.sort();
    lines
}
