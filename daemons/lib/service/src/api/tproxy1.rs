// SPDX-License-Identifier: Apache-2.0
//! `org.dstack.tproxy1`: the ingress of a host.

use std::collections::HashMap;
use zbus::{OwnedVariant, proxy};

/// Well-known bus name.
pub const NAME: &str = "org.dstack.tproxy1";
/// Path of the manager object.
pub const PATH: &str = "/org/dstack/tproxy1";

/// An instance: `id s`, `app s`, `address s`, `public_key s` (WireGuard, base64), `registered t`, `handshake t` (Unix
/// seconds, 0: never), `online b`, `drained b`, `clone_alarm t` (when two were seen with its identity, 0: never),
/// `connected t`, `failed t`, `open t` (connections of all data planes).
pub type InstanceRow = HashMap<String, OwnedVariant>;

/// An app id, and the ids of its instances that take connections, the likeliest first.
pub type RouteRow = (String, Vec<String>);

crate::bus_errors! {
    /// What the ingress refuses, and what to do about it.
    pub enum Error in "org.dstack.tproxy1" {
        /// The configuration names no domain and endpoint yet.
        NotConfigured,
        /// No such instance is registered.
        NoSuchInstance,
        /// An id is out of form.
        InvalidArgument,
        /// A setting or certificate is not usable.
        Misconfigured,
        /// The state cannot be written.
        StateUnwritable,
        /// There is no tunnel.
        TunnelFailed,
        /// The new data plane does not start; the old one goes on.
        DataPlaneFailed,
    }
}

/// Client side of `org.dstack.tproxy1.Manager`.
#[proxy(
    interface = "org.dstack.tproxy1.Manager",
    default_service = "org.dstack.tproxy1",
    default_path = "/org/dstack/tproxy1"
)]
pub trait Manager {
    /// All registered instances.
    fn list_instances(&self) -> Result<Vec<InstanceRow>, Error>;
    /// One instance, by its id.
    fn get_instance(&self, instance: &str) -> Result<InstanceRow, Error>;
    /// Apps and where their connections go.
    fn list_routes(&self) -> Result<Vec<RouteRow>, Error>;
    /// Keeps new connections away from an instance.
    fn drain(&self, instance: &str) -> Result<(), Error>;
    /// Lets it have them again.
    fn undrain(&self, instance: &str) -> Result<(), Error>;
    /// Forgets an instance; it may register again.
    fn remove(&self, instance: &str) -> Result<(), Error>;
    /// Numbers of all data planes.
    fn stats(&self) -> Result<HashMap<String, u64>, Error>;
    /// Reads settings and certificates again, and replaces the data plane.
    fn reload(&self) -> Result<(), Error>;

    /// Whether it works: domain and endpoint are set.
    #[zbus(property)]
    fn configured(&self) -> zbus::Result<bool>;
    /// Domain under which apps are.
    #[zbus(property)]
    fn base_domain(&self) -> zbus::Result<String>;
    /// TCP port at which clients reach it; 0 before it is set up.
    #[zbus(property(emits_changed_signal = "const"))]
    fn listen_port(&self) -> zbus::Result<u16>;
    /// Where guests reach WireGuard.
    #[zbus(property)]
    fn endpoint(&self) -> zbus::Result<String>;
    /// WireGuard key, base64.
    #[zbus(property)]
    fn public_key(&self) -> zbus::Result<String>;
    /// What it does, in words, as `systemctl status` shows it.
    #[zbus(property(emits_changed_signal = "false"))]
    fn status(&self) -> zbus::Result<String>;
    /// Registered instances.
    #[zbus(property(emits_changed_signal = "false"))]
    fn registered(&self) -> zbus::Result<u32>;
    /// Those with a handshake in the last 300 seconds.
    #[zbus(property(emits_changed_signal = "false"))]
    fn online(&self) -> zbus::Result<u32>;
    /// Newest generation of the data planes that are connected, 0 when there is none.
    #[zbus(property(emits_changed_signal = "false"))]
    fn generation(&self) -> zbus::Result<u64>;
    /// Version of the daemon.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> zbus::Result<String>;

    /// An instance is registered that was not.
    #[zbus(signal)]
    fn instance_added(&self, instance: String, app: String, address: String) -> zbus::Result<()>;
    /// One is not registered any more.
    #[zbus(signal)]
    fn instance_removed(&self, instance: String, app: String) -> zbus::Result<()>;
    /// Two machines run with one identity (trust rule T21).
    #[zbus(signal)]
    fn clone_alarm(&self, instance: String, app: String) -> zbus::Result<()>;
}
