// SPDX-License-Identifier: Apache-2.0
//! Records of a zone, behind a seam: who changes them, and what its servers say.

pub mod authority;
pub mod cloudflare;
pub mod cloudflare_json;
pub mod rfc2136;
pub mod wire;

use crate::acme::BoxFuture;
use crate::caa::Caa;
use crate::http::HttpError;
use crate::names::DnsName;
use std::fmt;

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Data {
    /// TXT, its strings joined.
    Txt(String),
    /// CAA.
    Caa(Caa),
}

/// Kinds of records that we read and write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// TXT.
    Txt,
    /// CAA.
    Caa,
}

impl Kind {
    /// As it is written.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Txt => "TXT",
            Self::Caa => "CAA",
        }
    }
}

impl Data {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Txt(_) => Kind::Txt,
            Self::Caa(_) => Kind::Caa,
        }
    }
}

impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Txt(text) => write!(f, "TXT {text:?}"),
            Self::Caa(caa) => write!(f, "CAA {caa}"),
        }
    }
}

/// Why DNS cannot be read or changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DnsError {
    /// A server was not heard.
    #[error("the DNS server {server}: {reason}")]
    Server {
        /// Its address or name.
        server: String,
        /// Why.
        reason: String,
    },
    /// A server refuses.
    #[error("the DNS server {server} refuses: {reason}")]
    Refused {
        /// Its address or name.
        server: String,
        /// Why, with the remedy.
        reason: String,
    },
    /// No zone has the name.
    #[error("no zone that has {0} was found: {1}")]
    NoZone(DnsName, String),
    /// The provider's API was not heard.
    #[error("Cloudflare: {0}")]
    Http(#[from] HttpError),
    /// The provider's API refuses.
    #[error("Cloudflare: {0}")]
    Api(String),
    /// A name stands for another one.
    #[error(
        "{0} is a CNAME; no {1} record can be beside it, so give it an address of its own, or set auto_set_caa = false"
    )]
    Alias(DnsName, &'static str),
    /// The servers do not show what was written.
    #[error("{what} is not at every server of its zone after {seconds} s: {who}")]
    NotThere {
        /// The record.
        what: String,
        /// How long that was waited for.
        seconds: u64,
        /// Who lacks it.
        who: String,
    },
}

/// Whoever changes records. All calls can be repeated: adding what is there and removing what is not are no errors.
pub trait Provider: Send + Sync + fmt::Debug {
    /// Records of a kind at exactly this name.
    fn list<'a>(&'a self, name: &'a DnsName, kind: Kind) -> BoxFuture<'a, Result<Vec<Data>, DnsError>>;
    /// Adds a record.
    fn add<'a>(&'a self, name: &'a DnsName, data: &'a Data) -> BoxFuture<'a, Result<(), DnsError>>;
    /// Removes a record.
    fn remove<'a>(&'a self, name: &'a DnsName, data: &'a Data) -> BoxFuture<'a, Result<(), DnsError>>;
}
