// SPDX-License-Identifier: Apache-2.0
//! Reaching into a running VM: its guest API and its console, over descriptors that its dstack-vm passes.

use super::Engine;
use super::home::Wanted;
use super::vm::Vm;
use dstack_core::ids::AppId;
use dstack_core::limits::GUEST_API_PORT;
use dstack_rpc::client;
use dstack_service::api::teepod1::Error;
use hyper::{Method, StatusCode};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Methods of the guest API that the host may call.
pub const METHODS: [&str; 5] = ["Info", "SysInfo", "NetworkInfo", "ListContainers", "Shutdown"];
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

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
            Error::GuestUnreachable(format!("the guest of VM {} does not answer: {e}; try again when it is up", vm.name))
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
