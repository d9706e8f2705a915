// SPDX-License-Identifier: Apache-2.0
//! The realm of root keys, before they are made: it is theirs for good (trust rule T4), and keys of the wrong one are of no
//! use to the VMs of this machine.

use crate::client::Client;
use crate::doctor::{self, bus, host};
use crate::errors::Failure;
use crate::init::ask::{self, Terminal};
use crate::output::note;
use dstack_core::spec::Platform;
use std::fmt::Display;
use std::io::IsTerminal;

/// Where the kernel says whether KVM runs TDX guests; what is asked where no VM manager is installed.
const KVM_TDX: &str = "/sys/module/kvm_intel/parameters/tdx";
/// Gives this machine a realm of its own, in which quotes are simulated.
pub const TRIAL: &str = "apt install dstack-testroot";
/// Where the way back is described.
pub const ANEW: &str =
    "dstack-setup(7), TROUBLESHOOTING, says how the key service begins anew, and what is lost";

/// What somebody answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Realm {
    /// Genuine TDX machines.
    Intel,
    /// Simulated quotes, under the test root of this machine.
    Test,
}

impl Realm {
    /// As it is written in answers.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Intel => "intel",
            Self::Test => "test",
        }
    }

    /// Of a realm's label, `intel` or `test:…`.
    #[must_use]
    pub fn of(label: &str) -> Self {
        if label == "intel" { Self::Intel } else { Self::Test }
    }
}

impl Display for Realm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

/// What is to be thought of root keys of this machine's realm, before they are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Thought {
    /// They are what was asked for, or what the machine suggests.
    Good,
    /// No VM of this machine would get any of them; whoever wants them all the same says so.
    Doubt(&'static str),
    /// The answer is another realm than this machine's.
    Contrary(Failure),
}

const NO_TDX: &str = "this machine has no TDX and no test root: its root keys would be of realm intel for good, for genuine \
                      TDX machines elsewhere alone, and no VM of this machine would ever get any";
const TEST_ON_TDX: &str = "this machine has TDX, and trusts a test root: its root keys would be of a simulated realm for good, \
                           in which nothing is protected, and no VM that runs on TDX would ever get any";

/// `label` is the realm of this machine's trust roots.
#[must_use]
pub fn think(label: &str, has_tdx: bool, answer: Option<Realm>) -> Thought {
    match (Realm::of(label), answer) {
        (here, Some(answer)) if here == answer => Thought::Good,
        (_, Some(Realm::Test)) => Thought::Contrary(
            Failure::usage("realm: \"test\" is answered, and this machine trusts no test root").hint(TRIAL),
        ),
        (_, Some(Realm::Intel)) => Thought::Contrary(
            Failure::usage(format!(
                "realm: \"intel\" is answered, and this machine trusts a test root, {label}"
            ))
            .hint("apt purge dstack-testroot; or answer \"test\""),
        ),
        (Realm::Intel, None) if !has_tdx => Thought::Doubt(NO_TDX),
        (Realm::Test, None) if has_tdx => Thought::Doubt(TEST_ON_TDX),
        (_, None) => Thought::Good,
    }
}

/// What to do instead of making keys that no VM here could use.
#[must_use]
pub fn instead(label: &str) -> String {
    match Realm::of(label) {
        Realm::Intel => format!(
            "to try things out on this machine: {TRIAL}, then the same again; to serve TDX machines elsewhere: answer \
             realm = \"intel\", or give --realm intel"
        ),
        Realm::Test => "for genuine quotes: apt purge dstack-testroot, then the same again; to try things out all the same: \
                        answer realm = \"test\", or give --realm test"
            .to_owned(),
    }
}

/// Goes on when keys of this realm are what is wanted; asks where somebody is there.
///
/// # Errors
/// When they are not, or nobody says so; nothing was changed.
pub fn agree(label: &str, thought: Thought, may_ask: bool) -> Result<(), Failure> {
    let doubt = match thought {
        Thought::Good => return Ok(()),
        Thought::Contrary(failure) => return Err(failure),
        Thought::Doubt(doubt) => doubt,
    };
    if !may_ask || !std::io::stdin().is_terminal() {
        return Err(Failure::usage(format!("realm: {doubt}")).hint(instead(label)));
    }
    note(&format!("{doubt}.\n{}", instead(label)));
    match ask::yes(&mut Terminal, &format!("Make root keys of realm {label} all the same?"), false)? {
        true => Ok(()),
        false => Err(Failure::new("no root keys were made").hint(instead(label))),
    }
}

/// Whether VMs of the host run on TDX: as its VM manager says, or as this machine shows.
pub async fn has_tdx(client: &Client) -> bool {
    if let (_, Some(platform)) = bus::teepod(client).await {
        return platform == Platform::Tdx;
    }
    if client.remote.is_some() {
        return false;
    }
    let config = doctor::settings().unwrap_or_default();
    match host::probe(&config, None).await.1 {
        Some(platform) => platform == Platform::Tdx,
        None => std::fs::read_to_string(KVM_TDX).is_ok_and(|text| matches!(text.trim(), "Y" | "1")),
    }
}

/// How keys and trust root of two realms are brought together again; `here` is the realm of the trust root.
#[must_use]
pub fn reunite(here: &str) -> String {
    let keep = match Realm::of(here) {
        Realm::Intel => "to keep the keys, put their test root back: apt install dstack-testroot",
        Realm::Test => "to keep keys of realm intel, give up the test root: apt purge dstack-testroot",
    };
    format!("{keep}, then: systemctl restart dstack-kms; for new keys: {ANEW}")
}

#[cfg(test)]
#[path = "realm_tests.rs"]
mod tests;
