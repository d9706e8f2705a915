// SPDX-License-Identifier: Apache-2.0
//! Arguments of `verify`.

use crate::measure_cli::Boot;
use crate::quantity::parse_size;
use clap::{Args, ValueHint};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Exit status:
  0  verified: every rule was met
  6  refused: not genuine under the trusted root, or a rule was broken
  1  no verdict: something could not be read or fetched
  2  the command line is wrong

Examples:
  curl --unix-socket /var/run/tappd.sock 'http://x/prpc/Tappd.TdxQuote?json' | dstackctl verify -
  dstackctl verify quote.json --compose app-compose.json --kms 3059… --nonce 1234deadbeef
  dstackctl verify https://kms.example.com:9043
  dstackctl verify quote.json --image dstack-0.1.0 -c 2 -m 2G

See dstack-verify(7) for what a verdict says.";

/// `verify`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Verify {
    /// What an agent printed, a quote, a certificate, https://HOST:PORT, or - for standard input
    #[arg(value_name = "FILE|URL|-", value_hint = ValueHint::FilePath)]
    pub input: String,
    /// Event log of a quote that comes without one
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub event_log: Option<PathBuf>,
    /// Trust.
    #[command(flatten)]
    pub trust: Trust,
    /// Expectations.
    #[command(flatten)]
    pub expected: Expected,
    /// Comparison with an image.
    #[command(flatten)]
    pub compare: Compare,
}

/// Under which root, and by which collateral.
#[derive(Debug, Args)]
pub struct Trust {
    /// Trust this test root alone
    #[arg(long, value_name = "FILE", conflicts_with = "realm", value_hint = ValueHint::FilePath, help_heading = "Trust")]
    pub root: Option<PathBuf>,
    /// Demand this realm: intel, or test:FINGERPRINT of a root in trust.d
    #[arg(long, help_heading = "Trust")]
    pub realm: Option<String>,
    /// Take collateral from this file
    #[arg(long, value_name = "FILE", conflicts_with = "pccs", value_hint = ValueHint::FilePath, help_heading = "Trust")]
    pub collateral: Option<PathBuf>,
    /// Fetch collateral from here; default: the simulated TEE's socket, or Intel
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url, help_heading = "Trust")]
    pub pccs: Option<String>,
    /// Rules of a verifier's policy, TOML; default: the strict ones
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Trust")]
    pub policy: Option<PathBuf>,
}

/// What the evidence must say.
#[derive(Debug, Args)]
pub struct Expected {
    /// The app-compose.json that was reviewed
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Expectations")]
    pub compose: Option<PathBuf>,
    /// The key service, by the hex digits of its key_provider_id
    #[arg(long, value_name = "ID", help_heading = "Expectations")]
    pub kms: Option<String>,
    /// The 64 bytes of report data, hex
    #[arg(long, value_name = "HEX", conflicts_with = "nonce", help_heading = "Expectations")]
    pub report_data: Option<String>,
    /// The bytes that were given to the agent as report_data, hex
    #[arg(long, value_name = "HEX", help_heading = "Expectations")]
    pub nonce: Option<String>,
}

/// The image that is expected.
#[derive(Debug, Args)]
pub struct Compare {
    /// Compare with this image: its directory, or its name
    #[arg(long, value_name = "IMAGE", requires = "vcpus", requires = "memory", help_heading = "Image")]
    pub image: Option<String>,
    /// Virtual CPUs of the VM
    #[arg(short = 'c', long, value_name = "N", help_heading = "Image")]
    pub vcpus: Option<u32>,
    /// Memory of the VM, such as 2G
    #[arg(short, long, value_name = "SIZE", value_parser = parse_size, help_heading = "Image")]
    pub memory: Option<u64>,
    /// Let an image pass that people can log in to
    #[arg(long, help_heading = "Image")]
    pub allow_dev: bool,
    /// How it is booted.
    #[command(flatten)]
    pub boot: Boot,
}
