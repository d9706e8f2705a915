// SPDX-License-Identifier: Apache-2.0
//! Evidence that was changed by one byte, and collateral that says something else under a good signature.

use super::*;
use crate::certificate::{self, AttestedKey, report_data};
use dcap_qvl::QuoteCollateralV3;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};
use std::time::{Duration as StdDuration, UNIX_EPOCH};

/// Header, report, and where the signature's data begins.
const SIGNED: usize = 48 + 584;

struct Good {
    case: Case,
    quote: Vec<u8>,
    log: Vec<u8>,
    collateral: Collateral,
    verdict: Verdict,
}

static GOOD: LazyLock<Good> = LazyLock::new(|| {
    let case = Case::good();
    let (quote, log) = (ROOT.quote(&case.report), serde_json::to_vec(&case.events).unwrap());
    let (collateral, verdict) = (case.collateral(), case.verify().unwrap());
    Good { case, quote, log, collateral, verdict }
});

fn judge(quote: &[u8], log: &[u8], collateral: &Collateral) -> Result<Verdict, VerifyError> {
    let case = &GOOD.case;
    let evidence = Evidence { quote, event_log: log, collateral };
    verify(&evidence, &case.roots, &case.policy, &case.expect, case.at)
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut other = bytes.to_vec();
    other[at] ^= 1;
    other
}

/// Refused, with a reason.
fn is_refused(result: &Result<Verdict, VerifyError>) -> bool {
    match result {
        Err(VerifyError::NotGenuine { reason, .. }) => !reason.is_empty(),
        Err(_) => true,
        Ok(verdict) => !verdict.passed() && !verdict.reasons().is_empty(),
    }
}

/// Refused, or a byte that says nothing, such as a line end: then the verdict is the same in all it says.
fn is_refused_or_the_same(result: &Result<Verdict, VerifyError>) -> bool {
    is_refused(result) || result.as_ref().is_ok_and(|verdict| *verdict == GOOD.verdict)
}

/// The parts of collateral, by name.
fn parts(collateral: &mut QuoteCollateralV3) -> [(&'static str, Part<'_>); 9] {
    [
        ("tcb_info", Part::Text(&mut collateral.tcb_info)),
        ("tcb_info_signature", Part::Bytes(&mut collateral.tcb_info_signature)),
        ("qe_identity", Part::Text(&mut collateral.qe_identity)),
        ("qe_identity_signature", Part::Bytes(&mut collateral.qe_identity_signature)),
        ("root_ca_crl", Part::Bytes(&mut collateral.root_ca_crl)),
        ("pck_crl", Part::Bytes(&mut collateral.pck_crl)),
        ("tcb_info_issuer_chain", Part::Text(&mut collateral.tcb_info_issuer_chain)),
        ("qe_identity_issuer_chain", Part::Text(&mut collateral.qe_identity_issuer_chain)),
        ("pck_crl_issuer_chain", Part::Text(&mut collateral.pck_crl_issuer_chain)),
    ]
}

enum Part<'a> {
    Text(&'a mut String),
    Bytes(&'a mut Vec<u8>),
}

impl Part<'_> {
    /// Flips one byte; ASCII stays ASCII.
    fn flip(self, index: Index) {
        let at = |length: usize| index.index(length);
        match self {
            Part::Text(text) => {
                let at = at(text.len());
                *text = String::from_utf8(flipped(text.as_bytes(), at)).unwrap();
            }
            Part::Bytes(bytes) => *bytes = flipped(bytes, at(bytes.len())),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 0, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn p09_no_byte_of_the_quote_can_be_changed(index in any::<Index>()) {
        let at = index.index(GOOD.quote.len());
        let result = judge(&flipped(&GOOD.quote, at), &GOOD.log, &GOOD.collateral);
        prop_assert!(is_refused_or_the_same(&result), "byte {at}: {result:?}");
        prop_assert!(at >= SIGNED || is_refused(&result), "byte {at} is signed: {result:?}");
    }

    #[test]
    fn p11_no_byte_of_the_log_can_be_changed(index in any::<Index>()) {
        let at = index.index(GOOD.log.len());
        let result = judge(&GOOD.quote, &flipped(&GOOD.log, at), &GOOD.collateral);
        prop_assert!(is_refused_or_the_same(&result), "byte {at}: {result:?}");
        prop_assert!(result.is_ok(), "a log that is changed does not make the quote a forgery");
    }

    #[test]
    fn p09_no_byte_of_the_collateral_can_be_changed(part in 0_usize..9, index in any::<Index>()) {
        let mut collateral = GOOD.collateral.clone();
        let (name, part) = parts(&mut collateral.0).into_iter().nth(part).unwrap();
        part.flip(index);
        let result = judge(&GOOD.quote, &GOOD.log, &collateral);
        prop_assert!(is_refused_or_the_same(&result), "{name} at {index:?}: {result:?}");
        let is_chain = name.ends_with("chain");
        prop_assert!(is_chain || is_refused(&result), "{name} at {index:?} is signed: {result:?}");
    }

    #[test]
    fn p23_no_byte_of_a_certificate_moves_its_evidence_to_another_key(index in any::<Index>()) {
        let at = index.index(CERTIFIED.len());
        let Ok(claims) = certificate::parse(&flipped(&CERTIFIED, at)) else { return Ok(()) };
        let good = certificate::parse(&CERTIFIED).unwrap();
        if (&claims.public_key, &claims.quote, &claims.event_log)
            == (&good.public_key, &good.quote, &good.event_log)
        {
            return Ok(());
        }
        let (quote, log) = (claims.quote.unwrap_or_default(), claims.event_log.unwrap_or_default());
        let expect = Expect { report_data: Some(report_data(&claims.public_key)), milestone: None };
        let evidence = Evidence { quote: &quote, event_log: &log, collateral: &GOOD.collateral };
        let result = verify(&evidence, &GOOD.case.roots, &GOOD.case.policy, &expect, GOOD.case.at);
        let same = result.as_ref().is_ok_and(|v| v.passed() && v.events == GOOD.verdict.events);
        prop_assert!(is_refused(&result) || same, "byte {at}: {result:?}");
    }
}

/// A certificate whose evidence is good.
static CERTIFIED: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let key = AttestedKey::generate().unwrap();
    let mut report = GOOD.case.report.clone();
    report.report_data = report_data(&key.public_key());
    let (quote, hour) = (ROOT.quote(&report), StdDuration::from_secs(3600));
    key.self_signed("app", &quote, &GOOD.log, UNIX_EPOCH + StdDuration::from_secs(NOW), hour).unwrap()
});

/// The verdict over good evidence by collateral that was changed before it was signed.
fn by_changed(change: impl FnOnce(&mut Value, &mut Value)) -> Result<Verdict, VerifyError> {
    let collateral = ROOT.collateral_of(&Claims::up_to_date(now()), change).unwrap();
    let collateral = Collateral::parse(&serde_json::to_vec(&collateral).unwrap()).unwrap();
    judge(&GOOD.quote, &GOOD.log, &collateral)
}

#[test]
fn p09_every_field_of_the_enclaves_identity_is_compared() {
    assert!(by_changed(|_, _| ()).unwrap().passed());
    let fields = [
        ("/id", json!("QE")),
        ("/version", json!(1)),
        ("/issueDate", json!("2030-01-01T00:00:00Z")),
        ("/nextUpdate", json!("2020-01-01T00:00:00Z")),
        ("/miscselect", json!("01000000")),
        ("/attributes", json!("01".repeat(16))),
        ("/mrsigner", json!("45".repeat(32))),
        ("/isvprodid", json!(3)),
        ("/tcbLevels/0/tcb/isvsvn", json!(5)),
        ("/tcbLevels/0/tcbStatus", json!("Revoked")),
        ("/tcbLevels/0/tcbStatus", json!("OutOfDate")),
        ("/tcbLevels", json!([])),
    ];
    for (field, value) in fields {
        let result = by_changed(|_, qe| *qe.pointer_mut(field).unwrap() = value.clone());
        assert!(is_refused(&result), "{field} = {value}: {result:?}");
    }
}

#[test]
fn p09_every_field_of_the_tcb_information_is_compared() {
    let fields = [
        ("/id", json!("SGX")),
        ("/version", json!(2)),
        ("/issueDate", json!("2030-01-01T00:00:00Z")),
        ("/nextUpdate", json!("2020-01-01T00:00:00Z")),
        ("/fmspc", json!("000000000000")),
        ("/pceId", json!("0001")),
        ("/tdxModuleIdentities/0/mrsigner", json!("01".repeat(48))),
        ("/tdxModuleIdentities/0/id", json!("TDX_02")),
        ("/tdxModuleIdentities/0/tcbLevels/0/tcb/isvsvn", json!(6)),
        ("/tdxModuleIdentities/0/tcbLevels/0/tcbStatus", json!("Revoked")),
        ("/tcbLevels/0/tcb/pcesvn", json!(12)),
        ("/tcbLevels/0/tcb/sgxtcbcomponents/3/svn", json!(2)),
        ("/tcbLevels/0/tcb/tdxtcbcomponents/2/svn", json!(8)),
        ("/tcbLevels/0/tcbStatus", json!("Revoked")),
        ("/tcbLevels", json!([])),
    ];
    for (field, value) in fields {
        let result = by_changed(|tcb, _| *tcb.pointer_mut(field).unwrap() = value.clone());
        assert!(is_refused(&result), "{field} = {value}: {result:?}");
    }
}

#[test]
fn what_failed_is_said() {
    let said = |quote: &[u8], collateral: &Collateral| match judge(quote, &GOOD.log, collateral) {
        Err(VerifyError::NotGenuine { reason, .. }) => reason.to_lowercase(),
        other => panic!("{other:?}"),
    };
    let with = |change: fn(&mut QuoteCollateralV3)| {
        let mut collateral = GOOD.collateral.clone();
        change(&mut collateral.0);
        collateral
    };
    let cases = [
        (said(&flipped(&GOOD.quote, 100), &GOOD.collateral), "signature"),
        (said(&flipped(&GOOD.quote, SIGNED + 10), &GOOD.collateral), "signature"),
        (said(&GOOD.quote, &with(|c| c.tcb_info_signature[5] ^= 1)), "tcb"),
        (said(&GOOD.quote, &with(|c| c.qe_identity_signature[5] ^= 1)), "qe"),
        (said(&GOOD.quote, &with(|c| c.root_ca_crl[90] ^= 1)), "crl"),
    ];
    for (reason, word) in cases {
        assert!(reason.contains(word), "{word:?} is not in {reason:?}");
    }
}

/// The library that the verifier comes with is the measure of the one that is used.
#[test]
fn both_libraries_judge_signatures_alike() {
    let root = GOOD.case.roots.root.der.clone().unwrap();
    let agree = |quote: &[u8]| {
        let portable = QuoteVerifier::new(root.clone());
        let ours = QuoteVerifier::new(root.clone()).with_config::<crate::crypto::AwsLc>();
        let (at, collateral) = (GOOD.case.at, &GOOD.collateral.0);
        let good = portable.verify(quote, collateral, at).is_ok();
        assert_eq!(ours.verify(quote, collateral, at).is_ok(), good);
        good
    };
    assert!(agree(&GOOD.quote));
    // All signatures, keys and certificates of a quote are behind what is signed.
    let changed = (SIGNED..GOOD.quote.len()).step_by(101);
    let refused = changed.filter(|at| !agree(&flipped(&GOOD.quote, *at))).count();
    assert!(refused > 20, "{refused}");
    // The other of the two signatures that ECDSA has for a message.
    assert!(agree(&with_other_s(&GOOD.quote)));
}

/// The quote's signature (r, s) as (r, n - s).
fn with_other_s(quote: &[u8]) -> Vec<u8> {
    const N: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa,
        0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];
    let mut other = quote.to_vec();
    let at = SIGNED + 4 + 32;
    let mut borrow = 0;
    for index in (0..32).rev() {
        let digit = i16::from(N[index]) - i16::from(quote[at + index]) - borrow;
        borrow = i16::from(digit < 0);
        other[at + index] = u8::try_from(digit + 256 * borrow).unwrap();
    }
    other
}
