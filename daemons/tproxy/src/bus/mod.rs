// SPDX-License-Identifier: Apache-2.0
//! The D-Bus adapter: arguments in, permission, engine call, error out. It decides nothing.

pub mod introspect;
pub mod manager;

/// polkit actions; each has a text in `org.dstack.tproxy1.policy`.
pub mod actions {
    /// Reading.
    pub const INSPECT: &str = "org.dstack.tproxy1.inspect";
    /// Draining and removing instances.
    pub const MANAGE_INSTANCES: &str = "org.dstack.tproxy1.manage-instances";
    /// Reading settings and certificates again, and replacing the data plane.
    pub const RELOAD: &str = "org.dstack.tproxy1.reload";
    /// All of them.
    pub const ALL: [&str; 3] = [INSPECT, MANAGE_INSTANCES, RELOAD];
}
