// SPDX-License-Identifier: Apache-2.0
//! The certificates of the ingress, as PEM: from files, or from certbot.

use crate::settings::Proxy;
use dstack_core::flow::{CERTIFICATE_NAMES_MAX, Certificate, PEM_MAX, Secret};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::sign::CertifiedKey;
use std::io::Read;
use std::path::{Path, PathBuf};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

/// Why a certificate cannot be used; the one of before stays in use then.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct CertificateError {
    path: PathBuf,
    reason: String,
}

fn error(path: &Path, reason: impl std::fmt::Display) -> CertificateError {
    CertificateError { path: path.to_owned(), reason: reason.to_string() }
}

/// The configured certificate, checked: its key belongs to it.
///
/// # Errors
/// [`CertificateError`] names the file.
pub fn load(proxy: &Proxy) -> Result<Certificate, CertificateError> {
    let (chain, key) = (read(&proxy.cert_chain)?, read(&proxy.cert_key)?);
    parse(&chain, &key, (&proxy.cert_chain, &proxy.cert_key))
}

/// A chain and its key, PEM, checked; errors name where they come from.
///
/// # Errors
/// [`CertificateError`].
pub fn parse(
    chain: &str,
    key: &str,
    (chain_at, key_at): (&Path, &Path),
) -> Result<Certificate, CertificateError> {
    let parsed: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| error(chain_at, e))?;
    let leaf = parsed.first().ok_or_else(|| error(chain_at, "has no certificate"))?;
    let names = names(leaf).map_err(|e| error(chain_at, e))?;
    let private = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| error(key_at, e))?;
    CertifiedKey::from_der(parsed.clone(), private, &default_provider())
        .map_err(|e| error(key_at, format!("does not belong to the certificate: {e}")))?;
    Ok(Certificate { names, chain: chain.to_string(), key: Secret::from(key.to_string()) })
}

fn read(path: &Path) -> Result<Zeroizing<String>, CertificateError> {
    let file = std::fs::File::open(path).map_err(|e| error(path, e))?;
    let mut text = Zeroizing::new(String::with_capacity(PEM_MAX + 1));
    file.take(PEM_MAX as u64 + 1).read_to_string(&mut text).map_err(|e| error(path, e))?;
    if text.len() > PEM_MAX {
        return Err(error(path, format!("is larger than {PEM_MAX} bytes")));
    }
    Ok(text)
}

/// The DNS names of a certificate, lower case.
fn names(der: &[u8]) -> Result<Vec<String>, String> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|e| e.to_string())?;
    let names = certificate.subject_alternative_name().map_err(|e| e.to_string())?;
    let names = names.ok_or("the certificate has no subject alternative names")?;
    let dns = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    Ok(dns.take(CERTIFICATE_NAMES_MAX).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::settings::{Input, Settings};
    use rcgen::{CertificateParams, KeyPair};

    fn proxy(dir: &Path) -> Proxy {
        let text = format!(
            "[wg]\nendpoint='a:1'\n[proxy]\nbase_domain='a.b'\ncert_chain='{0}/cert.pem'\ncert_key='{0}/key.pem'",
            dir.display()
        );
        let input: Input = toml::from_str(&text).unwrap();
        Settings::from_input(input).unwrap().unwrap().proxy
    }

    fn write(dir: &Path, chain: &KeyPair, key: &KeyPair) {
        let params =
            CertificateParams::new(vec!["*.Example.org".to_owned(), "example.org".to_owned()]).unwrap();
        std::fs::write(dir.join("cert.pem"), params.self_signed(chain).unwrap().pem()).unwrap();
        std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
    }

    #[test]
    fn a_certificate_and_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let proxy = proxy(dir.path());
        assert!(load(&proxy).unwrap_err().to_string().contains("cert.pem"));
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            write(dir.path(), &key, &key);
            let found = load(&proxy).unwrap();
            assert_eq!(found.names, ["*.example.org", "example.org"]);
            assert!(!format!("{found:?}").contains("PRIVATE"));
        }
        write(dir.path(), &KeyPair::generate().unwrap(), &KeyPair::generate().unwrap());
        assert!(load(&proxy).unwrap_err().to_string().contains("key.pem: does not belong"));
        std::fs::write(dir.path().join("key.pem"), "x").unwrap();
        assert!(load(&proxy).unwrap_err().to_string().contains("key.pem"));
        std::fs::write(dir.path().join("cert.pem"), "x".repeat(PEM_MAX + 1)).unwrap();
        assert!(load(&proxy).unwrap_err().to_string().contains("larger"));
    }
}
