// SPDX-License-Identifier: Apache-2.0
//! A unit without systemd: directories, a notification socket, a QEMU and a guest that are scripts and threads.
#![allow(clippy::unwrap_used, clippy::panic)]

use dstack_core::spec::LaunchSpec;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Time after which a test has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Speaks QMP and writes a console line; what it does then is decided by the commands that it gets.
const QEMU: &str = r#"#!/bin/bash
[ "$1" = --version ] && { echo "QEMU emulator version 10.0.1 (fake)"; exit 0; }
for arg in "$@"; do
    case $arg in
    socket,id=qmp,fd=*) qmp=${arg##*=} ;;
    socket,id=serial,fd=*) serial=${arg##*=} ;;
    esac
done
printf '%s\n' "$@" >"$DIR/arguments"
end() { echo '{"event":"SHUTDOWN","data":{"guest":true,"reason":"'"$1"'"}}' >&$qmp; exit "${2:-0}"; }
printf '\e[2Jfirmware\r\n[    0.000000] hello\r\n' >&$serial
echo '{"QMP":{"version":{}}}' >&$qmp
BEGIN
while read -r -u $qmp line; do
    echo "$line" >>"$DIR/commands"
    case $line in
    *system_powerdown*) POWERDOWN ;;
    *quit*) end host-qmp-quit ;;
    *) echo '{"return":{}}' >&$qmp ;;
    esac
done
"#;

/// What a fake guest and its QEMU do.
#[derive(Clone, Copy)]
pub struct Behaviour {
    /// Bash, run by QEMU after its greeting.
    pub begin: &'static str,
    /// Bash, run by QEMU when the power button is pressed.
    pub power_down: &'static str,
    /// The guest's boot lines; `None`: nobody listens in the guest.
    pub lines: Option<&'static str>,
    /// The guest API's answer to Shutdown; `None`: it does not listen. After a success QEMU is told to end.
    pub shutdown: Option<&'static str>,
    /// The vsock process listens for QEMU.
    pub backend: bool,
    /// passt is there.
    pub network: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            begin: ":",
            power_down: "end guest-shutdown",
            lines: Some("DSTACK 1\nSTAGE config\nSTAGE app\nREADY\n"),
            shutdown: Some("HTTP/1.1 200 OK\r\n\r\n"),
            backend: true,
            network: true,
        }
    }
}

/// A running dstack-vm.
pub struct Bench {
    /// Everything is below it.
    pub dir: tempfile::TempDir,
    /// dstack-vm.
    pub child: Child,
    notify: Receiver<String>,
    /// Messages to systemd so far, one line each.
    pub told: Vec<String>,
    _backend: Option<UnixListener>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn script(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn launch(dir: &Path, change: impl FnOnce(&mut LaunchSpec)) -> Vec<u8> {
    let mut launch: LaunchSpec = serde_json::from_str(include_str!("../launch.json")).unwrap();
    launch.qemu = dir.join("qemu");
    launch.vsock_program = dir.join("vsock");
    change(&mut launch);
    serde_json::to_vec(&launch).unwrap()
}

impl Bench {
    /// Starts dstack-vm with a QEMU and a guest of this behaviour.
    pub fn start(behaviour: Behaviour, change: impl FnOnce(&mut LaunchSpec)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["credentials", "state", "runtime"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        let qemu = QEMU.replace("BEGIN", behaviour.begin).replace("POWERDOWN", behaviour.power_down);
        script(&at("qemu"), &qemu.replace("$DIR", dir.path().to_str().unwrap()));
        script(&at("qemu-img"), "#!/bin/bash\n[ \"$1\" = create ] && echo disk >\"$5\"\nexit 0\n");
        // The test itself listens where the vsock process would.
        script(&at("vsock"), "#!/bin/bash\nexec sleep 1000\n");
        if behaviour.network {
            std::fs::write(at("net"), "").unwrap();
        }
        std::fs::write(at("credentials/launch"), launch(dir.path(), change)).unwrap();
        let backend = behaviour.backend.then(|| UnixListener::bind(at("runtime/vhost-vsock.sock")).unwrap());
        serve_guest(UnixListener::bind(at("runtime/vsock.sock")).unwrap(), at("down"), behaviour);
        let notify = listen(UnixDatagram::bind(at("notify")).unwrap());
        let child = command(dir.path()).spawn().unwrap();
        Self { dir, child, notify, told: Vec::new(), _backend: backend }
    }

    /// Waits until systemd is told a line that begins so; returns it.
    pub fn until(&mut self, begin: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line =
                self.notify.recv_timeout(left).unwrap_or_else(|e| panic!("{begin}: {e}: {:#?}", self.told));
            self.told.push(line.clone());
            if line.starts_with(begin) {
                return line;
            }
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("bash").args(["-c", "kill -$0 $1", signal, &pid]).status().unwrap().success());
    }

    /// Waits for the end; returns the exit status and standard error.
    pub fn end(&mut self) -> (i32, String) {
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        (self.child.wait().unwrap().code().unwrap_or(-1), text)
    }

    /// The QMP commands that QEMU got.
    pub fn commands(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("commands")).unwrap_or_default()
    }

    /// Where dstack-vm looks for teepod.
    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dstack-vm"));
    command.arg("--home").arg(dir.join("home")).arg("--net-socket").arg(dir.join("net"));
    command.stderr(Stdio::piped()).env_remove("JOURNAL_STREAM");
    for (name, path) in [
        ("CREDENTIALS_DIRECTORY", "credentials"),
        ("STATE_DIRECTORY", "state"),
        ("RUNTIME_DIRECTORY", "runtime"),
        ("NOTIFY_SOCKET", "notify"),
    ] {
        command.env(name, dir.join(path));
    }
    command.env("WATCHDOG_USEC", "400000");
    command
}

/// Reads what systemd is told, always: a sender waits for a full socket.
fn listen(socket: UnixDatagram) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut message = [0; 4096];
        while let Ok(count) = socket.recv(&mut message) {
            let text = String::from_utf8_lossy(message.get(..count).unwrap()).into_owned();
            text.lines().for_each(|line| drop(sender.send(line.to_owned())));
        }
    });
    receiver
}

/// Serves `CONNECT port` as the vhost-user process and the guest behind it would.
fn serve_guest(listener: UnixListener, down: PathBuf, behaviour: Behaviour) {
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
            match (line.trim_end(), behaviour.lines, behaviour.shutdown) {
                ("CONNECT 9997", Some(lines), _) => {
                    write!(stream, "OK 1\n{lines}").unwrap();
                    open.push(stream);
                }
                ("CONNECT 8000", _, Some(answer)) => shut_down(stream, answer, &down),
                _ => {}
            }
        }
    });
}

fn shut_down(mut stream: UnixStream, answer: &str, down: &Path) {
    stream.write_all(b"OK 2\n").unwrap();
    let mut request = [0; 1024];
    let count = stream.read(&mut request).unwrap();
    assert!(request.get(..count).unwrap().starts_with(b"POST /api/Shutdown HTTP/1.1\r\n"));
    stream.write_all(answer.as_bytes()).unwrap();
    // A QEMU whose `begin` waits for this ends, as after the guest's poweroff.
    std::fs::write(down, "").unwrap();
}
