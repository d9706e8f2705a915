// SPDX-License-Identifier: Apache-2.0
//! Makes `daemons/fuzz/samples` anew: evidence that passes under a test root which nobody has the keys of afterwards.
//!
//! `cargo run -p dstack-ra-tls --example fuzz-samples -- daemons/fuzz/samples`, when the grammar of the event log has
//! changed. The files are in the tree, so that a failing input can be repeated.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use dstack_core::event_log::{self, Event, TRUSTED};
use dstack_core::ids::ComposeHash;
use dstack_core::spec::mr_config_id;
use dstack_quote_sim::collateral::Claims;
use dstack_quote_sim::pki::{self, TestRoot};
use dstack_quote_sim::quote::TdReport;
use dstack_ra_tls::certificate::{
    AttestedKey, Custody, OID_APP_ID, OID_USAGE, Usage, extension, realm_extensions, report_data,
};
use dstack_ra_tls::roots::Label;
use rcgen::{CertificateParams, KeyPair};
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};
use time::OffsetDateTime;

/// When the samples are valid, as in `dstack_fuzz::evidence`.
const NOW: u64 = 1_800_000_000;

fn main() {
    let directory = PathBuf::from(std::env::args_os().nth(1).expect("name the directory"));
    let write = |name: &str, bytes: &[u8]| std::fs::write(directory.join(name), bytes).unwrap();
    let now = OffsetDateTime::from_unix_timestamp(NOW.cast_signed()).unwrap();
    let root = TestRoot::load(&pki::generate(now).unwrap()).unwrap();
    let key = AttestedKey::generate().unwrap();
    let log = events();
    let mut report =
        TdReport { mr_td: [1; 48], report_data: report_data(&key.public_key()), ..TdReport::default() };
    report.rtmr = [[10; 48], [11; 48], [12; 48], event_log::replay(&log).unwrap()[3]];
    report.mr_config_id.copy_from_slice(&hex::decode(mr_config_id(&ComposeHash::of(b"{}"))).unwrap());
    let (quote, log) = (root.quote(&report), serde_json::to_vec(&log).unwrap());
    let collateral = root.collateral(&Claims::up_to_date(now)).unwrap();
    let (at, day) = (UNIX_EPOCH + Duration::from_secs(NOW), Duration::from_secs(86_400));
    write("root.der", root.certificate());
    write("quote.bin", &quote);
    write("event_log.json", &log);
    write("collateral.json", &serde_json::to_vec(&collateral).unwrap());
    write("certificate.der", &key.self_signed("app", &quote, &log, at, day).unwrap());
    write("claims.der", &claims());
}

fn events() -> Vec<Event> {
    let compose = ComposeHash::of(b"{}");
    let app = compose.app_id();
    let payloads: [&[u8]; 10] =
        [b"", app.as_bytes(), compose.as_bytes(), &[3; 20], b"", &[5; 32], &[6; 32], b"{}", b"ext4", b""];
    TRUSTED.iter().zip(payloads).map(|(name, payload)| Event::runtime(name, payload).unwrap()).collect()
}

/// A certificate with the extensions that have no evidence in them.
fn claims() -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.custom_extensions =
        vec![extension(&OID_APP_ID, &[1; 20]), extension(&OID_USAGE, Usage::AppCa.text().as_bytes())];
    params.custom_extensions.extend(realm_extensions(&Label::Intel, Custody::Cvm));
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}
