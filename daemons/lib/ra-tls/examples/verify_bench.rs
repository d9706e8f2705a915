// SPDX-License-Identifier: Apache-2.0
//! Verifications per second on one core, ours and plain dcap-qvl's, of the same quote in the same run:
//! `cargo run --release -p dstack-ra-tls --example verify_bench [SECONDS]`.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use dcap_qvl::QuoteCollateralV3;
use dcap_qvl::verify::QuoteVerifier;
use dstack_core::event_log::{self, Event, TRUSTED};
use dstack_core::ids::ComposeHash;
use dstack_core::spec::mr_config_id;
use dstack_quote_sim::collateral::Claims;
use dstack_quote_sim::pki::{self, TestRoot};
use dstack_quote_sim::quote::TdReport;
use dstack_ra_tls::evidence::Collateral;
use dstack_ra_tls::{Evidence, Expect, Policy, Roots, verify};
use std::time::{Duration, Instant};
use time::OffsetDateTime;

/// A good quote with the log behind it.
fn evidence(root: &TestRoot) -> (Vec<u8>, Vec<u8>) {
    let compose = ComposeHash::of(b"{}");
    let app = compose.app_id();
    let payloads: [&[u8]; 10] =
        [b"", app.as_bytes(), compose.as_bytes(), &[3; 20], b"", &[5; 32], &[6; 32], b"{}", b"ext4", b""];
    let events: Vec<Event> =
        TRUSTED.iter().zip(payloads).map(|(n, p)| Event::runtime(n, p).unwrap()).collect();
    let [.., rtmr3] = event_log::replay(&events).unwrap();
    let mut report = TdReport { rtmr: [[0; 48], [0; 48], [0; 48], rtmr3], ..TdReport::default() };
    report.mr_config_id.copy_from_slice(&hex::decode(mr_config_id(&compose)).unwrap());
    (root.quote(&report), serde_json::to_vec(&events).unwrap())
}

/// Adds to the runs and time of one contender.
fn measure(total: &mut (u32, Duration), work: impl Fn()) {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(250) {
        work();
        total.0 += 1;
    }
    total.1 += begin.elapsed();
}

fn main() {
    let seconds = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(10_u32);
    let now = OffsetDateTime::now_utc();
    let root = TestRoot::load(&pki::generate(now).unwrap()).unwrap();
    let json = serde_json::to_vec(&root.collateral(&Claims::up_to_date(now)).unwrap()).unwrap();
    let (quote, log) = evidence(&root);
    let at = u64::try_from(now.unix_timestamp()).unwrap();
    let collateral = Collateral::parse(&json).unwrap();
    let roots = Roots::test(root.certificate().to_vec());
    let (policy, expect) = (Policy::default(), Expect::default());
    let ours = || {
        let evidence = Evidence { quote: &quote, event_log: &log, collateral: &collateral };
        assert!(verify(&evidence, &roots, &policy, &expect, at).unwrap().passed());
    };
    let raw: QuoteCollateralV3 = serde_json::from_slice(&json).unwrap();
    let plain = || {
        let verifier = QuoteVerifier::new(root.certificate().to_vec());
        verifier.verify(&quote, &raw, at).unwrap();
    };
    let (mut a, mut b) = ((0, Duration::ZERO), (0, Duration::ZERO));
    for _ in 0..seconds * 2 {
        measure(&mut a, ours);
        measure(&mut b, plain);
    }
    let rate = |(count, time): (u32, Duration)| f64::from(count) / time.as_secs_f64();
    println!("ours      {:8.1} verifications/s", rate(a));
    println!("dcap-qvl  {:8.1} verifications/s", rate(b));
    println!("ratio     {:8.3}", rate(a) / rate(b));
}
