// SPDX-License-Identifier: Apache-2.0
//! The D-Bus adapter: arguments in, permission, engine call, error out. It decides nothing.

pub mod introspect;
pub mod job;
pub mod manager;

/// polkit actions; each has a text in `org.dstack.ctmonitor1.policy`.
pub mod actions {
    /// Reading.
    pub const INSPECT: &str = "org.dstack.ctmonitor1.inspect";
    /// Checking now, and canceling a check.
    pub const CHECK: &str = "org.dstack.ctmonitor1.check";
    /// Acknowledging alerts.
    pub const ACKNOWLEDGE: &str = "org.dstack.ctmonitor1.acknowledge";
    /// All of them.
    pub const ALL: [&str; 3] = [INSPECT, CHECK, ACKNOWLEDGE];
}
