// SPDX-License-Identifier: Apache-2.0
//! Targets for what a peer presents about itself: quotes, collateral, certificates.

use dstack_core::event_log::LOG_MAX;
use dstack_ra_rpc::PlatformId;
use dstack_ra_tls::evidence::{Collateral, QUOTE_MAX};
use dstack_ra_tls::{Evidence, Expect, Policy, Roots, Verdict, VerifyError, certificate};
use std::sync::LazyLock;

const ROOT: &[u8] = include_bytes!("../samples/root.der");
const QUOTE: &[u8] = include_bytes!("../samples/quote.bin");
const LOG: &[u8] = include_bytes!("../samples/event_log.json");
const COLLATERAL: &[u8] = include_bytes!("../samples/collateral.json");
const CERTIFICATE: &[u8] = include_bytes!("../samples/certificate.der");
const CLAIMS: &[u8] = include_bytes!("../samples/claims.der");
/// When the samples are valid, as in `ra-tls/examples/fuzz-samples.rs`.
const NOW: u64 = 1_800_000_000;

/// The verdict over the samples as they are.
static GOOD: LazyLock<Option<Verdict>> =
    LazyLock::new(|| Collateral::parse(COLLATERAL).ok().and_then(|good| judge(QUOTE, LOG, &good).ok()));

fn judge(quote: &[u8], event_log: &[u8], collateral: &Collateral) -> Result<Verdict, VerifyError> {
    let evidence = Evidence { quote, event_log, collateral };
    dstack_ra_tls::verify(&evidence, &Roots::test(ROOT.to_vec()), &Policy::default(), &Expect::default(), NOW)
}

/// A quote is read before it is verified, to look for collateral of its platform.
pub fn quote(bytes: &[u8]) {
    if let Ok(platform) = PlatformId::of(bytes) {
        assert!(bytes.len() <= QUOTE_MAX && platform.to_string().len() == 12, "{platform}");
    }
}

pub(crate) fn quote_samples() -> Vec<Vec<u8>> {
    vec![QUOTE.to_vec()]
}

/// The input is a quote, a log and collateral, each after its length (4 bytes, little endian). Whatever has a verdict
/// says what the root signed, and whatever passes has the boot that was measured.
pub fn evidence(bytes: &[u8]) {
    let (quote, rest) = part(bytes);
    let (log, rest) = part(rest);
    let (collateral, _) = part(rest);
    let (Ok(collateral), Some(good)) = (Collateral::parse(collateral), &*GOOD) else { return };
    let Ok(verdict) = judge(quote, log, &collateral) else { return };
    assert_eq!(verdict.measurements, good.measurements, "a signature over other registers");
    assert_eq!(verdict.report_data, good.report_data, "a signature over other report data");
    assert_eq!((&verdict.tcb_status, &verdict.ppid), (&good.tcb_status, &good.ppid), "another platform");
    if verdict.passed() {
        assert_eq!(verdict.boot, good.boot, "another boot");
    } else {
        assert!(!verdict.reasons().is_empty(), "refused without a reason");
    }
}

fn part(bytes: &[u8]) -> (&[u8], &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return (bytes, &[]) };
    let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
    rest.split_at_checked(length).unwrap_or((rest, &[]))
}

pub(crate) fn evidence_samples() -> Vec<Vec<u8>> {
    let length = |part: &[u8]| u32::try_from(part.len()).unwrap_or(0).to_le_bytes();
    let parts = [QUOTE, LOG, COLLATERAL];
    vec![parts.iter().flat_map(|part| [&length(part)[..], part].concat()).collect()]
}

/// Collateral that parses has a number to compare, whatever its texts are.
pub fn collateral(bytes: &[u8]) {
    if let Ok(collateral) = Collateral::parse(bytes) {
        assert_eq!(collateral.clone().evaluation_number(), collateral.evaluation_number(), "one number");
    }
}

pub(crate) fn collateral_samples() -> Vec<Vec<u8>> {
    vec![COLLATERAL.to_vec()]
}

/// The parts of a certificate that parses are within their limits, and realm and custody have one text each.
pub fn certificate(bytes: &[u8]) {
    let Ok(claims) = certificate::parse(bytes) else { return };
    let within = |part: &Option<Vec<u8>>, max: usize| part.as_ref().is_none_or(|p| p.len() <= max);
    assert!(within(&claims.quote, QUOTE_MAX) && within(&claims.event_log, LOG_MAX), "a part over its limit");
    assert!(!claims.public_key.is_empty(), "a certificate without a key");
    if let Some(realm) = &claims.realm {
        assert_eq!(realm.to_string().parse().as_ref(), Ok(realm), "one text");
    }
    if let Some(custody) = claims.custody {
        assert_eq!(certificate::Custody::from_text(custody.text()), Some(custody), "one text");
    }
}

pub(crate) fn certificate_samples() -> Vec<Vec<u8>> {
    vec![CERTIFICATE.to_vec(), CLAIMS.to_vec()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_pass() {
        let good = GOOD.as_ref().unwrap();
        assert!(good.passed(), "make the samples anew, ra-tls/examples/fuzz-samples.rs: {}", good.reasons());
        let sample = evidence_samples().remove(0);
        let (quote, rest) = part(&sample);
        let (log, rest) = part(rest);
        assert_eq!((quote, log, part(rest).0), (QUOTE, LOG, COLLATERAL));
        assert!(PlatformId::of(QUOTE).is_ok());
        let attested = certificate::parse(CERTIFICATE).unwrap();
        assert_eq!(attested.quote.as_deref(), Some(QUOTE));
        let claims = certificate::parse(CLAIMS).unwrap();
        assert!(claims.app_id.is_some() && claims.usage.is_some() && claims.realm.is_some());
    }
}
