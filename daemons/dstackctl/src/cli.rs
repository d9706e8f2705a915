// SPDX-License-Identifier: Apache-2.0
//! The command line. Man pages and shell completions are generated from these types.

use crate::cli_cert::CertCommand;
use crate::cli_ct::CtCommand;
use crate::cli_deploy::{Deploy, Upgrade};
use crate::cli_init::Init;
use crate::cli_kms::{AppCommand, KmsCommand};
use crate::cli_proxy::ProxyCommand;
use crate::measure_cli::Measure;
use crate::quantity::{PortArg, parse_duration, parse_port, parse_size};
use crate::verify_cli::Verify;
use clap::{Args, Parser, Subcommand, ValueHint};
use std::path::PathBuf;
use std::time::Duration;

const EXIT_CODES: &str = "\
Exit status:
  0  done
  1  failed
  2  the command line is wrong
  3  no such VM, image, container, upgrade or key service
  4  not allowed
  5  took too long
  6  evidence was refused (verify)
  130  interrupted by Ctrl-C

Examples:
  sudo dstackctl init
  dstackctl doctor
  dstackctl deploy docker-compose.yaml -p 8080:80
  dstackctl deploy docker-compose.yaml --env-file .env
  dstackctl vm list
  dstackctl logs NAME CONTAINER -f";

/// Deploy Docker apps into confidential VMs, and look after them.
#[derive(Debug, Parser)]
#[command(name = "dstackctl", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Default, Args)]
pub struct Global {
    /// Print JSON instead of text
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// Work on another host, over ssh
    #[arg(
        short = 'H', long, global = true, value_name = "[USER@]HOST", value_hint = ValueHint::Hostname,
        help_heading = "Global options"
    )]
    pub host: Option<String>,
    /// Never ask for a password
    #[arg(long, global = true, help_heading = "Global options")]
    pub no_ask_password: bool,
    /// Wait until it is done (default)
    #[arg(long, global = true, overrides_with = "no_wait", help_heading = "Global options")]
    pub wait: bool,
    /// Return as soon as it is under way
    #[arg(long, global = true, help_heading = "Global options")]
    pub no_wait: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Set this host up: domain, addresses, ports, certificate, keys
    Init(Box<Init>),
    /// Run an app in a new VM
    Deploy(Box<Deploy>),
    /// Manage VMs
    #[command(subcommand)]
    Vm(VmCommand),
    /// Manage guest images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Manage keys: this host's key service, and those that you trust
    #[command(subcommand)]
    Kms(KmsCommand),
    /// Manage the ingress of a host: who is registered, and where connections go
    #[command(subcommand)]
    Proxy(ProxyCommand),
    /// Watch certificate transparency: alerts over certificates of unknown keys
    #[command(subcommand)]
    Ct(CtCommand),
    /// Manage the certificates of the ingress
    #[command(subcommand)]
    Cert(CertCommand),
    /// Keys and statements of an app's owner
    #[command(subcommand)]
    App(AppCommand),
    /// Show the logs of an app's containers, or of its VM
    Logs(Logs),
    /// Check that this host can run VMs, and say what to mend
    Doctor,
    /// Say what a VM of an image measures at boot
    Measure(Box<Measure>),
    /// Judge the evidence of a VM, and explain the verdict
    Verify(Box<Verify>),
}

/// What can be done with VMs.
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// List all VMs
    #[command(visible_alias = "ls")]
    List,
    /// Show everything about a VM
    Show(Name),
    /// Start a VM and wait until its app is up
    Start(Name),
    /// Shut a VM down in order
    Stop(Name),
    /// End a VM at once, like pulling the plug
    Kill(Name),
    /// Stop a VM, then start it
    Restart(Name),
    /// Remove a VM with its disk
    #[command(visible_alias = "rm")]
    Remove(Remove),
    /// Change the shape, image or ports of a stopped VM
    Resize(Resize),
    /// Give a VM another version of its app, in force from its next start
    Upgrade(Box<Upgrade>),
    /// Connect to the serial console; Ctrl-] three times ends it
    Console(Name),
    /// Show the VM's journal: boot stages and console
    Logs(VmLogs),
    /// Wait until a VM is in a state
    Wait(Wait),
}

/// What can be done with guest images.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List the installed images
    #[command(visible_alias = "ls")]
    List,
    /// Check an image directory and install it
    Import(Import),
    /// Remove an image that no VM uses
    #[command(visible_alias = "rm")]
    Remove(ImageRemove),
}

/// A VM.
#[derive(Debug, Args)]
pub struct Name {
    /// Name or id of the VM
    pub name: String,
}

/// `vm remove`.
#[derive(Debug, Args)]
pub struct Remove {
    /// Names or ids of the VMs
    #[arg(required = true)]
    pub names: Vec<String>,
    /// End it first when it runs
    #[arg(short, long)]
    pub force: bool,
}

/// Shape of a VM; what is not given stays, or is teepod's default.
#[derive(Debug, Clone, Default, Args)]
pub struct Shape {
    /// Virtual CPUs
    #[arg(short = 'c', long, value_name = "N")]
    pub vcpus: Option<u32>,
    /// Memory, such as 2G
    #[arg(short, long, value_name = "SIZE", value_parser = parse_size)]
    pub memory: Option<u64>,
    /// Data disk, such as 20G; it can grow, never shrink
    #[arg(short, long, value_name = "SIZE", value_parser = parse_size)]
    pub disk: Option<u64>,
    /// Guest image, see `dstackctl image list`
    #[arg(short, long, value_name = "NAME")]
    pub image: Option<String>,
    /// Make a port of the VM reachable on the host; may be repeated
    #[arg(
        short = 'p', long = "port", value_name = "[ADDRESS:]HOST:VM[/udp]", value_parser = parse_port
    )]
    pub ports: Vec<PortArg>,
}

/// `vm resize`.
#[derive(Debug, Args)]
pub struct Resize {
    /// Name or id of the VM
    pub name: String,
    /// The new shape.
    #[command(flatten)]
    pub shape: Shape,
    /// Remove all port mappings
    #[arg(long, conflicts_with = "ports")]
    pub no_ports: bool,
    /// Start the VM when the host starts
    #[arg(long, conflicts_with = "no_autostart")]
    pub autostart: bool,
    /// Do not start the VM when the host starts
    #[arg(long)]
    pub no_autostart: bool,
}

/// `vm wait`.
#[derive(Debug, Args)]
pub struct Wait {
    /// Name or id of the VM
    pub name: String,
    /// The state to wait for: running, stopped, failed
    #[arg(long, default_value = "running")]
    pub state: String,
    /// Give up after this time
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
}

/// `image import`.
#[derive(Debug, Args)]
pub struct Import {
    /// Directory with metadata.json and sha256sum.txt
    #[arg(value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,
}

/// `image remove`.
#[derive(Debug, Args)]
pub struct ImageRemove {
    /// Name and version as listed, such as dstack-0.1.0
    pub name: String,
}

/// Which part of a log.
#[derive(Debug, Clone, Default, Args)]
pub struct Range {
    /// Go on with new lines as they come
    #[arg(short, long)]
    pub follow: bool,
    /// Begin here: 10m (ago), 2026-01-31T12:00:00Z, or seconds since 1970
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// End here
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Only this many last lines
    #[arg(short = 'n', long, visible_alias = "lines", value_name = "N")]
    pub tail: Option<u64>,
    /// Put the time before each line
    #[arg(short, long)]
    pub timestamps: bool,
}

/// `logs`.
#[derive(Debug, Args)]
pub struct Logs {
    /// Name or id of the VM
    pub name: String,
    /// The container; without it, the containers are listed
    pub container: Option<String>,
    /// Which part.
    #[command(flatten)]
    pub range: Range,
    /// Show the VM's journal on this host instead: boot stages and console
    #[arg(long, visible_alias = "boot", conflicts_with = "container")]
    pub console: bool,
}

/// `vm logs`.
#[derive(Debug, Args)]
pub struct VmLogs {
    /// Name or id of the VM
    pub name: String,
    /// Which part.
    #[command(flatten)]
    pub range: Range,
}

impl Global {
    /// Whether to wait for jobs.
    #[must_use]
    pub fn waits(&self) -> bool {
        !self.no_wait
    }
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
