// SPDX-License-Identifier: Apache-2.0
//! The D-Bus adapter: arguments in, permission, engine call, error out. It decides nothing.

pub mod errors;
pub mod introspect;
pub mod job;
pub mod manager;
pub mod rows;
pub mod secret;
pub mod work;

/// polkit actions; each has a text in `org.dstack.certbot1.policy`.
pub mod actions {
    /// Reading.
    pub const INSPECT: &str = "org.dstack.certbot1.inspect";
    /// Renewing, and writing CAA records.
    pub const MANAGE: &str = "org.dstack.certbot1.manage";
    /// Rehearsing.
    pub const REHEARSE: &str = "org.dstack.certbot1.rehearse";
    /// Reading the settings again.
    pub const RELOAD: &str = "org.dstack.certbot1.reload";
    /// All of them.
    pub const ALL: [&str; 4] = [INSPECT, MANAGE, REHEARSE, RELOAD];
}
