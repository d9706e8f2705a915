// SPDX-License-Identifier: Apache-2.0
//! A key service that issues, once it has keys.

use dstack_ra_tls::certificate::{OID_USAGE, Usage, extension};
use dstack_service::api::kms1::{Error, NAME, PATH};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use zbus::{Connection, interface};

/// What the test turns and looks at.
#[derive(Debug)]
pub struct Inner {
    pub bootstrapped: AtomicBool,
    pub issued: AtomicUsize,
    key: KeyPair,
    params: CertificateParams,
    root: Vec<u8>,
}

impl Inner {
    pub fn public_key(&self) -> Vec<u8> {
        self.key.subject_public_key_info()
    }
}

#[derive(Debug)]
pub struct Kms {
    pub inner: Arc<Inner>,
    connection: Connection,
}

struct Manager(Arc<Inner>);

/// A P-256 key as it comes, 26 bytes before the point.
struct Spki(Vec<u8>);

impl PublicKeyData for Spki {
    fn der_bytes(&self) -> &[u8] {
        &self.0[26..]
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

#[interface(name = "org.dstack.kms1.Manager")]
impl Manager {
    fn sign_gateway_certificate(&self, public_key: Vec<u8>) -> Result<Vec<Vec<u8>>, Error> {
        if !self.0.bootstrapped.load(Ordering::Relaxed) {
            return Err(Error::NotBootstrapped("it has no keys; run: dstackctl kms bootstrap DOMAIN".into()));
        }
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.custom_extensions = vec![extension(&OID_USAGE, Usage::GatewayRpc.text().as_bytes())];
        let key = Spki(public_key);
        let leaf = params.signed_by(&key, &Issuer::from_params(&self.0.params, &self.0.key)).unwrap();
        self.0.issued.fetch_add(1, Ordering::Relaxed);
        Ok(vec![leaf.der().to_vec(), self.0.root.clone()])
    }

    #[zbus(property)]
    fn bootstrapped(&self) -> bool {
        self.0.bootstrapped.load(Ordering::Relaxed)
    }
}

impl Kms {
    pub async fn new(address: &str, bootstrapped: bool) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        let root = params.self_signed(&key).unwrap().der().to_vec();
        let (bootstrapped, issued) = (AtomicBool::new(bootstrapped), AtomicUsize::new(0));
        let inner = Arc::new(Inner { bootstrapped, issued, key, params, root });
        let connection = zbus::conn::Builder::address(address)
            .serve_at(PATH, Manager(Arc::clone(&inner)))
            .name(NAME)
            .build()
            .await
            .unwrap();
        Self { inner, connection }
    }

    /// It gets its keys, and says so.
    pub async fn bootstrap(&self) {
        self.inner.bootstrapped.store(true, Ordering::Relaxed);
        let object = self.connection.object_server().interface::<_, Manager>(PATH).await.unwrap();
        object.get().await.bootstrapped_changed(object.signal_emitter()).await.unwrap();
    }
}
