// SPDX-License-Identifier: Apache-2.0
//! Names, addresses and certificates shared by every part of the harness.
//!
//! One route is one VM: an id, and an address in 127.20.0.0/16. Route `i` always
//! has address 127.20.0.2 + i, which is also what the original's own allocator
//! hands out for the i-th registration, so every proxy gets the same table.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

pub const BASE_DOMAIN: &str = "bench.test";
/// Plain TCP backend (what a terminating route forwards to).
pub const PORT_PLAIN: u16 = 9080;
/// TLS backend (what a passthrough route forwards to).
pub const PORT_TLS: u16 = 9443;
/// Backend that reads one ClientHello and then talks plain bytes. To a
/// passthrough proxy this is a TLS connection; it takes the cost of TLS out of
/// the load generator so that the proxy's own cost stands out.
pub const PORT_RAW: u16 = 9444;
/// Stub of the VM's agent (the original asks it for a port policy).
pub const PORT_AGENT: u16 = 9090;

/// One VM in the routing table.
#[derive(Clone, Debug)]
pub struct Route {
    pub id: String,
    pub ip: Ipv4Addr,
}

impl Route {
    pub fn nth(i: usize) -> Route {
        // splitmix64, so that ids are not sorted by index
        let mut z = (i as u64)
            .wrapping_add(1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        Route {
            id: format!("{z:016x}{:024x}", i as u128 * 0x1_0001),
            ip: Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 20, 0, 2)) + i as u32),
        }
    }

    /// SNI that makes a proxy terminate TLS and forward to the plain backend.
    pub fn sni_term(&self) -> String {
        format!("{}-{PORT_PLAIN}.{BASE_DOMAIN}", self.id)
    }
    /// SNI that makes a proxy pass TLS through to the TLS backend.
    pub fn sni_tls(&self) -> String {
        format!("{}-{PORT_TLS}s.{BASE_DOMAIN}", self.id)
    }
    /// SNI that makes a proxy pass bytes through to the raw backend.
    pub fn sni_raw(&self) -> String {
        format!("{}-{PORT_RAW}s.{BASE_DOMAIN}", self.id)
    }
}

/// A routing table of `n` VMs.
#[derive(Clone)]
pub struct Table {
    pub routes: Vec<Route>,
}

impl Table {
    pub fn new(n: usize) -> Table {
        Table {
            routes: (0..n).map(Route::nth).collect(),
        }
    }

    /// The few routes that load is sent to, spread evenly over the table.
    pub fn driven(&self) -> Vec<Route> {
        let n = self.routes.len();
        let k = n.min(8);
        (0..k)
            .map(|j| self.routes[j * n / k + (n / k).saturating_sub(1) / 2].clone())
            .collect()
    }
}

/// Test certificates: a CA and one P-256 wildcard leaf, on disk and in memory.
pub struct Pki {
    pub ca_pem: PathBuf,
    pub cert_pem: PathBuf,
    pub key_pem: PathBuf,
    /// certificate and key in one file, as HAProxy wants it
    pub both_pem: PathBuf,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Pki {
    pub fn create(dir: &Path) -> Result<Pki> {
        let mut ca = CertificateParams::new(Vec::<String>::new())?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name
            .push(rcgen::DnType::CommonName, "proxybench CA");
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
        let leaf_key = KeyPair::generate()?; // ECDSA P-256
        let leaf = CertificateParams::new(vec![
            format!("*.{BASE_DOMAIN}"),
            BASE_DOMAIN.to_string(),
            "localhost".to_string(),
        ])?
        .signed_by(&leaf_key, &ca)?;

        let ca_pem = dir.join("ca.pem");
        let cert_pem = dir.join("cert.pem");
        let key_pem = dir.join("key.pem");
        let both_pem = dir.join("both.pem");
        std::fs::write(&ca_pem, ca.pem())?;
        std::fs::write(&cert_pem, leaf.pem())?;
        std::fs::write(&key_pem, leaf_key.serialize_pem())?;
        std::fs::write(
            &both_pem,
            format!("{}{}", leaf.pem(), leaf_key.serialize_pem()),
        )?;

        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone())?;
        Ok(Pki {
            ca_pem,
            cert_pem,
            key_pem: key_pem.clone(),
            both_pem,
            roots: Arc::new(roots),
            chain: vec![leaf.der().clone()],
            key: PrivateKeyDer::from_pem_file(&key_pem).context("reading back the leaf key")?,
        })
    }

    /// TLS server side of the backends.
    pub fn server(&self) -> Result<Arc<ServerConfig>> {
        Ok(Arc::new(
            ServerConfig::builder_with_provider(Arc::new(crypto()))
                .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
                .with_no_client_auth()
                .with_single_cert(self.chain.clone(), self.key.clone_key())?,
        ))
    }

    /// TLS client. One cipher suite and one group, so that every proxy does the
    /// same cryptography and no proxy is charged for a better default.
    pub fn client(&self, opts: ClientOpts) -> Result<Arc<ClientConfig>> {
        let version = if opts.tls12 {
            &rustls::version::TLS12
        } else {
            &rustls::version::TLS13
        };
        let mut c = ClientConfig::builder_with_provider(Arc::new(crypto()))
            .with_protocol_versions(&[version])?
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        c.resumption = if opts.resume {
            rustls::client::Resumption::in_memory_sessions(1024)
        } else {
            rustls::client::Resumption::disabled()
        };
        c.max_fragment_size = opts.max_fragment;
        c.enable_sni = !opts.no_sni;
        if opts.alpn_padding > 0 {
            c.alpn_protocols.push(b"http/1.1".to_vec()); // one that a server may know
        }
        for i in 0..opts.alpn_padding {
            c.alpn_protocols
                .push(format!("padding-{i:05}-{}", "x".repeat(80)).into_bytes());
        }
        Ok(Arc::new(c))
    }
}

/// How a test client differs from the ordinary one.
#[derive(Clone, Copy, Default)]
pub struct ClientOpts {
    pub tls12: bool,
    pub resume: bool,
    pub no_sni: bool,
    /// cut every record (so the ClientHello too) to this many bytes
    pub max_fragment: Option<usize>,
    /// number of ~100-byte ALPN names to add, to grow the ClientHello
    pub alpn_padding: usize,
}

fn crypto() -> rustls::crypto::CryptoProvider {
    use rustls::crypto::aws_lc_rs as p;
    let mut c = p::default_provider();
    // the key share is X25519; P-256 is offered because TLS 1.2 needs the curve of
    // the certificate to be listed
    c.kx_groups = vec![p::kx_group::X25519, p::kx_group::SECP256R1];
    c.cipher_suites = vec![
        p::cipher_suite::TLS13_AES_128_GCM_SHA256,
        p::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    ];
    c
}

/// The bytes of a real ClientHello (one TLS record) for `sni`.
pub fn client_hello(cfg: &Arc<ClientConfig>, sni: &str) -> Result<Vec<u8>> {
    let name = rustls::pki_types::ServerName::try_from(sni.to_string())?;
    let mut conn = rustls::ClientConnection::new(cfg.clone(), name)?;
    let mut out = Vec::new();
    while conn.wants_write() {
        conn.write_tls(&mut out)?;
    }
    Ok(out)
}
