// SPDX-License-Identifier: Apache-2.0
//! Quotes of real machines, with the collateral of their day, from the sources of `dcap-qvl`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use dstack_ra_tls::evidence::Collateral;
use dstack_ra_tls::{Evidence, Expect, Label, Policy, Roots, Rule, Verdict, VerifyError, verify};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Noon of 2025-06-19, when the collateral was valid.
const JUNE_2025: u64 = 1_750_334_400;

/// Where cargo keeps the sources of the verifier that we build on.
fn samples() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--offline", "--locked"])
        // Crates for other systems need not be at hand.
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root)
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages.iter().find(|p| p["name"] == "dcap-qvl").unwrap();
    Path::new(package["manifest_path"].as_str().unwrap()).with_file_name("sample")
}

fn judge(name: &str, roots: &Roots, now: u64) -> Result<Verdict, VerifyError> {
    let read = |name: &str| std::fs::read(samples().join(name)).unwrap();
    let quote = read(name);
    let collateral = Collateral::parse(&read(&format!("{name}_collateral.json"))).unwrap();
    let evidence = Evidence { quote: &quote, event_log: b"[]", collateral: &collateral };
    verify(&evidence, roots, &Policy::default(), &Expect::default(), now)
}

#[test]
fn a_real_td_stands_under_intels_root_alone() {
    let verdict = judge("tdx_quote", &Roots::intel(), JUNE_2025).unwrap();
    assert_eq!((verdict.root.clone(), verdict.tcb_status.as_str()), (Label::Intel, "UpToDate"));
    // No log came with it, and nothing else is wrong: all that is found is about the log and what it would say.
    let rules: Vec<Rule> = verdict.failures.iter().map(|f| f.rule).collect();
    assert_eq!(rules, [Rule::Grammar], "{}", verdict.reasons());
    let other = Roots::test(b"no certificate".to_vec());
    assert!(matches!(judge("tdx_quote", &other, JUNE_2025), Err(VerifyError::NotGenuine { .. })));
}

#[test]
fn p10_a_quote_of_an_enclave_is_none_of_a_td() {
    assert_eq!(judge("sgx_quote", &Roots::intel(), JUNE_2025), Err(VerifyError::NotATd));
}

#[test]
fn collateral_of_a_day_is_not_for_another() {
    for (now, word) in [(JUNE_2025 + 365 * 86_400, "expired"), (JUNE_2025 - 365 * 86_400, "future")] {
        let Err(VerifyError::NotGenuine { reason, .. }) = judge("tdx_quote", &Roots::intel(), now) else {
            panic!("accepted at {now}");
        };
        assert!(reason.to_lowercase().contains(word), "{reason}");
    }
}
