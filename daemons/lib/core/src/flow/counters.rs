// SPDX-License-Identifier: Apache-2.0
//! What the data plane counts.

use crate::ids::InstanceId;
use serde::{Deserialize, Serialize};

/// Whether a number only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A total.
    Counter,
    /// A present state.
    Gauge,
}

macro_rules! counters {
    ($($kind:ident $name:ident $help:literal)*) => {
        /// Totals since the data plane started, and what there is now.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Counters {
            $(#[doc = $help] pub $name: u64,)*
        }

        impl Counters {
            /// Each number: its name (a metric's, without prefix), kind, help text, and value.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, Kind, &'static str, u64)> {
                [$((stringify!($name), Kind::$kind, $help, self.$name)),*].into_iter()
            }

            /// Adds the numbers of another worker or data plane.
            pub fn add(&mut self, other: &Self) {
                $(self.$name = self.$name.saturating_add(other.$name);)*
            }
        }
    };
}

counters! {
    Gauge open "Connections now, each with its client."
    Gauge half_open "Connections now that have not reached an app yet."
    Counter accepted "Connections accepted."
    Counter passed_through "Connections joined to an app with TLS passed through."
    Counter terminated "Connections joined to an app with TLS ended here."
    Counter http "Plain HTTP connections joined to an app."
    Counter ktls "Connections whose TLS the kernel took over."
    Counter ktls_failed "Connections lost since the kernel could not take TLS over, or change its keys."
    Gauge ktls_offered "Data planes whose kernel can take TLS over."
    Counter resumed "TLS handshakes that resumed a session."
    Counter bytes_up "Bytes from clients to apps."
    Counter bytes_down "Bytes from apps to clients."
    Counter not_tls "Streams that do not begin with a ClientHello."
    Counter no_name "ClientHellos without server name."
    Counter unknown_name "Names that lead nowhere."
    Counter bad_http "Plain HTTP requests that cannot be routed."
    Counter no_instance "Apps without an instance that takes connections."
    Counter port_refused "Ports that the instance's policy does not allow."
    Counter app_full "Connections refused because their app has too many."
    Counter no_certificate "Names without a certificate."
    Counter tls_failed "TLS handshakes that failed."
    Counter tls_broken "Streams that ended by a TLS error after their handshake."
    Counter renegotiations "Renegotiations that clients asked for, all refused."
    Counter hello_timeout "Clients whose ClientHello or head took too long."
    Counter handshake_timeout "TLS handshakes that took too long."
    Counter connect_failed "Connections to instances that failed."
    Counter connect_timeout "Clients for whom no instance answered in time."
    Counter idle_timeout "Connections closed since neither side sent anything."
    Counter write_timeout "Connections closed since one side took nothing."
    Counter total_timeout "Connections closed at their longest age."
    Counter early_close "Clients that went away before they reached an app."
    Counter reset "Connections that ended by an error or reset of one side."
    Counter evicted "Half-open connections closed to make room."
    Counter fd_exhausted "Times that accepting paused for lack of descriptors."
    Counter name_lookups "Custom domains asked from the control plane."
    Counter name_timeout "Custom domains that were not answered in time."
    Counter panics "Connections ended by a defect of this program."
}

/// What happened to one instance since the data plane started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStats {
    /// The instance.
    pub instance: InstanceId,
    /// Connections made.
    #[serde(default)]
    pub connected: u64,
    /// Attempts that failed or came to nothing in time.
    #[serde(default)]
    pub failed: u64,
    /// Connections now.
    #[serde(default)]
    pub open: u64,
}
