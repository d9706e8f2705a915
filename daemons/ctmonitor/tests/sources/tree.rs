// SPDX-License-Identifier: Apache-2.0
//! A log that the test grows, signs and makes lie. Hashes and proofs are computed from the definitions of RFC 6962, by none
//! of the code under test.

use crate::certs::Issued;
use crate::server::{Handler, Reply, Server};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::sign::Signer;
use sha2::{Digest, Sha256};
use std::io::Write;
use std::sync::{Arc, Mutex};

type Hash = [u8; 32];

fn leaf(bytes: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(bytes).finalize().into()
}

fn split(n: usize) -> usize {
    n.next_power_of_two() / 2
}

/// MTH(D[n]).
fn root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => Sha256::digest([]).into(),
        [one] => *one,
        many => {
            let (left, right) = many.split_at(split(many.len()));
            Sha256::new()
                .chain_update([1])
                .chain_update(root(left))
                .chain_update(root(right))
                .finalize()
                .into()
        }
    }
}

/// PATH(m, D[n]).
fn path(m: usize, leaves: &[Hash]) -> Vec<Hash> {
    if leaves.len() < 2 {
        return Vec::new();
    }
    let k = split(leaves.len());
    let (left, right) = leaves.split_at(k);
    let (mut proof, other) =
        if m < k { (path(m, left), root(right)) } else { (path(m - k, right), root(left)) };
    proof.push(other);
    proof
}

/// SUBPROOF(m, D[n], b).
fn subproof(m: usize, leaves: &[Hash], whole: bool) -> Vec<Hash> {
    if m == leaves.len() {
        return if whole { Vec::new() } else { vec![root(leaves)] };
    }
    let k = split(leaves.len());
    let (left, right) = leaves.split_at(k);
    let (mut proof, other) = if m <= k {
        (subproof(m, left, whole), root(right))
    } else {
        (subproof(m - k, right, false), root(left))
    };
    proof.push(other);
    proof
}

/// What was submitted: the leaf, and for a precertificate its bytes.
#[derive(Clone)]
pub struct Entry {
    pub leaf: Vec<u8>,
    pre: Option<Vec<u8>>,
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[1..], bytes].concat()
}

pub fn certificate(issued: &Issued) -> Entry {
    let leaf = [&[0, 0][..], &[0; 8], &[0, 0], &sized(&issued.der), &[0, 0]].concat();
    Entry { leaf, pre: None }
}

/// A precertificate; `plain` is the same without poison.
pub fn precertificate(poisoned: &Issued, plain: &Issued) -> Entry {
    let leaf = [&[0, 0][..], &[0; 8], &[0, 1], &[7; 32], &sized(&plain.tbs()), &[0, 0]].concat();
    Entry { leaf, pre: Some(poisoned.der.clone()) }
}

pub fn noise(n: usize) -> Entry {
    let leaf = [&[0, 0][..], &[0; 8], &[0, 0], &sized(format!("noise {n}").as_bytes()), &[0, 0]].concat();
    Entry { leaf, pre: None }
}

pub struct State {
    pub entries: Vec<Entry>,
    /// Leaves of the tree that is shown.
    pub shown: usize,
    pub timestamp: u64,
    /// Entries that are given instead of those that were hashed.
    pub swapped: Option<(usize, Entry)>,
    /// Proofs are these instead.
    pub wrong_proof: bool,
    /// Sign with another key.
    pub wrong_key: bool,
    /// Partial tiles are gone.
    pub no_partial: bool,
}

impl State {
    fn hashes(&self) -> Vec<Hash> {
        self.entries.iter().take(self.shown).map(|e| leaf(&e.leaf)).collect()
    }

    fn given(&self, n: usize) -> &Entry {
        match &self.swapped {
            Some((at, entry)) if *at == n => entry,
            _ => &self.entries[n],
        }
    }
}

pub struct Log {
    pub server: Server,
    pub state: Arc<Mutex<State>>,
    /// SubjectPublicKeyInfo, DER.
    pub key: Vec<u8>,
}

fn new_key() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
}

fn signed(state: &State, key: &PKey<Private>) -> Vec<u8> {
    let size = u64::try_from(state.shown).unwrap();
    let root = root(&state.hashes());
    let message = [&[0, 1][..], &state.timestamp.to_be_bytes(), &size.to_be_bytes(), &root].concat();
    let other = new_key();
    let mut signer =
        Signer::new(MessageDigest::sha256(), if state.wrong_key { &other } else { key }).unwrap();
    let signature = signer.sign_oneshot_to_vec(&message).unwrap();
    [&[4, 3][..], &u16::try_from(signature.len()).unwrap().to_be_bytes(), &signature].concat()
}

fn base64s(hashes: &[Hash]) -> Vec<String> {
    hashes.iter().map(|h| BASE64.encode(h)).collect()
}

fn number(target: &str, name: &str) -> usize {
    let rest = target.split_once(&format!("{name}=")).unwrap().1;
    rest.split('&').next().unwrap().parse().unwrap()
}

fn rfc6962(state: &State, key: &PKey<Private>, target: &str) -> Reply {
    let all = state.hashes();
    let (what, _) = target.strip_prefix("/ct/v1/").unwrap_or("").split_once('?').unwrap_or((target, ""));
    let json = match what {
        "/ct/v1/get-sth" => serde_json::json!({
            "tree_size": state.shown,
            "timestamp": state.timestamp,
            "sha256_root_hash": BASE64.encode(root(&all)),
            "tree_head_signature": BASE64.encode(signed(state, key)),
        }),
        "get-sth-consistency" => {
            let (first, second) = (number(target, "first"), number(target, "second"));
            let whole: Vec<Hash> = state.entries.iter().take(second).map(|e| leaf(&e.leaf)).collect();
            let mut proof = subproof(first, &whole, true);
            if state.wrong_proof {
                proof.iter_mut().take(1).for_each(|h| h[0] ^= 1);
            }
            serde_json::json!({"consistency": base64s(&proof)})
        }
        "get-entry-and-proof" => {
            let (index, size) = (number(target, "leaf_index"), number(target, "tree_size"));
            let given = state.given(index);
            serde_json::json!({
                "leaf_input": BASE64.encode(&given.leaf),
                "extra_data": "",
                "audit_path": base64s(&path(index, &all[..size])),
            })
        }
        "get-entries" => {
            let (start, end) = (number(target, "start"), number(target, "end"));
            // Logs give fewer than they are asked for.
            let numbers = start..=end.min(start + 60).min(state.shown - 1);
            let given = numbers.map(
                |n| serde_json::json!({"leaf_input": BASE64.encode(&state.given(n).leaf), "extra_data": ""}),
            );
            serde_json::json!({"entries": given.collect::<Vec<_>>()})
        }
        _ => return Reply::page(404, "Not Found"),
    };
    Reply::ok(serde_json::to_vec(&json).unwrap())
}

pub const ORIGIN: &str = "log.example/2027";

fn tile_number(text: &str) -> usize {
    text.split('/').fold(0, |n, part| n * 1000 + part.trim_start_matches('x').parse::<usize>().unwrap())
}

fn statics(state: &State, key: &PKey<Private>, target: &str) -> Reply {
    let log_id: Hash = Sha256::digest(key.public_key_to_der().unwrap()).into();
    if target == "/checkpoint" {
        let digest: Hash =
            Sha256::new().chain_update(ORIGIN).chain_update(b"\n\x05").chain_update(log_id).finalize().into();
        let body = [&digest[..4], &state.timestamp.to_be_bytes(), &signed(state, key)].concat();
        let root = BASE64.encode(root(&state.hashes()));
        let note =
            format!("{ORIGIN}\n{}\n{root}\n\n\u{2014} {ORIGIN} {}\n", state.shown, BASE64.encode(body));
        return Reply::ok(note);
    }
    let Some(rest) = target.strip_prefix("/tile/") else { return Reply::page(404, "Not Found") };
    let (level, rest) = rest.split_once('/').unwrap();
    let (index, width) = rest.split_once(".p/").map_or((rest, 256), |(n, w)| (n, w.parse().unwrap()));
    let index = tile_number(index);
    // What has become full is served full only.
    let level_number: u32 = level.parse().unwrap_or(0);
    let known = state.entries.len() / 256_usize.pow(level_number);
    if width < 256 && state.no_partial || index * 256 + width > known {
        return Reply::page(404, "Not Found");
    }
    let numbers = index * 256..index * 256 + width;
    if level != "data" {
        // Tiles outlive the tree that is shown.
        let all: Vec<Hash> = state.entries.iter().map(|e| leaf(&e.leaf)).collect();
        let span = 256_usize.pow(level_number);
        let hashes = numbers.map(|n| root(&all[n * span..(n + 1) * span]));
        let mut bytes = hashes.flatten().collect::<Vec<u8>>();
        if state.wrong_proof {
            bytes.iter_mut().take(1).for_each(|b| *b ^= 1);
        }
        return Reply::ok(bytes);
    }
    let mut tile = Vec::new();
    for n in numbers {
        let entry = state.given(n);
        tile.extend(&entry.leaf[2..]);
        if let Some(pre) = &entry.pre {
            tile.extend(sized(pre));
        }
        tile.extend([&[0, 32][..], &[9; 32]].concat());
    }
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(&tile).unwrap();
    Reply::ok(packer.finish().unwrap()).with("Content-Encoding", "gzip")
}

impl Log {
    pub async fn start(is_static: bool) -> Self {
        let (private, now) = (new_key(), dstack_ctmonitor::daemon::now());
        let key = private.public_key_to_der().unwrap();
        let state = State {
            entries: Vec::new(),
            shown: 0,
            timestamp: now * 1000,
            swapped: None,
            wrong_proof: false,
            wrong_key: false,
            no_partial: false,
        };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        let answer = if is_static { statics } else { rfc6962 };
        let handler: Handler = Arc::new(move |target| answer(&shared.lock().unwrap(), &private, target));
        Self { server: Server::start(handler).await, state, key }
    }

    /// Adds entries and shows the tree with them, a millisecond later.
    pub fn grow(&self, entries: impl IntoIterator<Item = Entry>) {
        self.change(|state| {
            state.entries.extend(entries);
            state.shown = state.entries.len();
            state.timestamp += 1;
        });
    }

    pub fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }
}
