// SPDX-License-Identifier: Apache-2.0
//! Arguments of `measure`, and those that `verify` shares with it.

use crate::quantity::parse_size;
use clap::{Args, ValueEnum, ValueHint};
use dstack_core::measure::mrtd::PageOrder;
use dstack_core::measure::{Platform, Shape};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Checked against values that real TDs quoted: RTMR0 (its memory map, variables and boot options, with the ACPI digests
given) and the fixed words of RTMR1. Computed by the published rules, and not yet compared with hardware: MRTD, the
digests of the UKI and its kernel, and RTMR2. See dstack-verify(7).

Examples:
  dstackctl measure dstack-0.1.0 -c 2 -m 2G --platform simulated
  dstackctl measure dstack-0.1.0 -c 2 -m 2G --platform simulated --policy > /etc/dstack/policy.d/image.toml
  dstackctl measure ./image -c 4 -m 8G --ccel ccel.bin --events";

/// Which TEE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PlatformArg {
    /// Intel TDX
    Tdx,
    /// The simulated TEE
    Simulated,
}

impl From<PlatformArg> for Platform {
    fn from(arg: PlatformArg) -> Self {
        match arg {
            PlatformArg::Tdx => Self::Tdx,
            PlatformArg::Simulated => Self::Simulated,
        }
    }
}

/// In which order the host builds a TD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum PageOrderArg {
    /// Linux 6.16 and later
    #[default]
    OnePass,
    /// Vendor kernels before
    TwoPass,
}

impl From<PageOrderArg> for PageOrder {
    fn from(arg: PageOrderArg) -> Self {
        match arg {
            PageOrderArg::OnePass => Self::OnePass,
            PageOrderArg::TwoPass => Self::TwoPass,
        }
    }
}

/// `measure`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Measure {
    /// Directory of an image, or the name of an installed one
    #[arg(value_hint = ValueHint::DirPath)]
    pub image: String,
    /// Virtual CPUs
    #[arg(short = 'c', long, value_name = "N")]
    pub vcpus: u32,
    /// Memory, such as 2G
    #[arg(short, long, value_name = "SIZE", value_parser = parse_size)]
    pub memory: u64,
    /// The TEE that the VM runs in
    #[arg(long, value_enum, default_value = "tdx")]
    pub platform: PlatformArg,
    /// How it is booted.
    #[command(flatten)]
    pub boot: Boot,
    /// Print every event that is measured
    #[arg(long)]
    pub events: bool,
    /// Print an image's entry for a verifier's policy, TOML
    #[arg(long, conflicts_with = "events")]
    pub policy: bool,
}

impl Measure {
    /// The shape.
    #[must_use]
    pub const fn shape(&self) -> Shape {
        Shape { vcpus: self.vcpus, memory: self.memory }
    }
}

/// What a host adds to an image.
#[derive(Debug, Clone, Default, Args)]
pub struct Boot {
    /// Firmware that boots an image which brings none
    #[arg(long, value_name = "FILE", default_value = "/usr/share/ovmf/OVMF.fd", value_hint = ValueHint::FilePath)]
    pub firmware: PathBuf,
    /// Directory with QEMU's fw_cfg files table-loader, rsdp and tables, for RTMR0
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "ccel", value_hint = ValueHint::DirPath)]
    pub acpi: Option<PathBuf>,
    /// CCEL table of a TD of this shape on this version of QEMU, for RTMR0's part of ACPI
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub ccel: Option<PathBuf>,
    /// In which order the host's kernel adds the firmware's pages
    #[arg(long, value_enum, default_value = "one-pass")]
    pub page_order: PageOrderArg,
}
