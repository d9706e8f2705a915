// SPDX-License-Identifier: Apache-2.0
//! vsock 8000: `/api/<Method>` and `/logs/<container>` for teepod on the host, and for nobody else (T18).

use crate::agent::Agent;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use dstack_rpc::guest::{Container, ListContainersResponse};
use dstack_rpc::listener::HOST_CID;
use dstack_rpc::{Call, Peer, RpcError, Service};
use std::sync::Arc;

/// Ends the guest in order.
pub trait Power: Send + Sync + 'static {
    /// Begins an orderly shutdown and returns at once.
    fn shut_down(&self) -> impl Future<Output = Result<(), String>> + Send;
}

/// systemd's `poweroff.target`: services stop in order, then the machine.
#[derive(Debug)]
pub struct SystemdPower(zbus::Connection);

impl SystemdPower {
    /// Over this connection to the system bus.
    #[must_use]
    pub const fn new(bus: zbus::Connection) -> Self {
        Self(bus)
    }
}

impl Power for SystemdPower {
    // Manager.PowerOff() would cut services off; the target's job is queued, so the answer still goes out.
    async fn shut_down(&self) -> Result<(), String> {
        let manager = dstack_service::api::systemd1::ManagerProxy::new(&self.0);
        let manager = manager.await.map_err(|e| e.to_string())?;
        let job = manager.start_unit("poweroff.target", "replace-irreversibly").await;
        job.map(drop).map_err(|e| format!("systemd refuses to power off: {e}"))
    }
}

/// The guest API.
#[derive(Debug)]
pub struct GuestApi<P> {
    agent: Arc<Agent>,
    power: P,
}

/// Everything that the `guest-api` socket serves.
pub fn router<P: Power>(agent: Arc<Agent>, power: P) -> Router {
    let api = dstack_rpc::router("/api", Arc::new(GuestApi::new(Arc::clone(&agent), power)));
    Router::new().route("/logs/{container}", get(logs)).with_state(agent).merge(api)
}

const HOST_ONLY: &str = "the guest API answers the host only";

const fn is_host(peer: Option<&Peer>) -> bool {
    matches!(peer, Some(Peer::Vsock { cid: HOST_CID, .. }))
}

/// The logs that the app makes public anyway, for an operator without a way into the guest's network.
async fn logs(
    State(agent): State<Arc<Agent>>,
    peer: Option<Extension<Peer>>,
    Path(container): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    if !is_host(peer.as_deref()) {
        return (StatusCode::FORBIDDEN, HOST_ONLY).into_response();
    }
    crate::http::read_logs(&agent, &container, &query.unwrap_or_default()).await
}

impl<P: Power> Service for GuestApi<P> {
    const NAMES: &'static [&'static str] = &["GuestApi"];

    async fn call(&self, call: Call) -> Result<Vec<u8>, RpcError> {
        if !is_host(call.peer.as_ref()) {
            return Err(RpcError::forbidden(HOST_ONLY));
        }
        match call.method.as_str() {
            "Info" => call.reply(&self.agent.guest_info().await),
            "SysInfo" => call.reply(&self.agent.sysinfo()),
            "NetworkInfo" => call.reply(&self.agent.network()),
            "ListContainers" => call.reply(&self.containers().await?),
            "Shutdown" => {
                tracing::info!("the host asks for a shutdown");
                self.power.shut_down().await.map_err(RpcError::failed)?;
                call.reply(&())
            }
            other => Err(RpcError::unknown_method(other)),
        }
    }
}

impl<P: Power> GuestApi<P> {
    /// The API of this agent.
    #[must_use]
    pub const fn new(agent: Arc<Agent>, power: P) -> Self {
        Self { agent, power }
    }

    async fn containers(&self) -> Result<ListContainersResponse, RpcError> {
        let containers = self.agent.containers().await.map_err(|e| RpcError::failed(e.to_string()))?;
        Ok(ListContainersResponse { containers: containers.into_iter().map(for_host).collect() })
    }
}

/// Command lines may carry secrets, so the host does not see them (T18).
fn for_host(container: Container) -> Container {
    Container { command: String::new(), ..container }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t18_no_command_line_reaches_the_host() {
        let container =
            Container { command: "run --token=x".into(), state: "running".into(), ..Default::default() };
        let seen = for_host(container);
        assert_eq!((seen.command.as_str(), seen.state.as_str()), ("", "running"));
    }
}
