// SPDX-License-Identifier: Apache-2.0
//! `org.dstack.certbot1`: the certificates of a host's ingress.

use std::collections::HashMap;
use zbus::{OwnedObjectPath, OwnedVariant, proxy};

/// Well-known bus name.
pub const NAME: &str = "org.dstack.certbot1";
/// Path of the manager object.
pub const PATH: &str = "/org/dstack/certbot1";

/// A certificate: `domain s`, `names as`, `state s` (`valid expired renewal-failed missing unreadable`), `issuer s`,
/// `not_before t`, `not_after t` (Unix seconds, 0: there is none), `renewal t` (when it is due, 0: now), `failures u`
/// (in a row), `error s` (the last one), `retry t` (when it is tried again after failures, 0: at the next look),
/// `public_key ay` (SubjectPublicKeyInfo, DER).
pub type CertificateRow = HashMap<String, OwnedVariant>;

/// The last rehearsal: Unix seconds (0: there was none), and what was found; empty when all is well.
pub type Rehearsal = (u64, Vec<String>);

/// Options of a call. `Renew`: `force b`. `Rehearse`, `SetCaa`: none yet.
pub type Options<'a> = HashMap<&'a str, zbus::Variant<'a>>;

/// Options as a daemon gets them.
pub type OwnedOptions = HashMap<String, OwnedVariant>;

crate::bus_errors! {
    /// What is refused or has failed, and what to do about it.
    pub enum Error in "org.dstack.certbot1" {
        /// The configuration names no domain yet.
        NotConfigured,
        /// The configuration names no such certificate.
        NoSuchCertificate,
        /// There is no certificate yet.
        NoCertificate,
        /// A name or an option is out of form.
        InvalidArgument,
        /// A setting is not usable, or a credential is missing.
        Misconfigured,
        /// It failed before, and is tried again later.
        TooEarly,
        /// Another process works on the certificates.
        Busy,
        /// The account cannot be used; no other one is made.
        AccountUnusable,
        /// The certificate authority refuses, or is not reached.
        AuthorityFailed,
        /// Records cannot be read or written.
        DnsFailed,
        /// A file of the state cannot be read or written; it is left as it is.
        StateUnreadable,
        /// A rehearsal found something.
        RehearsalFailed,
    }
}

/// Client side of `org.dstack.certbot1.Manager`.
#[proxy(
    interface = "org.dstack.certbot1.Manager",
    default_service = "org.dstack.certbot1",
    default_path = "/org/dstack/certbot1"
)]
pub trait Manager {
    /// All certificates of the configuration.
    fn list_certificates(&self) -> Result<Vec<CertificateRow>, Error>;
    /// Looks at a certificate, or at all for an empty name, and renews what is due; gives the job.
    fn renew(&self, domain: &str, options: Options<'_>) -> Result<OwnedObjectPath, Error>;
    /// Proves that the next renewal will work; gives the job.
    fn rehearse(&self, options: Options<'_>) -> Result<OwnedObjectPath, Error>;
    /// Brings the CAA records of a certificate, or of all, to what they are to be; gives the job.
    fn set_caa(&self, domain: &str, options: Options<'_>) -> Result<OwnedObjectPath, Error>;
    /// Chain and key, PEM, as files in memory; for the ingress alone.
    fn get_certificate(&self, domain: &str) -> Result<(zbus::OwnedFd, zbus::OwnedFd), Error>;
    /// Every public key that was in a certificate (SubjectPublicKeyInfo, DER), of one or of all.
    fn historical_keys(&self, domain: &str) -> Result<Vec<Vec<u8>>, Error>;
    /// Reads the settings again.
    fn reload(&self) -> Result<(), Error>;

    /// Whether it works: a domain is set, and the credentials are there.
    #[zbus(property)]
    fn configured(&self) -> zbus::Result<bool>;
    /// URL of the ACME account; empty when there is none yet.
    #[zbus(property(emits_changed_signal = "false"))]
    fn account_uri(&self) -> zbus::Result<String>;
    /// URL of the authority's directory.
    #[zbus(property)]
    fn authority(&self) -> zbus::Result<String>;
    /// The last rehearsal.
    #[zbus(property(emits_changed_signal = "false"))]
    fn last_rehearsal(&self) -> zbus::Result<Rehearsal>;
    /// What it does, in words, as `systemctl status` shows it.
    #[zbus(property(emits_changed_signal = "false"))]
    fn status(&self) -> zbus::Result<String>;
    /// Version of the daemon.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> zbus::Result<String>;

    /// A certificate is new.
    #[zbus(signal)]
    fn certificate_changed(&self, domain: String, public_key: Vec<u8>) -> zbus::Result<()>;
    /// A certificate could not be renewed.
    #[zbus(signal)]
    fn renewal_failed(&self, domain: String, reason: String) -> zbus::Result<()>;
    /// A rehearsal has failed.
    #[zbus(signal)]
    fn rehearsal_failed(&self, reason: String) -> zbus::Result<()>;
    /// A job has begun.
    #[zbus(signal)]
    fn job_new(&self, id: u32, job: OwnedObjectPath) -> zbus::Result<()>;
    /// A job has ended: done, canceled, failed or timeout.
    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: OwnedObjectPath, result: String) -> zbus::Result<()>;
}

/// Client side of `org.dstack.certbot1.Job`.
#[proxy(interface = "org.dstack.certbot1.Job", default_service = "org.dstack.certbot1")]
pub trait Job {
    /// Ends it; what it has begun is finished or cleaned by the next run.
    fn cancel(&self) -> zbus::Result<()>;
    /// What it is doing.
    #[zbus(property(emits_changed_signal = "false"))]
    fn stage(&self) -> zbus::Result<String>;
    /// Error name and sentence of one that failed.
    #[zbus(property(emits_changed_signal = "false"))]
    fn error(&self) -> zbus::Result<(String, String)>;
}
