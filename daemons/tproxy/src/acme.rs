// SPDX-License-Identifier: Apache-2.0
//! Where the certificates of the ingress come from, for auditors: the ACME account and every public key that was in use,
//! in a working directory of certbot that we may read. What this host's certbot says over the bus comes beside it.
//!
//! ```text
//! <workdir>/credentials.json              {"account_id": URL, …}
//! <workdir>/backup/<time>/cert.pem        each certificate that certbot got
//! ```
//!
//! Without that directory it is the configured certificate alone.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Largest file that is read, bytes.
const FILE_MAX: u64 = 256 * 1024;
/// Most backups that are looked at.
const BACKUPS_MAX: usize = 4096;

/// What auditors may know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Info {
    /// The account; empty without ACME.
    pub account_uri: String,
    /// SubjectPublicKeyInfo, DER; without doubles, sorted.
    pub public_keys: Vec<Vec<u8>>,
}

impl Info {
    /// Both together; the account is the other's when there is none here.
    #[must_use]
    pub fn with(self, other: &Self) -> Self {
        let keys: BTreeSet<Vec<u8>> =
            self.public_keys.into_iter().chain(other.public_keys.iter().cloned()).collect();
        let account_uri =
            if self.account_uri.is_empty() { other.account_uri.clone() } else { self.account_uri };
        Self { account_uri, public_keys: keys.into_iter().collect() }
    }
}

/// Why it cannot be told.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct AcmeError {
    path: PathBuf,
    reason: String,
}

fn error(path: &Path, reason: impl std::fmt::Display) -> AcmeError {
    AcmeError { path: path.to_owned(), reason: reason.to_string() }
}

/// Reads the account and all public keys.
///
/// # Errors
/// [`AcmeError`] for what is there and cannot be read.
pub fn read(workdir: Option<&Path>, configured: &Path) -> Result<Info, AcmeError> {
    let mut keys = BTreeSet::new();
    let backups = workdir.map(backups).transpose()?.unwrap_or_default();
    for path in backups.into_iter().chain([configured.to_owned()]) {
        if let Some(pem) = contents(&path)? {
            keys.insert(public_key(&pem).map_err(|reason| error(&path, reason))?);
        }
    }
    let account_uri = workdir.map(account).transpose()?.unwrap_or_default();
    Ok(Info { account_uri, public_keys: keys.into_iter().collect() })
}

fn account(workdir: &Path) -> Result<String, AcmeError> {
    #[derive(serde::Deserialize)]
    struct Credentials {
        account_id: String,
    }
    let path = workdir.join("credentials.json");
    let Some(json) = contents(&path)? else { return Ok(String::new()) };
    let found: Credentials = serde_json::from_slice(&json).map_err(|e| error(&path, e))?;
    Ok(found.account_id)
}

fn backups(workdir: &Path) -> Result<Vec<PathBuf>, AcmeError> {
    let directory = workdir.join("backup");
    let entries = match std::fs::read_dir(&directory) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| error(&directory, e))?,
    };
    let paths = entries.take(BACKUPS_MAX).map(|entry| Ok(entry?.path().join("cert.pem")));
    paths.collect::<io::Result<_>>().map_err(|e| error(&directory, e))
}

/// `None` when there is no such file.
fn contents(path: &Path) -> Result<Option<Vec<u8>>, AcmeError> {
    let file = match std::fs::File::open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|e| error(path, e))?,
    };
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(|e| error(path, e))?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(error(path, format!("is larger than {FILE_MAX} bytes")));
    }
    Ok(Some(bytes))
}

/// The SubjectPublicKeyInfo of the first certificate in a PEM file.
fn public_key(pem: &[u8]) -> Result<Vec<u8>, String> {
    let first = pem::parse(pem).map_err(|e| e.to_string())?;
    let parsed = X509Certificate::from_der(first.contents()).map_err(|e| e.to_string())?;
    Ok(parsed.1.public_key().raw.to_vec())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, PublicKeyData};

    fn certificate(path: &Path) -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["*.example.org".to_owned()]).unwrap();
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, params.self_signed(&key).unwrap().pem()).unwrap();
        key.subject_public_key_info()
    }

    #[test]
    fn every_key_that_was_in_use_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let configured = dir.path().join("cert.pem");
        assert_eq!(read(Some(dir.path()), &configured).unwrap(), Info::default());
        let mut expected = vec![
            certificate(&configured),
            certificate(&dir.path().join("backup/2026-01-01T00:00:00.000000000Z/cert.pem")),
            certificate(&dir.path().join("backup/2026-02-01T00:00:00.000000000Z/cert.pem")),
        ];
        std::fs::create_dir(dir.path().join("backup/preinstalled")).unwrap();
        std::fs::copy(&configured, dir.path().join("backup/preinstalled/cert.pem")).unwrap();
        expected.sort();
        std::fs::write(
            dir.path().join("credentials.json"),
            r#"{"account_id":"https://acme/1","credentials":{}}"#,
        )
        .unwrap();
        let info = read(Some(dir.path()), &configured).unwrap();
        assert_eq!(info, Info { account_uri: "https://acme/1".into(), public_keys: expected });
        std::fs::write(&configured, "no certificate").unwrap();
        assert!(read(Some(dir.path()), &configured).unwrap_err().to_string().contains("cert.pem"));
    }
}
