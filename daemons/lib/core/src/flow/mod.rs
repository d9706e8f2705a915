// SPDX-License-Identifier: Apache-2.0
//! The frames between tproxy's control plane and its data plane.
//!
//! dstack-tproxy-flow connects to the control plane's stream socket [`SOCKET`] and says [`FromFlow::Hello`]; control
//! answers with [`ToFlow::Config`], [`ToFlow::Certificates`] and [`ToFlow::Routes`], in this order, and goes on with
//! changes. After every reconnection all three come again, so each side may be restarted at any time; a data plane
//! keeps what it had until then. Control says what was attested; the data plane decides nothing about trust.
//!
//! A frame is its length (u32, big endian, at most [`FRAME_MAX`], without these four bytes) and one JSON object with
//! one key, the kind: `{"name":{"name":"www.example.org"}}`. A data plane of tomorrow meets a control plane of today:
//! fields are only added and have defaults, unknown fields are ignored, unknown kinds are skipped ([`Parsed::Unknown`]),
//! and [`PROTOCOL`] rises only when that is not enough.

mod config;
mod counters;
mod frame;

pub use config::{Certificate, Config, Instance, Ktls, Secret, Timeouts};
pub use counters::{Counters, InstanceStats, Kind};
pub use frame::{Decoder, FrameError, Message, Parsed, format, parse};

use crate::ids::{AppId, InstanceId};
use serde::{Deserialize, Serialize};

/// Where the control plane listens for its data planes (`SOCK_STREAM`).
pub const SOCKET: &str = "/run/dstack-tproxy/flow.sock";
/// Version of this protocol.
pub const PROTOCOL: u32 = 1;
/// Largest frame, bytes: a snapshot of [`INSTANCES_MAX`] instances fits.
pub const FRAME_MAX: usize = 32 * 1024 * 1024;
/// Most instances in a snapshot or a delta.
pub const INSTANCES_MAX: usize = 65_536;
/// Most certificates.
pub const CERTIFICATES_MAX: usize = 256;
/// Most names of one certificate.
pub const CERTIFICATE_NAMES_MAX: usize = 100;
/// Largest certificate chain or key, bytes of PEM.
pub const PEM_MAX: usize = 64 * 1024;
/// Most base domains.
pub const BASE_DOMAINS_MAX: usize = 16;
/// Most ports in one list of an instance.
pub const PORTS_MAX: usize = 64;
/// Longest DNS name, bytes.
pub const NAME_MAX: usize = 253;

/// A frame from control to the data plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToFlow {
    /// Settings; replaces the last.
    Config(Config),
    /// All certificates; replaces the last. New handshakes use them, connections go on.
    Certificates(Vec<Certificate>),
    /// All instances; replaces what was there. Connections to instances that are gone go on.
    Routes {
        /// The instances.
        instances: Vec<Instance>,
    },
    /// Some instances.
    RouteDelta {
        /// New or changed ones, whole.
        #[serde(default)]
        upsert: Vec<Instance>,
        /// Those that are gone.
        #[serde(default)]
        remove: Vec<InstanceId>,
    },
    /// Answer to [`FromFlow::Name`].
    NameAnswer {
        /// The name, as asked.
        name: String,
        /// Where it leads; `None` when its owner says nothing usable, or the lookup failed.
        target: Option<Target>,
        /// How long the answer may be kept, seconds.
        ttl: u32,
    },
    /// No new connections to this instance until the next route for it; the same as [`Instance::draining`].
    Drain {
        /// The instance.
        instance: InstanceId,
    },
}

/// Where a custom domain leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Target {
    /// App or instance id.
    pub id: AppId,
    /// Port in the CVM, not 0.
    pub port: u16,
}

/// A frame from the data plane to control.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FromFlow {
    /// First frame of a connection.
    Hello {
        /// [`PROTOCOL`] of the sender.
        version: u32,
        /// Generation, the instance name of its unit; 0 when started by hand.
        #[serde(default)]
        generation: u64,
        /// Its process id.
        #[serde(default)]
        pid: u32,
    },
    /// Where does this custom domain lead? Not asked again before the answer, or 10 seconds.
    Name {
        /// The name, in lower case, without a dot at the end.
        name: String,
    },
    /// What happened since the data plane started; every few seconds when something did, and when it has drained.
    Stats(Box<Stats>),
    /// The last connection of a data plane that was told to stop has ended; the process ends next.
    Drained {},
}

/// What a data plane counts. Totals since its start; only instances with news since the last frame are listed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Totals and gauges.
    pub counters: Counters,
    /// Per instance.
    pub instances: Vec<InstanceStats>,
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
