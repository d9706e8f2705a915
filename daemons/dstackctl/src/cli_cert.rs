// SPDX-License-Identifier: Apache-2.0
//! The arguments of `cert`.

use clap::{Args, Subcommand};

/// What can be done with the certificates of the ingress.
#[derive(Debug, Subcommand)]
pub enum CertCommand {
    /// List the certificates
    #[command(visible_alias = "ls")]
    List,
    /// Say whether all is well: certificates, the last renewal, the last rehearsal; exits with 1 when not
    Status,
    /// Show everything about a certificate
    Show(Domain),
    /// Renew what is due; exits with 1 when a certificate is not valid afterwards
    Renew(Renew),
    /// Prove that the next renewal will work, without touching a certificate
    Rehearse,
    /// Bring the CAA records to what they are to be
    Caa(MaybeDomain),
}

/// A certificate.
#[derive(Debug, Args)]
pub struct Domain {
    /// Its first name, with or without "*."
    pub domain: String,
}

/// A certificate, or all.
#[derive(Debug, Args)]
pub struct MaybeDomain {
    /// First name of a certificate; without it, all
    #[arg(default_value = "", hide_default_value = true)]
    pub domain: String,
}

/// `cert renew`.
#[derive(Debug, Args)]
pub struct Renew {
    /// First name of a certificate; without it, all
    #[arg(default_value = "", hide_default_value = true)]
    pub domain: String,
    /// Renew although nothing is due, and although it failed a moment ago
    #[arg(long)]
    pub force: bool,
}
