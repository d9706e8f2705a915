// SPDX-License-Identifier: Apache-2.0
//! Targets of what is read about certificates: crt.sh, logs, static logs, certificates, and the monitor's own state.

use dstack_ctmonitor::alert::Book;
use dstack_ctmonitor::certificate::{Certificate, KeyId, printable};
use dstack_ctmonitor::domain::Domain;
use dstack_ctmonitor::limits::{PROOF_HASHES_MAX, SEARCH_ENTRIES_MAX, TILE_WIDTH};
use dstack_ctmonitor::merkle::{Frontier, check_consistency, check_inclusion, empty, leaf};
use dstack_ctmonitor::store::Position;
use dstack_ctmonitor::{crtsh, rfc6962, tiles};

const HASH: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const ORIGIN: &str = "log.example/2027";

/// A search's answer has as many entries as it may, each under its number.
pub fn ct_search(bytes: &[u8]) {
    if let Ok(list) = crtsh::parse(bytes) {
        assert!(list.len() <= SEARCH_ENTRIES_MAX && list.iter().all(|(id, entry)| *id == entry.id));
    }
}

/// Samples of [`ct_search`].
#[must_use]
pub fn ct_search_samples() -> Vec<Vec<u8>> {
    let entry = r#"{"issuer_ca_id":295815,"issuer_name":"C=US, CN=R11","common_name":"a.example","name_value":"*.a.example\na.example","id":14666084839,"entry_timestamp":"2024-09-24T03:21:45.825","not_before":"2024-09-24T02:23:15","not_after":"2024-12-23T02:23:14","serial_number":"03ae79","result_count":2}"#;
    ["[]".to_owned(), format!("[{entry}]")].map(String::into_bytes).to_vec()
}

/// What is read of a certificate can be shown, and has one key whatever it is wrapped in.
pub fn ct_certificate(bytes: &[u8]) {
    for certificate in
        [Certificate::from_der(bytes), Certificate::from_precertificate(bytes), Certificate::from_pem(bytes)]
            .into_iter()
            .flatten()
    {
        assert!(
            certificate
                .shown_names()
                .iter()
                .chain([&certificate.issuer])
                .all(|text| printable(text) == *text)
        );
        assert_eq!(KeyId::from_hex(&certificate.key_id().to_string()), Some(certificate.key_id()));
    }
}

/// Samples of [`ct_certificate`].
#[must_use]
pub fn ct_certificate_samples() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../samples/certificate.der").to_vec(),
        include_bytes!("../samples/root.der").to_vec(),
    ]
}

/// A tree head is read whole or not at all: what is signed has one length.
pub fn ct_head(bytes: &[u8]) {
    if let Ok(head) = rfc6962::parse_head(bytes) {
        assert_eq!(head.message().len(), 50);
    }
}

/// Samples of [`ct_head`].
#[must_use]
pub fn ct_head_samples() -> Vec<Vec<u8>> {
    let text = format!(
        r#"{{"tree_size":5,"timestamp":6,"sha256_root_hash":"{HASH}","tree_head_signature":"BAMAAnh4"}}"#
    );
    vec![text.into_bytes()]
}

/// Proofs are bounded, and none of made-up hashes holds for two different roots.
pub fn ct_proof(bytes: &[u8]) {
    let proof = rfc6962::parse_consistency(bytes);
    let path = rfc6962::parse_entry_and_proof(bytes).map(|(_, path)| path);
    for hashes in [proof, path].into_iter().flatten() {
        assert!(hashes.len() <= PROOF_HASHES_MAX);
        let (one, other) = (empty(), leaf(b"x"));
        for size in [2, 3, 1 << 40] {
            let with = |root| check_consistency((1, &one), (size, root), &hashes).is_ok();
            assert!(!(with(&one) && with(&other)), "two roots");
            let with = |root| check_inclusion(size - 1, size, &one, &hashes, root).is_ok();
            assert!(!(with(&one) && with(&other)), "two roots");
        }
    }
}

/// Samples of [`ct_proof`].
#[must_use]
pub fn ct_proof_samples() -> Vec<Vec<u8>> {
    let texts = [
        format!(r#"{{"consistency":["{HASH}","{HASH}"]}}"#),
        format!(r#"{{"leaf_input":"AAA=","extra_data":"","audit_path":["{HASH}"]}}"#),
    ];
    texts.map(String::into_bytes).to_vec()
}

/// Entries of a log, and what is in them.
pub fn ct_entries(bytes: &[u8]) {
    for leaf in rfc6962::parse_entries(bytes).unwrap_or_default() {
        ct_leaf(&leaf);
    }
}

/// Samples of [`ct_entries`].
#[must_use]
pub fn ct_entries_samples() -> Vec<Vec<u8>> {
    let entry = r#"{"leaf_input":"AAAAAAAAAAAAAAAAAAACYWIAAA==","extra_data":"AA=="}"#;
    vec![format!(r#"{{"entries":[{entry},{entry}]}}"#).into_bytes()]
}

/// What is logged is a part of the leaf.
pub fn ct_leaf(bytes: &[u8]) {
    if let Ok(logged) = rfc6962::parse_leaf(bytes) {
        assert!(logged.bytes().len() + 17 <= bytes.len(), "more than there is");
        let _ = logged.certificate();
    }
}

/// Samples of [`ct_leaf`].
#[must_use]
pub fn ct_leaf_samples() -> Vec<Vec<u8>> {
    let certificate = [&[0, 0][..], &[0; 8], &[0, 0], &[0, 0, 2], b"ab", &[0, 0]].concat();
    let pre = [&[0, 0][..], &[0; 8], &[0, 1], &[9; 32], &[0, 0, 1], b"t", &[0, 1], b"e"].concat();
    vec![certificate, pre]
}

/// A checkpoint that is read is of the log that was asked.
pub fn ct_checkpoint(bytes: &[u8]) {
    if let Ok(head) = tiles::parse_checkpoint(bytes, ORIGIN, &[8; 32]) {
        let begin = format!("{ORIGIN}\n{}\n", head.size);
        assert!(bytes.starts_with(begin.as_bytes()), "another log or size");
    }
}

/// Samples of [`ct_checkpoint`].
#[must_use]
pub fn ct_checkpoint_samples() -> Vec<Vec<u8>> {
    use base64::Engine as _;
    let body = [&tiles::key_id(ORIGIN, &[8; 32])[..], &7_u64.to_be_bytes(), b"signed"].concat();
    let body = base64::prelude::BASE64_STANDARD.encode(body);
    vec![
        format!("{ORIGIN}\n256\n{HASH}\n\n\u{2014} w.example AAAAAA==\n\u{2014} {ORIGIN} {body}\n")
            .into_bytes(),
    ]
}

/// Tiles have at most their width, and entries of data tiles are leaves.
pub fn ct_tile(bytes: &[u8]) {
    let most = |n: usize| u64::try_from(n).is_ok_and(|n| n <= TILE_WIDTH);
    assert!(tiles::parse_tile(bytes, 1).map_or(true, |hashes| most(hashes.len())));
    for leaf in tiles::parse_data(bytes, 1).unwrap_or_default() {
        assert!(rfc6962::parse_leaf(&leaf).is_ok(), "no leaf");
    }
}

/// Samples of [`ct_tile`].
#[must_use]
pub fn ct_tile_samples() -> Vec<Vec<u8>> {
    let certificate = [&[0; 8][..], &[0, 0], &[0, 0, 2], b"ab", &[0, 0], &[0, 32], &[5; 32]].concat();
    let pre =
        [&[0; 8][..], &[0, 1], &[9; 32], &[0, 0, 1], b"t", &[0, 0], &[0, 0, 3], b"pre", &[0, 0]].concat();
    vec![vec![1; 64], certificate.clone(), [certificate, pre].concat()]
}

/// A domain is read back from its own text, and concerns itself.
pub fn ct_domain(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(domain) = text.parse::<Domain>() {
        assert_eq!(domain.as_str().parse(), Ok(domain.clone()));
        assert!(domain.is_concerned_by(domain.as_str()) && domain.is_mentioned_in(bytes), "{domain}");
        let below = format!("x.{domain}");
        assert!(domain.is_concerned_by(&below) && domain.is_mentioned_in(below.as_bytes()));
    }
}

/// Samples of [`ct_domain`].
#[must_use]
pub fn ct_domain_samples() -> Vec<Vec<u8>> {
    ["apps.example.com", "*.Example.org.", "a.xn--p1ai"].map(|text| text.as_bytes().to_vec()).to_vec()
}

/// State that is read is written so that it reads the same.
pub fn ct_state(bytes: &[u8]) {
    if let Ok(book) = serde_json::from_slice::<Book>(bytes) {
        let text = serde_json::to_vec(&book).unwrap_or_default();
        assert_eq!(serde_json::from_slice::<Book>(&text).ok(), Some(book));
    }
    if let Ok(position) = serde_json::from_slice::<Position>(bytes) {
        let text = serde_json::to_vec(&position).unwrap_or_default();
        assert_eq!(serde_json::from_slice::<Position>(&text).ok(), Some(position));
    }
    if let Ok(mut frontier) = serde_json::from_slice::<Frontier>(bytes) {
        let before = frontier.size();
        if before < u64::MAX {
            frontier.push(empty());
            assert_eq!(frontier.size(), before + 1);
        }
    }
}

/// Samples of [`ct_state`].
#[must_use]
pub fn ct_state_samples() -> Vec<Vec<u8>> {
    let (position, mut frontier) = (Position::default(), Frontier::default());
    (0..5).for_each(|_| frontier.push(empty()));
    let alert = dstack_ctmonitor::alert::Alert::blind("crt.sh", 1, "HTTP status 502", 90_000);
    let mut book = Book::default();
    let _ = book.note(alert);
    let texts = [serde_json::to_vec(&position), serde_json::to_vec(&frontier), serde_json::to_vec(&book)];
    texts.into_iter().flatten().collect()
}
