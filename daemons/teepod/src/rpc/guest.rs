// SPDX-License-Identifier: Apache-2.0
//! `/guest/<Method>`: the guest API of a VM, by its id.

use crate::engine::Engine;
use crate::engine::guest::METHODS;
use dstack_rpc::guest::{GuestInfo, ListContainersResponse, NetworkInfo, SysInfo};
use dstack_rpc::teepod::Id;
use dstack_rpc::{Call, RpcError, Service};
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Forwards calls.
#[derive(Debug)]
pub struct Guest {
    engine: Engine,
}

impl Guest {
    /// Forwards to the guests of this engine.
    #[must_use]
    pub const fn new(engine: Engine) -> Self {
        Self { engine }
    }

    /// Answers in the caller's format, also where the guest speaks JSON only.
    async fn forward<T>(&self, call: &Call) -> Result<Vec<u8>, RpcError>
    where
        T: Message + Serialize + DeserializeOwned + Default,
    {
        let id: Id = call.args()?;
        let failed = |e: dstack_service::api::teepod1::Error| RpcError::failed(e.to_string());
        let vm = self.engine.get(&id.id).map_err(failed)?;
        let json = self.engine.call_guest(&vm, &call.method).await.map_err(failed)?;
        let text = if json == "null" { "{}" } else { json.as_str() };
        let reply: T = serde_json::from_str(text).map_err(|e| {
            RpcError::failed(format!("the guest's answer to {} is not valid: {e}", call.method))
        })?;
        call.reply(&reply)
    }
}

/// The empty message, which is `null` in JSON.
async fn empty(guest: &Guest, call: &Call) -> Result<Vec<u8>, RpcError> {
    let id: Id = call.args()?;
    let failed = |e: dstack_service::api::teepod1::Error| RpcError::failed(e.to_string());
    let vm = guest.engine.get(&id.id).map_err(failed)?;
    guest.engine.call_guest(&vm, &call.method).await.map_err(failed)?;
    call.reply(&())
}

impl Service for Guest {
    const NAMES: &'static [&'static str] = &["ProxiedGuestApi"];

    async fn call(&self, call: Call) -> Result<Vec<u8>, RpcError> {
        debug_assert_eq!(METHODS.len(), 5);
        match call.method.as_str() {
            "Info" => self.forward::<GuestInfo>(&call).await,
            "SysInfo" => self.forward::<SysInfo>(&call).await,
            "NetworkInfo" => self.forward::<NetworkInfo>(&call).await,
            "ListContainers" => self.forward::<ListContainersResponse>(&call).await,
            "Shutdown" => empty(self, &call).await,
            method => Err(RpcError::unknown_method(method)),
        }
    }
}
