// SPDX-License-Identifier: Apache-2.0
//! The kernel here is one of ours: it makes nonces from the bytes that the real one gets, as `net/tls` does. That the real
//! one does the same, `tests/ktls` shows.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
use super::*;
use crate::session::{BULK, sealed_max};
use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs as provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, ServerConfig, SignatureScheme};
use std::collections::HashSet;
use std::io::{Read, Write};
use std::sync::Arc;

const HEADER: usize = 5;

#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// All suites with a certificate of ours, and their version.
fn suites() -> Vec<(rustls::SupportedCipherSuite, &'static rustls::SupportedProtocolVersion)> {
    let all = provider::ALL_CIPHER_SUITES.iter().copied();
    let usable = all.filter(|suite| !format!("{suite:?}").contains("RSA"));
    let usable: Vec<_> = usable.map(|suite| (suite, suite.version())).collect();
    assert_eq!(usable.len(), 6);
    usable
}

struct Both {
    client: ClientConnection,
    session: Session,
    /// All that the server has said.
    said: Vec<u8>,
}

impl Both {
    /// After the handshake, with whose end the client has said something.
    fn new(
        suite: rustls::SupportedCipherSuite,
        version: &'static rustls::SupportedProtocolVersion,
        early: &[u8],
    ) -> Self {
        let crypto = Arc::new(rustls::crypto::CryptoProvider {
            cipher_suites: vec![suite],
            ..provider::default_provider()
        });
        let made = rcgen::generate_simple_self_signed(vec!["app.test".into()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&crypto))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        server.enable_secret_extraction = true;
        let client = ClientConfig::builder_with_provider(crypto)
            .with_protocol_versions(&[version])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone))
            .with_no_client_auth();
        let client = ClientConnection::new(Arc::new(client), "app.test".try_into().unwrap()).unwrap();
        let mut both = Self { client, session: Session::new(Arc::new(server)).unwrap(), said: Vec::new() };
        both.client.writer().write_all(early).unwrap();
        let mut heard = Vec::new();
        while both.client.is_handshaking() || !both.session.established || heard.len() < early.len() {
            heard.extend(both.up());
        }
        assert_eq!(heard, early);
        both
    }

    /// Lets the client say what it has to say; returns what it says to the app.
    fn up(&mut self) -> Vec<u8> {
        let (mut bytes, mut plain, mut out) = (Vec::new(), Vec::new(), Vec::new());
        while self.client.wants_write() {
            self.client.write_tls(&mut bytes).unwrap();
        }
        let used = self.session.open(&mut bytes, &mut plain, &mut out).unwrap();
        assert_eq!(used, bytes.len());
        self.hear(&out);
        plain
    }

    /// Lets the client hear bytes; returns what they say to it.
    fn hear(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        self.said.extend_from_slice(bytes);
        let mut plain = Vec::new();
        while !bytes.is_empty() {
            self.client.read_tls(&mut bytes).unwrap();
            self.client.process_new_packets().unwrap();
            let _ = self.client.reader().read_to_end(&mut plain);
        }
        plain
    }

    fn down(&mut self, plain: &[u8]) {
        let mut room = vec![0; sealed_max(plain.len())];
        let length = self.session.seal(plain, &mut room).unwrap();
        assert_eq!(self.hear(&room[..length]), plain);
    }
}

/// One direction of a kernel.
struct Direct {
    version: Version,
    cipher: Cipher,
    key: LessSafeKey,
    nonce: [u8; 12],
    sequence: u64,
}

impl Direct {
    fn new(keys: &Keys) -> Self {
        let bytes = keys.expose();
        let number = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let version = if number(0) == 0x304 { Version::Tls13 } else { Version::Tls12 };
        let (cipher, algorithm, iv, key) = match number(2) {
            51 => (Cipher::Aes128Gcm, &AES_128_GCM, 8, 16),
            52 => (Cipher::Aes256Gcm, &AES_256_GCM, 8, 32),
            54 => (Cipher::ChaCha20Poly1305, &CHACHA20_POLY1305, 12, 32),
            other => panic!("cipher {other}"),
        };
        let (iv, rest) = bytes[4..].split_at(iv);
        let (key, rest) = rest.split_at(key);
        let (salt, sequence) = rest.split_at(rest.len() - 8);
        Self {
            version,
            cipher,
            key: LessSafeKey::new(UnboundKey::new(algorithm, key).unwrap()),
            nonce: [salt, iv].concat().try_into().unwrap(),
            sequence: u64::from_be_bytes(sequence.try_into().unwrap()),
        }
    }

    const fn is_explicit(&self) -> bool {
        matches!((self.version, self.cipher), (Version::Tls12, Cipher::Aes128Gcm | Cipher::Aes256Gcm))
    }

    /// The nonce of the next record that is sent.
    fn nonce(&self) -> [u8; 12] {
        let mut nonce = self.nonce;
        if !self.is_explicit() {
            nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()).for_each(|(n, s)| *n ^= s);
        }
        nonce
    }

    /// Additional data of a record that carries so many bytes, or in TLS 1.3 has so long a body.
    fn aad(&self, kind: u8, length: usize) -> Vec<u8> {
        let length = u16::try_from(length).unwrap().to_be_bytes();
        match self.version {
            Version::Tls13 => [&[23, 3, 3], length.as_slice()].concat(),
            Version::Tls12 => [&self.sequence.to_be_bytes(), [kind, 3, 3].as_slice(), &length].concat(),
        }
    }

    fn advance(&mut self) {
        self.sequence += 1;
        if self.is_explicit() {
            let next = u64::from_be_bytes(self.nonce[4..].try_into().unwrap()).wrapping_add(1);
            self.nonce[4..].copy_from_slice(&next.to_be_bytes());
        }
    }

    fn seal(&mut self, kind: u8, plain: &[u8]) -> Vec<u8> {
        let mut body = plain.to_vec();
        if self.version == Version::Tls13 {
            body.push(kind);
        }
        let aad = match self.version {
            Version::Tls13 => self.aad(kind, body.len() + 16),
            Version::Tls12 => self.aad(kind, body.len()),
        };
        let nonce = Nonce::assume_unique_for_key(self.nonce());
        self.key.seal_in_place_append_tag(nonce, Aad::from(aad), &mut body).unwrap();
        if self.is_explicit() {
            body.splice(..0, self.nonce[4..].to_vec());
        }
        self.advance();
        let kind = if self.version == Version::Tls13 { 23 } else { kind };
        [&[kind, 3, 3], u16::try_from(body.len()).unwrap().to_be_bytes().as_slice(), &body].concat()
    }

    fn open(&mut self, record: &[u8]) -> Option<(u8, Vec<u8>)> {
        let (kind, mut body) = (record[0], record[HEADER..].to_vec());
        let mut nonce = self.nonce();
        if self.is_explicit() {
            nonce[4..].copy_from_slice(&body[..8]);
            body.drain(..8);
        }
        let aad = match self.version {
            Version::Tls13 => self.aad(kind, body.len()),
            Version::Tls12 => self.aad(kind, body.len() - 16),
        };
        let nonce = Nonce::assume_unique_for_key(nonce);
        let mut plain = self.key.open_in_place(nonce, Aad::from(aad), &mut body).ok()?.to_vec();
        self.advance();
        let kind = if self.version == Version::Tls13 { plain.pop()? } else { kind };
        Some((kind, plain))
    }
}

/// Records of a stream.
fn records(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (record, rest) = bytes.split_at(HEADER + usize::from(u16::from_be_bytes([bytes[3], bytes[4]])));
        all.push(record);
        bytes = rest;
    }
    all
}

/// What [`Kernel::new`] gives to the kernel, and the state beside it.
fn taken(session: Session) -> (Direct, Direct, KernelConnection<ServerConnectionData>) {
    let version = session.version().unwrap();
    let expected = cipher(session.suite().unwrap()).unwrap();
    let (secrets, connection) = session.into_keys().unwrap();
    let (tx, transmit) = keys(version, Direction::Transmit, &secrets.tx).unwrap();
    let (rx, receive) = keys(version, Direction::Receive, &secrets.rx).unwrap();
    assert_eq!((tx, rx), (expected, expected));
    (Direct::new(&transmit), Direct::new(&receive), connection)
}

fn sent(client: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

#[test]
fn the_kernel_goes_on_where_rustls_has_stopped() {
    for (suite, version) in suites() {
        let mut both = Both::new(suite, version, b"");
        both.client.writer().write_all(b"one").unwrap();
        assert_eq!(both.up(), b"one");
        both.down(b"two");
        both.down(b"three");
        let (mut transmit, mut receive, _) = taken(std::mem::replace(&mut both.session, unused()));
        let record = transmit.seal(23, b"four");
        assert_eq!(both.hear(&record), b"four", "{suite:?}");
        let record = transmit.seal(23, b"five");
        assert_eq!(both.hear(&record), b"five", "{suite:?}");
        both.client.writer().write_all(b"six").unwrap();
        let bytes = sent(&mut both.client);
        assert_eq!(receive.open(&bytes), Some((23, b"six".to_vec())), "{suite:?}");
        both.client.send_close_notify();
        let bytes = sent(&mut both.client);
        let (kind, alert) = receive.open(&bytes).unwrap();
        let mut patience = Patience::FULL;
        assert_eq!(judge(&mut patience, transmit.version, kind, &alert), Ok(Asked::End));
        let record = transmit.seal(ALERT, &CLOSE_NOTIFY);
        both.client.read_tls(&mut record.as_slice()).unwrap();
        assert!(both.client.process_new_packets().unwrap().peer_has_closed());
    }
}

fn unused() -> Session {
    let crypto = Arc::new(provider::default_provider());
    let config = ServerConfig::builder_with_provider(crypto).with_safe_default_protocol_versions().unwrap();
    let nobody = rustls::server::ResolvesServerCertUsingSni::new();
    Session::new(Arc::new(config.with_no_client_auth().with_cert_resolver(Arc::new(nobody)))).unwrap()
}

#[test]
fn no_nonce_is_used_twice() {
    for (suite, version) in
        suites().into_iter().filter(|(_, version)| version.version == rustls::ProtocolVersion::TLSv1_2)
    {
        for _ in 0..8 {
            let mut both = Both::new(suite, version, b"");
            for _ in 0..40 {
                both.down(b"x");
            }
            let said = std::mem::take(&mut both.said);
            let (mut transmit, ..) = taken(both.session);
            if !transmit.is_explicit() {
                continue;
            }
            // Records of the first 40 answers, and before them the end of the handshake.
            let sealed = records(&said).into_iter().rev().take(41);
            let used: HashSet<[u8; 8]> =
                sealed.map(|record| record[HEADER..HEADER + 8].try_into().unwrap()).collect();
            assert_eq!(used.len(), 41);
            for _ in 0..200 {
                let record = transmit.seal(23, b"y");
                assert!(!used.contains(&record[HEADER..HEADER + 8]), "{suite:?}");
            }
        }
    }
}

#[test]
fn keys_change_on_both_sides() {
    for (suite, version) in
        suites().into_iter().filter(|(_, version)| version.version == rustls::ProtocolVersion::TLSv1_3)
    {
        let mut both = Both::new(suite, version, b"");
        both.down(b"first");
        let (mut transmit, mut receive, mut connection) =
            taken(std::mem::replace(&mut both.session, unused()));
        for round in 0..3 {
            both.client.refresh_traffic_keys().unwrap();
            both.client.writer().write_all(b"under new keys").unwrap();
            let bytes = sent(&mut both.client);
            let [update, data] = records(&bytes)[..] else { panic!("{} bytes", bytes.len()) };
            let (kind, body) = receive.open(update).unwrap();
            let mut patience = Patience::FULL;
            assert_eq!(judge(&mut patience, Version::Tls13, kind, &body), Ok(Asked::NewKeys));
            assert_eq!(body.last(), Some(&1), "an answer is wanted");
            assert!(receive.open(data).is_none());
            let secrets = connection.update_rx_secret().unwrap();
            receive = Direct::new(&keys(Version::Tls13, Direction::Receive, &secrets).unwrap().1);
            assert_eq!(receive.open(data), Some((23, b"under new keys".to_vec())), "{suite:?} {round}");
            let record = transmit.seal(HANDSHAKE, &KEY_UPDATE);
            assert!(both.hear(&record).is_empty());
            let secrets = connection.update_tx_secret().unwrap();
            transmit = Direct::new(&keys(Version::Tls13, Direction::Transmit, &secrets).unwrap().1);
            let record = transmit.seal(23, b"so do we");
            assert_eq!(both.hear(&record), b"so do we", "{suite:?} {round}");
        }
    }
}

#[test]
fn a_session_is_ripe_when_much_was_carried_and_nothing_is_owed() {
    let (suite, version) = suites()[0];
    let mut both = Both::new(suite, version, b"");
    assert!(!both.session.is_bulk());
    let mut sum = 0;
    while sum < BULK {
        assert!(!both.session.is_bulk(), "{sum}");
        both.down(&[1; 10_000]);
        sum += 10_000;
    }
    assert!(both.session.is_bulk());
    both.client.writer().write_all(&[2; 40_000]).unwrap();
    assert_eq!(both.up(), [2; 40_000]);
    assert!(both.session.is_bulk());
    // An answer to a key update waits for the next byte, and would be lost.
    both.client.refresh_traffic_keys().unwrap();
    both.up();
    assert!(!both.session.is_bulk());
    both.down(b"x");
    assert!(both.session.is_bulk());
    both.client.send_close_notify();
    both.up();
    assert!(!both.session.is_bulk());
}

#[test]
fn a_session_that_only_hears_is_ripe_too() {
    for (suite, version) in suites() {
        for at_once in [false, true] {
            let mut both = Both::new(suite, version, if at_once { b"early" } else { b"" });
            for _ in 0..=BULK / 10_000 {
                assert!(!both.session.is_bulk());
                both.client.writer().write_all(&[2; 10_000]).unwrap();
                both.up();
            }
            assert!(both.session.is_bulk(), "{suite:?} {at_once}");
        }
    }
}

#[test]
fn the_rest_of_a_record_is_known() {
    let mut session = unused();
    assert_eq!(session.missing(), 0);
    for (partial, missing) in [
        (vec![23], 4),
        (vec![23, 3, 3, 0], 1),
        (vec![23, 3, 3, 1, 0], 256),
        (vec![23, 3, 3, 1, 0, 9, 9], 254),
        ([vec![23, 3, 3, 0, 2], vec![9; 2]].concat(), 0),
    ] {
        session.partial = partial;
        assert_eq!(session.missing(), missing, "{:?}", session.partial);
    }
}

#[test]
fn what_is_no_data_is_judged_as_rustls_does() {
    use Version::{Tls12, Tls13};
    let once = |version, kind, body: &[u8]| judge(&mut { Patience::FULL }, version, kind, body);
    for version in [Tls12, Tls13] {
        assert_eq!(once(version, ALERT, &[1, 0]), Ok(Asked::End));
        assert_eq!(once(version, ALERT, &[2, 0]), Ok(Asked::End));
        assert_eq!(once(version, ALERT, &[1, 90]), Ok(Asked::Nothing));
        assert_eq!(once(version, ALERT, &[2, 40]), Err(Wrong(None)));
        assert_eq!(once(version, ALERT, &[3, 40]), Err(wrong(alert::ILLEGAL_PARAMETER)));
        assert_eq!(once(version, ALERT, &[1]), Err(wrong(alert::DECODE_ERROR)));
        assert_eq!(once(version, ALERT, &[]), Err(wrong(alert::DECODE_ERROR)));
        // ChangeCipherSpec, a handshake message that is none, and what no version knows.
        for (kind, body) in [(20, &[1][..]), (HANDSHAKE, &[11, 0, 0, 0]), (HANDSHAKE, &[]), (24, &[1, 0, 0])]
        {
            assert_eq!(once(version, kind, body), Err(wrong(alert::UNEXPECTED_MESSAGE)), "{kind}");
        }
    }
    assert_eq!(once(Tls12, ALERT, &[1, 41]), Ok(Asked::Nothing));
    assert_eq!(once(Tls13, ALERT, &[1, 41]), Err(wrong(alert::DECODE_ERROR)));
    assert_eq!(once(Tls12, HANDSHAKE, &[1, 0, 0, 0]), Ok(Asked::Renegotiation));
    assert_eq!(once(Tls13, HANDSHAKE, &[1, 0, 0, 0]), Err(wrong(alert::UNEXPECTED_MESSAGE)));
    assert_eq!(once(Tls13, HANDSHAKE, &[24, 0, 0, 1, 0]), Ok(Asked::NewKeys));
    assert_eq!(once(Tls13, HANDSHAKE, &[24, 0, 0, 1, 2]), Err(wrong(alert::ILLEGAL_PARAMETER)));
    assert_eq!(once(Tls12, HANDSHAKE, &[24, 0, 0, 1, 0]), Err(wrong(alert::UNEXPECTED_MESSAGE)));
    // Two messages in one record: the second was sealed with keys that were to change.
    let two = [24, 0, 0, 1, 0, 24, 0, 0, 1, 0];
    assert_eq!(once(Tls13, HANDSHAKE, &two), Err(wrong(alert::UNEXPECTED_MESSAGE)));
}

#[test]
fn patience_ends() {
    for (most, version, kind, body) in [
        (WARNINGS_MAX, Version::Tls12, ALERT, &[1, 41][..]),
        (RENEGOTIATIONS_MAX, Version::Tls12, HANDSHAKE, &[1, 0, 0, 0]),
        (KEY_UPDATES_MAX, Version::Tls13, HANDSHAKE, &[24, 0, 0, 1, 1]),
    ] {
        let mut patience = Patience::FULL;
        for _ in 0..most {
            assert!(judge(&mut patience, version, kind, body).is_ok());
        }
        assert_eq!(judge(&mut patience, version, kind, body), Err(Wrong(None)), "{kind} {body:?}");
    }
}

#[test]
fn keys_wear_out() {
    let margin = CALLS * RECORDS_PER_CALL;
    for (sequence, rekey, wanted) in [
        (0, true, Wear::None),
        (RECORDS_WORN - 1, true, Wear::None),
        (RECORDS_WORN, true, Wear::Renew),
        (RECORDS_WORN, false, Wear::None),
        (RECORDS_MAX - margin, false, Wear::None),
        (RECORDS_MAX - margin + 1, false, Wear::Over),
        (u64::MAX, false, Wear::Over),
    ] {
        assert_eq!(wear(sequence, rekey), wanted, "{sequence} {rekey}");
    }
}

#[test]
fn the_stream_has_an_end_that_can_be_computed() {
    let mut wire = Wire { base: 1_000, first: 7, ..Wire::default() };
    assert_eq!(wire.end(7, 22), 1_000);
    wire.plain = 20_000;
    assert_eq!(wire.end(9, 22), 21_044);
    (wire.records, wire.first, wire.plain) = (2, 0, 20_010);
    assert_eq!(wire.end(1, 22), 21_076);
}
