// SPDX-License-Identifier: Apache-2.0
//! The D-Bus adapter: arguments in, permission, engine call, error out. It decides nothing.

pub mod introspect;
pub mod manager;

/// polkit actions; each has a text in `org.dstack.kms1.policy`.
pub mod actions {
    /// Reading.
    pub const INSPECT: &str = "org.dstack.kms1.inspect";
    /// Judging again whoever got keys lately: each costs a verification.
    pub const FORECAST: &str = "org.dstack.kms1.forecast";
    /// Making the root keys.
    pub const BOOTSTRAP: &str = "org.dstack.kms1.bootstrap";
    /// Allowing and revoking compose files.
    pub const MANAGE_UPGRADES: &str = "org.dstack.kms1.manage-upgrades";
    /// Letting any data disk of an instance pass once.
    pub const FORGET_DISK: &str = "org.dstack.kms1.forget-disk";
    /// Moving the root keys to or from another key service.
    pub const ONBOARD: &str = "org.dstack.kms1.onboard";
    /// Getting a certificate as the ingress.
    pub const SIGN_GATEWAY: &str = "org.dstack.kms1.sign-gateway";
    /// Reading policy and trust roots again.
    pub const RELOAD: &str = "org.dstack.kms1.reload";
    /// All of them.
    pub const ALL: [&str; 8] =
        [INSPECT, FORECAST, BOOTSTRAP, MANAGE_UPGRADES, FORGET_DISK, ONBOARD, SIGN_GATEWAY, RELOAD];
}
