// SPDX-License-Identifier: Apache-2.0
//! Certificates, and the settings of TLS.

use dstack_core::flow::Certificate;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert, ServerConfig,
};
use rustls::sign::CertifiedKey;
use std::collections::HashMap;
use std::sync::Arc;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The chain or key is not PEM.
    #[error("certificate for {0}: {1}")]
    Pem(String, rustls::pki_types::pem::Error),
    /// The key is of no known kind, or not the certificate's.
    #[error("certificate for {0}: {1}")]
    Key(String, rustls::Error),
    /// The provider refuses something.
    #[error("TLS cannot be set up: {0}")]
    Provider(#[from] rustls::Error),
}

/// Certificates by name; a name may have several, for different kinds of keys.
#[derive(Debug, Default)]
struct Certificates {
    exact: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// By the part after `*.`.
    wildcard: HashMap<String, Vec<Arc<CertifiedKey>>>,
}

impl Certificates {
    fn named(&self, name: &str) -> Option<&[Arc<CertifiedKey>]> {
        let parent = || name.split_once('.').and_then(|(_, parent)| self.wildcard.get(parent));
        self.exact.get(name).or_else(parent).map(Vec::as_slice)
    }

    fn add(&mut self, certificate: &Certificate) -> Result<(), TlsError> {
        let key = Arc::new(certified(certificate)?);
        for name in &certificate.names {
            let name = name.to_ascii_lowercase();
            let (map, name) = match name.strip_prefix("*.") {
                Some(parent) => (&mut self.wildcard, parent),
                None => (&mut self.exact, name.as_str()),
            };
            map.entry(name.to_owned()).or_default().push(Arc::clone(&key));
        }
        Ok(())
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let all = self.named(&hello.server_name()?.to_ascii_lowercase())?;
        let usable = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        all.iter().find(usable).or(all.first()).cloned()
    }
}

fn certified(certificate: &Certificate) -> Result<CertifiedKey, TlsError> {
    let name = || certificate.names.join(", ");
    let pem = |error| TlsError::Pem(name(), error);
    let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate.chain.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(pem)?;
    let key = PrivateKeyDer::from_pem_slice(certificate.key.expose().as_bytes()).map_err(pem)?;
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
        .map_err(|error| TlsError::Key(name(), error))
}

/// What is the same for the life of the process: the keys of session tickets.
#[derive(Debug, Clone)]
pub struct Tickets(Arc<dyn ProducesTickets>);

impl Tickets {
    /// New ticket keys, which change by themselves.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new() -> Result<Self, TlsError> {
        Ok(Self(aws_lc_rs::Ticketer::new()?))
    }
}

/// TLS with a set of certificates.
#[derive(Debug)]
pub struct Tls {
    certificates: Arc<Certificates>,
    /// For clients that offer none of the protocols below, or none at all.
    plain: Arc<ServerConfig>,
    http1: Arc<ServerConfig>,
    http2: Arc<ServerConfig>,
}

impl Tls {
    /// Takes those certificates that can be used; the errors are of the others. With `give_keys`, sessions can be handed
    /// over to the kernel.
    ///
    /// # Errors
    /// When TLS cannot be set up at all.
    pub fn new(
        all: &[Certificate],
        tickets: &Tickets,
        give_keys: bool,
    ) -> Result<(Self, Vec<TlsError>), TlsError> {
        let mut certificates = Certificates::default();
        let errors = all.iter().filter_map(|certificate| certificates.add(certificate).err()).collect();
        let certificates = Arc::new(certificates);
        let config = |protocols| config(&certificates, tickets, protocols, give_keys);
        let (plain, http1, http2) = (config(&[])?, config(&[b"http/1.1"])?, config(&[b"h2"])?);
        Ok((Self { certificates, plain, http1, http2 }, errors))
    }

    /// Whether there is a certificate for a name.
    #[must_use]
    pub fn covers(&self, name: &str) -> bool {
        self.certificates.named(name).is_some()
    }

    /// Settings for a client that offers these protocols. Those that it does not know of are left to the app, as if
    /// TLS knew nothing of protocols, since apps may speak anything.
    #[must_use]
    pub fn config(&self, http2: bool, offered: &[Vec<u8>]) -> Arc<ServerConfig> {
        let offers = |wanted: &[u8]| offered.iter().any(|protocol| protocol == wanted);
        Arc::clone(match http2 {
            true if offers(b"h2") => &self.http2,
            false if offers(b"http/1.1") => &self.http1,
            _ => &self.plain,
        })
    }
}

fn config(
    certificates: &Arc<Certificates>,
    tickets: &Tickets,
    protocols: &[&[u8]],
    give_keys: bool,
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::<Certificates>::clone(certificates));
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    config.ticketer = Arc::clone(&tickets.0);
    // Tickets hold all state; one is what clients use.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 1;
    config.enable_secret_extraction = give_keys;
    Ok(Arc::new(config))
}
