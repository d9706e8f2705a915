// SPDX-License-Identifier: Apache-2.0
//! Files that the answers name, looked at before anything is changed.

use super::answers::{Answers, Certificate};
use super::files::Root;
use crate::errors::{Exit, Failure};
use rustls::client::verify_server_name;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use std::fmt::Display;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// The user that the ingress runs as.
const INGRESS: &str = "dstack-tproxy";
/// What its unit hides from it (ProtectHome=, PrivateTmp=).
const HIDDEN: [&str; 5] = ["/home", "/root", "/run/user", "/tmp", "/var/tmp"];

/// Looks at files that the answers name.
///
/// # Errors
/// The key of the answers, and what is wrong with its file; `Denied` when whoever asks may not see it.
pub fn check(answers: &Answers, root: &Root) -> Result<(), Failure> {
    match &answers.certificate {
        Certificate::None => Ok(()),
        Certificate::Files { chain, key } => {
            own_certificate(chain, key, &answers.base_domain)?;
            let Some(user) = User::find(INGRESS, root)? else { return Ok(()) };
            user.sees("certificate.chain", chain)?;
            user.sees("certificate.key", key)
        }
        Certificate::Acme(acme) => {
            acme.root.as_deref().map_or(Ok(()), |root| certificates("certificate.acme_root", root).map(drop))
        }
    }
}

fn wrong(key: &str, path: &Path, why: &dyn Display) -> Failure {
    Failure::usage(format!("{key}: {}: {why}", path.display()))
}

fn read(key: &str, path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, Failure> {
    std::fs::read(path).map(zeroize::Zeroizing::new).map_err(|error| Failure {
        exit: if error.kind() == ErrorKind::PermissionDenied { Exit::Denied } else { Exit::Usage },
        ..wrong(key, path, &error)
    })
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let bytes = read(key, path)?;
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match parsed {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(wrong(key, path, &"has no certificate; it must be PEM")),
        Err(error) => Err(wrong(key, path, &error)),
    }
}

fn own_certificate(chain: &Path, key: &Path, base_domain: &str) -> Result<(), Failure> {
    const CHAIN: &str = "certificate.chain";
    let certificates = certificates(CHAIN, chain)?;
    // The key may be root's, while everybody can see whom the chain is for.
    if let Some(leaf) = certificates.first() {
        covers(leaf, base_domain).map_err(|why| {
            wrong(CHAIN, chain, &why)
                .hint(format!("it must be for *.{base_domain}; or is base_domain another?"))
        })?;
    }
    let wrong = |why: &dyn Display| wrong("certificate.key", key, why);
    let private = PrivateKeyDer::from_pem_slice(&read("certificate.key", key)?).map_err(|e| wrong(&e))?;
    CertifiedKey::from_der(certificates, private, &default_provider())
        .map(drop)
        .map_err(|e| wrong(&format!("does not belong to {}: {e}", chain.display())))
}

/// Whether clients that ask for an app find its name in the certificate.
fn covers(leaf: &CertificateDer<'_>, base_domain: &str) -> Result<(), String> {
    let app = format!("app.{base_domain}");
    let name = ServerName::try_from(app).map_err(|e| e.to_string())?;
    let parsed = ParsedCertificate::try_from(leaf).map_err(|e| e.to_string())?;
    verify_server_name(&parsed, &name).map_err(|_| format!("its names do not cover *.{base_domain}"))
}

/// A user of this machine, as whom files are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct User {
    uid: u32,
    gid: u32,
}

impl User {
    /// `None`: there is none, or whoever asks is not root and cannot ask as another.
    fn find(name: &str, root: &Root) -> Result<Option<Self>, Failure> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        Ok(root.read("/etc/passwd")?.and_then(|passwd| Self::parse(&passwd, name)))
    }

    fn parse(passwd: &str, name: &str) -> Option<Self> {
        let fields = |line: &str| {
            let mut fields = line.split(':');
            (fields.next() == Some(name)).then_some(())?;
            let (uid, gid) = (fields.nth(1)?, fields.next()?);
            Some(Self { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
        };
        passwd.lines().find_map(fields)
    }

    /// Whether the user can read a file: the kernel says so, with all of its rules.
    fn sees(self, key: &str, path: &Path) -> Result<(), Failure> {
        if HIDDEN.iter().any(|hidden| path.starts_with(hidden)) {
            let reason = format!("the ingress does not see {}", path.parent().unwrap_or(path).display());
            return Err(wrong(key, path, &reason).hint("put it into /etc/dstack/certs"));
        }
        if self.test("-r", path) {
            return Ok(());
        }
        let closed = path.ancestors().skip(1).filter(|above| !self.test("-x", above)).last();
        let (place, mode) = closed.map_or((path, "g+r"), |above| (above, "g+x"));
        let place = place.display();
        Err(wrong(key, path, &format!("the ingress, user {INGRESS}, cannot read it"))
            .hint(format!("chgrp {INGRESS} {place}; chmod {mode} {place}")))
    }

    fn test(self, what: &str, path: &Path) -> bool {
        let mut command = Command::new("/usr/bin/test");
        command.arg(what).arg(path).uid(self.uid).gid(self.gid).env_clear().current_dir("/");
        // Where nothing can be asked, the ingress itself says what it cannot read.
        command.status().map_or(true, |status| status.success())
    }
}

#[cfg(test)]
#[path = "named_tests.rs"]
mod tests;
