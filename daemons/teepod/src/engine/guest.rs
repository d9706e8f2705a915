// SPDX-License-Identifier: Apache-2.0
//! Reaching into a running VM: its guest API and its console, over descriptors that its dstack-vm passes.

use super::Engine;
use super::home::Wanted;
use super::vm::Vm;
use dstack_core::ids::AppId;
use dstack_core::limits::GUEST_API_PORT;
use dstack_rpc::client;
use dstack_service::api::teepod1::Error;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode};
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

/// Methods of the guest API that the host may call.
pub const METHODS: [&str; 5] = ["Info", "SysInfo", "NetworkInfo", "ListContainers", "Shutdown"];
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest refusal of a guest that is passed on, bytes.
const REFUSAL_MAX: usize = 4096;
/// Longest container name and query, bytes.
const LOGS_ARGUMENT_MAX: usize = 256;

impl Engine {
    /// Calls the guest API without arguments; returns the JSON of its answer.
    ///
    /// # Errors
    /// `VmNotRunning`, `GuestUnreachable`, or `InvalidArgument` for an unknown method.
    pub async fn call_guest(&self, vm: &Vm, method: &str) -> Result<String, Error> {
        if !METHODS.contains(&method) {
            let known = METHODS.join(", ");
            return Err(super::errors::invalid(format!("guest method {method:?} is not known: use {known}")));
        }
        let unreachable = |e: &dyn std::fmt::Display| {
            Error::GuestUnreachable(format!(
                "the guest of VM {} does not answer: {e}; try again when it is up",
                vm.name
            ))
        };
        let fd = self.open(vm, Wanted::Port(GUEST_API_PORT)).await?;
        let stream = dstack_rpc::Stream::from_fd(fd).map_err(|e| unreachable(&e))?;
        let path = format!("/api/{method}");
        let body = hyper::body::Bytes::from_static(b"{}");
        let reply = client::exchange(stream, Method::POST, &path, body, CALL_TIMEOUT);
        let reply = reply.await.map_err(|e| unreachable(&e))?;
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        if reply.status == StatusCode::OK {
            return Ok(text);
        }
        Err(unreachable(&format!("it answers {} to {method}", reply.status)))
    }

    /// The body of the guest agent's `/logs/<container>?<query>`, as a stream that ends when the guest ends it. An
    /// empty container gives the list of containers as JSON.
    ///
    /// # Errors
    /// `VmNotRunning`, `GuestUnreachable` with the guest's words when it refuses.
    pub async fn logs(&self, vm: &Vm, container: &str, query: &str) -> Result<OwnedFd, Error> {
        let path = logs_path(container, query)?;
        let failed = |e: &dyn std::fmt::Display| {
            Error::GuestUnreachable(format!("the guest of VM {} does not give its logs: {e}", vm.name))
        };
        let fd = self.open(vm, Wanted::Port(GUEST_API_PORT)).await?;
        let stream = dstack_rpc::Stream::from_fd(fd).map_err(|e| failed(&e))?;
        let request = Request::get(path).header(hyper::header::HOST, "localhost").body(Full::default());
        let sent = tokio::time::timeout(CALL_TIMEOUT, client::send(stream, request.map_err(|e| failed(&e))?));
        let answer = sent.await.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
        if answer.response.status() != StatusCode::OK {
            let body = Limited::new(answer.response.into_body(), REFUSAL_MAX).collect().await;
            let words =
                body.map(|b| String::from_utf8_lossy(&b.to_bytes()).into_owned()).map_err(|e| failed(&e))?;
            return Err(failed(&printable(&words)));
        }
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(|e| failed(&e))?;
        ours.set_nonblocking(true).map_err(|e| failed(&e))?;
        let ours = tokio::net::UnixStream::from_std(ours).map_err(|e| failed(&e))?;
        tokio::spawn(relay(answer, ours));
        Ok(theirs.into())
    }

    /// A two-way stream of the serial console.
    ///
    /// # Errors
    /// `VmNotRunning`, `GuestUnreachable`.
    pub async fn console(&self, vm: &Vm) -> Result<OwnedFd, Error> {
        self.open(vm, Wanted::Console).await
    }

    /// The public key to encrypt an app's environment for.
    ///
    /// # Errors
    /// `InvalidArgument`, or `NoKms`: this teepod asks no key service yet.
    pub fn app_env_key(&self, app_id: &str) -> Result<Vec<u8>, Error> {
        app_id.parse::<AppId>().map_err(super::errors::invalid)?;
        Err(Error::NoKms(
            "no key service is set up, so there is no key for secrets; deploy without them".to_owned(),
        ))
    }

    async fn open(&self, vm: &Vm, wanted: Wanted) -> Result<OwnedFd, Error> {
        let name = &vm.name;
        if vm.state().is_down() {
            return Err(Error::VmNotRunning(format!(
                "VM {name} is {}; start it first (`dstackctl vm start {name}`)",
                vm.state().word()
            )));
        }
        let gone = || {
            Error::GuestUnreachable(format!(
                "VM {name} is not connected to teepod yet; try again in a moment, or see `systemctl status {}`",
                name.unit()
            ))
        };
        let home = vm.home().ok_or_else(gone)?;
        home.open(wanted).await.map_err(|e| match e {
            Some(text) => Error::GuestUnreachable(format!("VM {name}: {text}")),
            None => gone(),
        })
    }
}

/// The path of a container's log, or of the list of containers.
fn logs_path(container: &str, query: &str) -> Result<String, Error> {
    let plain = |text: &str, extra: &[u8]| {
        text.len() <= LOGS_ARGUMENT_MAX
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || extra.contains(&b))
    };
    if !plain(container, b"-_.") || container.starts_with('.') {
        return Err(super::errors::invalid(format!("container {container:?} is not a container's name")));
    }
    if !plain(query, b"-_.=&:") {
        let known = "since, until, follow, text, timestamps, bare, tail, ansi";
        return Err(super::errors::invalid(format!(
            "log query {query:?} is not allowed: join {known} by '&'"
        )));
    }
    Ok(if container.is_empty() {
        "/api/ListContainers".to_owned()
    } else {
        format!("/logs/{container}?{query}")
    })
}

/// A guest's words, fit for a terminal.
fn printable(words: &str) -> String {
    words.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Copies the body until either side ends; a reader that takes nothing holds up only itself.
async fn relay(answer: client::Streaming, mut to: UnixStream) {
    let client::Streaming { response, driver } = answer;
    let mut body = response.into_body();
    let mut gone = [0; 1];
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            // The reader never writes: whatever arrives means that it is gone.
            _ = to.readable() => match to.try_read(&mut gone) {
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => continue,
                _ => break,
            },
        };
        let Some(Ok(frame)) = frame else { break };
        // Trailers carry nothing.
        let Some(data) = frame.data_ref() else { continue };
        if to.write_all(data).await.is_err() {
            break;
        }
    }
    drop(driver);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p26_a_container_is_a_name_and_a_query_is_plain() {
        assert_eq!(logs_path("web-1", "tail=5&text").unwrap(), "/logs/web-1?tail=5&text");
        assert_eq!(logs_path("", "").unwrap(), "/api/ListContainers");
        for bad in ["../api", "a/b", "a b", "..", "a?b", "a\r\nb", &"x".repeat(257)] {
            assert!(logs_path(bad, "").is_err(), "{bad:?}");
        }
        for bad in ["a b", "tail=1#x", "x\r\nHost: y", "a/b"] {
            assert!(logs_path("web", bad).is_err(), "{bad:?}");
        }
        assert_eq!(printable(" a\u{1b}[2Jb\n"), "a [2Jb");
    }
}
