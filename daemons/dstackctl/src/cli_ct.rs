// SPDX-License-Identifier: Apache-2.0
//! The arguments of `ct`.

use clap::{Args, Subcommand};

/// What can be done with the certificate monitor of a host.
#[derive(Debug, Subcommand)]
pub enum CtCommand {
    /// Show what is watched, the sources, and what went wrong
    Status,
    /// List the alerts, those that nobody has acknowledged first
    Alerts,
    /// Check now; exit code 1 when there are new alerts, or something could not be checked
    Check,
    /// Say that somebody has looked at alerts
    #[command(visible_alias = "ack")]
    Acknowledge(Acknowledge),
}

/// `ct acknowledge`.
#[derive(Debug, Args)]
pub struct Acknowledge {
    /// Ids of the alerts, or the first eight or more digits of them
    #[arg(required_unless_present = "all")]
    pub alerts: Vec<String>,
    /// All that are open
    #[arg(long, conflicts_with = "alerts")]
    pub all: bool,
}
