// SPDX-License-Identifier: Apache-2.0
//! TLS identities and configurations: TLS 1.3 only, P-256 only, no resumption, so every session is judged anew.
//!
//! The verifiers here check form, limits and possession of the key. They decide nothing else: [`crate::server`] and
//! [`crate::client`] hand out a connection only after [`crate::peer::Verifier`] has judged it.

use dstack_ra_tls::certificate::AttestedKey;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible,
    ServerConfig, SignatureScheme,
};
use std::sync::{Arc, PoisonError, RwLock};
use zeroize::Zeroizing;

/// Most certificates of a chain.
pub const CHAIN_MAX: usize = 4;
/// Largest chain, bytes: TLS libraries take no larger handshake message.
pub const CHAIN_BYTES_MAX: usize = 64 * 1024;

const ALPN: &[u8] = b"http/1.1";

/// A certificate chain, leaf first, with the leaf's key.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({} certificates)", self.chain.len())
    }
}

impl Identity {
    /// A chain of DER certificates, leaf first, with the leaf's key as PKCS#8 DER.
    #[must_use]
    pub fn new(chain: Vec<Vec<u8>>, pkcs8: Zeroizing<Vec<u8>>) -> Self {
        Self { chain: chain.into_iter().map(CertificateDer::from).collect(), key: pkcs8 }
    }

    /// An attested key with its self-signed certificate (DER).
    #[must_use]
    pub fn attested(key: &AttestedKey, certificate: Vec<u8>) -> Self {
        Self::new(vec![certificate], Zeroizing::new(key.expose_pkcs8()))
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.to_vec()))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A server's configuration. Clients are asked for a certificate; whether they need one is decided afterwards.
///
/// # Errors
/// When chain and key do not belong together.
pub fn server_config(identity: &Identity) -> Result<ServerConfig, Error> {
    let builder = ServerConfig::builder_with_provider(provider());
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13])?;
    let builder = builder.with_client_cert_verifier(Arc::new(Form(provider())));
    let mut config = builder.with_single_cert(identity.chain.clone(), identity.key())?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// A server's identity that is replaced while it serves; new connections get the new one.
#[derive(Debug)]
pub struct Renewable(RwLock<Arc<CertifiedKey>>);

impl Renewable {
    /// Replaces the identity.
    ///
    /// # Errors
    /// When chain and key do not belong together; the old one stays then.
    pub fn replace(&self, identity: &Identity) -> Result<(), Error> {
        let key = certified(identity)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = key;
        Ok(())
    }
}

impl ResolvesServerCert for Renewable {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn certified(identity: &Identity) -> Result<Arc<CertifiedKey>, Error> {
    CertifiedKey::from_der(identity.chain.clone(), identity.key(), &provider()).map(Arc::new)
}

/// A server's configuration whose identity can be replaced.
///
/// # Errors
/// When chain and key do not belong together.
pub fn renewable_server_config(identity: &Identity) -> Result<(ServerConfig, Arc<Renewable>), Error> {
    let mut config = server_config(identity)?;
    let renewable = Arc::new(Renewable(RwLock::new(certified(identity)?)));
    config.cert_resolver = Arc::<Renewable>::clone(&renewable);
    Ok((config, renewable))
}

/// A client's configuration, with or without an identity.
///
/// # Errors
/// When chain and key do not belong together.
pub fn client_config(identity: Option<&Identity>) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_provider(provider());
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13])?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Form(provider())));
    let mut config = match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain.clone(), identity.key())?,
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// A client's configuration for servers that prove nothing and need not: what they send is signed, and checked as such.
///
/// # Errors
/// When the library offers no version of TLS.
pub fn unauthenticated_config() -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let verifier = Arc::new(Anybody(provider()));
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// Takes any certificate whose key the server holds.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Form::limits(leaf, rest).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, leaf, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Checks limits and the handshake's signature.
#[derive(Debug)]
struct Form(Arc<CryptoProvider>);

impl Form {
    fn limits(leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) -> Result<(), Error> {
        let bytes = leaf.len() + rest.iter().map(|c| c.len()).sum::<usize>();
        if rest.len() >= CHAIN_MAX || bytes > CHAIN_BYTES_MAX {
            return Err(Error::InvalidCertificate(CertificateError::BadEncoding));
        }
        Ok(())
    }

    fn possession(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.0.signature_verification_algorithms)
    }
}

/// TLS 1.2 is not offered; its signatures are never good.
fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
}

impl ServerCertVerifier for Form {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Self::limits(leaf, rest).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.possession(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

impl ClientCertVerifier for Form {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Self::limits(leaf, rest).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.possession(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
