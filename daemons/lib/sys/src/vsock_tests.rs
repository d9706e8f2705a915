// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

fn place(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("dstack-vsock-{name}-{}", std::process::id()))
}

fn listener(name: &str) -> (PathBuf, UnixListener) {
    let path = place(name);
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    (path, listener)
}

fn ask_line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

#[test]
fn user_space_handshake_leaves_the_stream_untouched() {
    let (path, listener) = listener("ok");
    let mut connecting = Connecting::start(&Guest::User(path), 9997).unwrap();
    assert_eq!(connecting.interest(), PollFlags::OUT);
    assert!(connecting.advance().unwrap().is_none());
    assert_eq!(connecting.interest(), PollFlags::IN);
    let (mut server, _) = listener.accept().unwrap();
    assert_eq!(ask_line(&mut server), "CONNECT 9997\n");
    server.write_all(b"OK 10").unwrap();
    assert!(connecting.advance().unwrap().is_none());
    server.write_all(b"24\nDSTACK 1\n").unwrap();
    assert!(connecting.advance().unwrap().is_some());
    let mut stream = UnixStream::from(connecting.into_stream());
    let mut bytes = [0; 9];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"DSTACK 1\n");
}

#[test]
fn user_space_refusals() {
    let cases: [(&str, &[u8], io::ErrorKind); 3] = [
        ("closed", b"", io::ErrorKind::ConnectionReset),
        ("no", b"NO\n", io::ErrorKind::ConnectionRefused),
        ("long", &[b'x'; 100], io::ErrorKind::InvalidData),
    ];
    for (name, answer, kind) in cases {
        let (path, listener) = listener(name);
        let mut connecting = Connecting::start(&Guest::User(path), 1).unwrap();
        assert!(connecting.advance().unwrap().is_none());
        let (mut server, _) = listener.accept().unwrap();
        ask_line(&mut server);
        server.write_all(answer).unwrap();
        drop(server);
        assert_eq!(connecting.advance().unwrap_err().kind(), kind, "{name}");
    }
    assert!(Connecting::start(&Guest::User(place("absent")), 1).is_err());
}

#[test]
fn kernel_loopback_when_there_is_one() {
    // CID 1 is this machine itself, where the vsock_loopback module exists.
    let Ok(listener) = listen(Address { cid: ANY, port: ANY }) else { return };
    let Ok(local) = local_port(&listener) else { return };
    let Ok(mut connecting) = Connecting::start(&Guest::Kernel(1), local) else { return };
    if connecting.advance().is_ok_and(|done| done.is_some()) {
        let (_, from) = accept(listener.as_fd()).unwrap();
        assert_eq!(from.cid, 1);
        assert_eq!(peer(connecting.into_stream().as_fd()).unwrap().port, local);
    }
}

fn local_port(fd: &OwnedFd) -> io::Result<u32> {
    let mut raw = Address { cid: 0, port: 0 }.raw();
    let mut len = socklen::<libc::sockaddr_vm>();
    // SAFETY: `raw` is writable for `len` bytes, both outlive the call.
    check(unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut raw).cast(), &mut len) })?;
    Ok(address(raw)?.port)
}

#[test]
fn a_unix_peer_is_not_a_vsock_peer() {
    let (a, _b) = UnixStream::pair().unwrap();
    assert_eq!(peer(a.as_fd()).unwrap_err().kind(), io::ErrorKind::InvalidData);
}
