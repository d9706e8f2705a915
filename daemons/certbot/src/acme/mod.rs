// SPDX-License-Identifier: Apache-2.0
//! The certificate authority, behind a seam.

pub mod client;
pub mod directory;
pub mod registration;

use crate::account::Credentials;
use crate::certificate::Leaf;
use crate::http::HttpError;
use crate::names::{CertName, DnsName};
use crate::renewal::Suggested;
use directory::Directory;
use std::collections::BTreeSet;
use std::pin::Pin;
use zeroize::Zeroizing;

/// A future that can be in a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why the authority gives nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AcmeError {
    /// It was not heard.
    #[error("the certificate authority: {0}")]
    Http(#[from] HttpError),
    /// It refuses, with its words.
    #[error("the certificate authority refuses {what}: {words}")]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// Its words.
        words: String,
        /// Whether it will do so again.
        kind: Refusal,
    },
    /// It says what cannot be understood.
    #[error("the certificate authority says what cannot be understood: {0}")]
    Strange(String),
    /// It takes longer than it may.
    #[error("the certificate authority is not done with {0} yet; the next run goes on from here")]
    Slow(&'static str),
    /// It wants accounts to be bound to another account.
    #[error(
        "the certificate authority wants an external account: set [eab] key_id in certbot.toml and the credential certbot-eab, see certbot.toml(5)"
    )]
    ExternalAccount,
    /// An order that cannot become a certificate any more.
    #[error("the order has failed: {0}")]
    Failed(String),
}

/// Whether an authority that refuses will do so again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It will, as long as it is asked the same.
    Lasting,
    /// It may not: there were too many requests, or it is in trouble of its own.
    Passing,
    /// It may take another nonce.
    Nonce,
}

impl Refusal {
    /// By the type of a problem document and the status of the answer.
    #[must_use]
    pub fn of(problem: &str, status: u16) -> Self {
        match problem.rsplit(':').next().unwrap_or_default() {
            "badNonce" => Self::Nonce,
            "rateLimited" | "serverInternal" => Self::Passing,
            _ if status == 429 || status >= 500 => Self::Passing,
            _ => Self::Lasting,
        }
    }
}

/// An account of another kind, to which the ACME account is bound.
#[derive(Clone)]
pub struct ExternalAccount {
    /// Its id.
    pub key_id: String,
    /// Its HMAC key.
    pub key: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for ExternalAccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExternalAccount").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

/// What has to be in DNS for one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// The name, without `*.`.
    pub name: DnsName,
    /// Value of the TXT record below it.
    pub value: String,
}

/// How far an order is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// These have to be answered.
    Pending(Vec<Challenge>),
    /// The request for the certificate may be sent.
    Ready,
    /// The certificate is being made, or is there.
    Finalized,
    /// It cannot become a certificate any more; why.
    Failed(String),
}

/// A certificate authority.
pub trait Acme: Send + Sync + std::fmt::Debug {
    /// What it says of itself.
    fn directory(&self) -> BoxFuture<'_, Result<Directory, AcmeError>>;
    /// Makes the account of a key, or finds it again; gives its URL.
    fn register<'a>(
        &'a self,
        key: &'a [u8],
        external: Option<&'a ExternalAccount>,
    ) -> BoxFuture<'a, Result<String, AcmeError>>;
    /// The URL of the account that a key has; never makes one.
    fn find<'a>(&'a self, key: &'a [u8]) -> BoxFuture<'a, Result<String, AcmeError>>;
    /// Begins to speak as an account.
    fn log_in<'a>(&'a self, account: &'a Credentials) -> BoxFuture<'a, Result<Box<dyn Session>, AcmeError>>;
    /// When it wants a certificate renewed; `None`: it suggests nothing.
    fn suggestion<'a>(&'a self, leaf: &'a Leaf) -> BoxFuture<'a, Result<Option<Suggested>, AcmeError>>;
    /// Until when it wants to hear nothing, Unix seconds.
    fn quiet_until(&self) -> Option<i64>;
}

/// An account that orders.
pub trait Session: Send {
    /// Orders; gives the URL of the order. `replaces` is the certificate that is renewed.
    fn order<'a>(
        &'a mut self,
        names: &'a BTreeSet<CertName>,
        replaces: Option<&'a Leaf>,
    ) -> BoxFuture<'a, Result<String, AcmeError>>;
    /// How far an order is; the calls below are about it.
    fn look<'a>(&'a mut self, url: &'a str) -> BoxFuture<'a, Result<Stage, AcmeError>>;
    /// Says that what has to be in DNS is there, and waits until it was looked at.
    fn answer(&mut self) -> BoxFuture<'_, Result<(), AcmeError>>;
    /// Sends the request for the certificate, DER.
    fn finalize<'a>(&'a mut self, request: &'a [u8]) -> BoxFuture<'a, Result<(), AcmeError>>;
    /// Waits for the chain, PEM.
    fn chain(&mut self) -> BoxFuture<'_, Result<String, AcmeError>>;
}
