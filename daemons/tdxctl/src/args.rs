// SPDX-License-Identifier: Apache-2.0
//! Sub-commands and switches.

use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// Ask this VM's TEE
///
/// Filters: what a command needs it reads from standard input, what it makes it writes to standard output, raw.
#[derive(Debug, Parser)]
#[command(name = "tdxctl", version)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// A sub-command.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// 64 bytes of report data in, a 1024-byte TD report out (without MAC: it can be read, not verified)
    Report,
    /// 64 bytes of report data in, a quote out
    Quote,
    /// Extend RTMR3 by an event and add it to the log
    Extend {
        /// Name of the event: printable ASCII without ':'
        #[arg(short, long)]
        event: String,
        /// Payload, hexadecimal
        #[arg(short, long, default_value = "")]
        payload: String,
        /// Register; 3 is the only one for events
        #[arg(short, long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(3..=3))]
        index: u32,
    },
    /// Registers and event log as JSON
    Show,
    /// Print a file, or standard input, in hexadecimal
    Hex {
        /// The file
        file: Option<PathBuf>,
    },
    /// Make a key and a self-signed certificate with this VM's quote and event log
    GenRaCert {
        /// Where the certificate goes, PEM
        #[arg(short, long)]
        cert_path: PathBuf,
        /// Where the key goes, PEM, mode 0600
        #[arg(short, long)]
        key_path: PathBuf,
    },
    /// Make a key and a self-signed CA certificate with this VM's quote and event log
    GenCaCert {
        /// Where the certificate goes, PEM
        #[arg(long)]
        cert: PathBuf,
        /// Where the key goes, PEM, mode 0600
        #[arg(long)]
        key: PathBuf,
        /// How many CAs may stand below it
        #[arg(long, default_value_t = 1)]
        ca_level: u8,
    },
    /// Random bytes
    Rand {
        /// How many
        #[arg(short = 'n', long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
        bytes: u32,
        /// As hexadecimal text
        #[arg(short = 'x', long)]
        hex: bool,
        /// Where they go instead of standard output, mode 0600
        #[arg(short, long)]
        output: Option<PathBuf>,
    },
}
