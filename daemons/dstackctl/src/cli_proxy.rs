// SPDX-License-Identifier: Apache-2.0
//! The arguments of `proxy`.

use clap::{Args, Subcommand};
use dstack_core::ids::InstanceId;

/// What can be done with the ingress of a host.
#[derive(Debug, Subcommand)]
pub enum ProxyCommand {
    /// List the registered instances of apps
    #[command(visible_alias = "ls")]
    List,
    /// Show the ingress, or everything about an instance
    Info(Info),
    /// Keep new connections away from an instance
    Drain(Instance),
    /// Let an instance have new connections again
    Undrain(Instance),
    /// Forget an instance; one that still runs registers again
    #[command(visible_alias = "rm")]
    Remove(Instance),
    /// Show the numbers of the data planes
    Stats,
}

/// `proxy info`.
#[derive(Debug, Args)]
pub struct Info {
    /// Id of an instance, 40 hex digits
    pub instance: Option<InstanceId>,
}

/// An instance.
#[derive(Debug, Args)]
pub struct Instance {
    /// Its id, 40 hex digits
    pub instance: InstanceId,
}
