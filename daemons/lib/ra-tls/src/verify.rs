// SPDX-License-Identifier: Apache-2.0
//! The steps of a verification. Nothing in the evidence is interpreted before the quote's signature is good.

use crate::crypto::AwsLc;
use crate::evidence::{Evidence, QUOTE_MAX};
use crate::policy::{Image, Policy};
use crate::roots::{Label, Roots};
use crate::verdict::{Measurements, Rule, Verdict};
use dcap_qvl::quote::{Report, TDReport10};
use dcap_qvl::verify::QuoteVerifier;
use dcap_qvl::{QuoteClaims, QuotePolicy};
use dstack_core::event_log::{self, LOG_MAX, Milestone, Trusted};
use dstack_core::spec::mr_config_id;
use sha2::{Digest as _, Sha256};

/// What the caller expects of the peer, beside the policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expect {
    /// Report data that binds a key or a nonce.
    pub report_data: Option<[u8; 64]>,
    /// How far the boot must have come; `None` accepts both.
    pub milestone: Option<Milestone>,
}

/// Why there is no verdict at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// A part of the evidence is over its limit.
    #[error("{0} is over its limit")]
    TooLarge(&'static str),
    /// The signature, a certificate, or the collateral is not good under the trusted root.
    #[error("the quote does not stand under root {root}: {reason}")]
    NotGenuine {
        /// The only root that was trusted.
        root: Label,
        /// What failed, from the quote to the root.
        reason: String,
    },
    /// A genuine quote of something that is not a TD.
    #[error("the quote is not one of a TD")]
    NotATd,
}

/// Verifies evidence at the time `now` (seconds since 1970).
///
/// # Errors
/// [`VerifyError`] when the quote is not genuine; every other finding is in the verdict's `failures`.
pub fn verify(
    evidence: &Evidence<'_>,
    roots: &Roots,
    policy: &Policy,
    expect: &Expect,
    now: u64,
) -> Result<Verdict, VerifyError> {
    let claims = genuine(evidence, roots, now)?;
    let mut verdict = describe(&claims, roots.realm())?;
    check_td(&mut verdict, &claims);
    check_platform(&mut verdict, &claims, policy, now);
    check_pce(&mut verdict, &claims, evidence);
    check_log(&mut verdict, evidence.event_log);
    check_boot(&mut verdict, expect);
    check_image(&mut verdict, policy);
    if expect.report_data.is_some_and(|wanted| wanted != verdict.report_data) {
        verdict.fail(Rule::ReportData, "the report data does not bind the key or nonce that was presented");
    }
    Ok(verdict)
}

/// Signature, certificates, revocation, TCB information: everything cryptographic.
fn genuine(evidence: &Evidence<'_>, roots: &Roots, now: u64) -> Result<QuoteClaims, VerifyError> {
    if evidence.quote.len() > QUOTE_MAX {
        return Err(VerifyError::TooLarge("quote"));
    }
    if evidence.event_log.len() > LOG_MAX {
        return Err(VerifyError::TooLarge("event log"));
    }
    let root = roots.realm().clone();
    let verifier = match &roots.root.der {
        Some(der) => QuoteVerifier::new(der.clone()),
        None => QuoteVerifier::new_prod(),
    };
    let verifier = verifier.with_config::<AwsLc>();
    // Debug and service TDs are rules of ours: a verdict names them, where an error would only say no.
    let verifier = verifier.allow_debug(true).allow_service_td(true);
    verifier
        .verify_with_policy(evidence.quote, &evidence.collateral.0, now, &QuotePolicy::claims_only(now))
        .map_err(|error| VerifyError::NotGenuine { root, reason: format!("{error:#}") })
}

fn describe(claims: &QuoteClaims, root: &Label) -> Result<Verdict, VerifyError> {
    let td = claims.report.as_td10().ok_or(VerifyError::NotATd)?;
    Ok(Verdict {
        root: root.clone(),
        tcb_status: claims.tcb.status.to_string(),
        advisories: claims.tcb.advisory_ids.clone(),
        evaluation_number: claims.tcb.eval_data_number,
        collateral_expires: claims.earliest_expiration_date,
        not_earlier_than: claims.latest_issue_date,
        measurements: measurements(td),
        report_data: td.report_data,
        device_id: Sha256::digest(claims.header.user_data).into(),
        ppid: claims.platform.pck.ppid.clone(),
        boot: None,
        events: Vec::new(),
        image_compared: false,
        grace_until: None,
        exceptions: Vec::new(),
        failures: Vec::new(),
    })
}

const fn measurements(td: &TDReport10) -> Measurements {
    Measurements {
        mr_td: td.mr_td,
        rtmr: [td.rt_mr0, td.rt_mr1, td.rt_mr2, td.rt_mr3],
        mr_config_id: td.mr_config_id,
        mr_owner: td.mr_owner,
        mr_owner_config: td.mr_owner_config,
    }
}

/// What every TD must be, whatever the policy says.
fn check_td(verdict: &mut Verdict, claims: &QuoteClaims) {
    let Some(td) = claims.report.as_td10() else { return };
    if td.td_attributes.first().is_some_and(|b| *b != 0) {
        verdict.fail(Rule::Debug, "the TD can be debugged: its host can read its memory");
    }
    if td.mr_signer_seam != [0; 48] {
        verdict.fail(Rule::Module, "the TDX module is not signed by Intel");
    }
    let service = match &claims.report {
        Report::TD15(td) => td.mr_service_td != [0; 48],
        Report::TD15Ex(td) => td.base.mr_service_td != [0; 48],
        _ => false,
    };
    if service {
        verdict.fail(Rule::ServiceTd, "a service TD is bound to the TD");
    }
}

fn check_platform(verdict: &mut Verdict, claims: &QuoteClaims, policy: &Policy, now: u64) {
    if !policy.tcb_statuses.contains(&verdict.tcb_status) {
        check_grace(verdict, claims, policy, now);
    }
    let refused: Vec<&String> =
        verdict.advisories.iter().filter(|a| policy.refused_advisories.contains(a)).collect();
    if let Some(advisory) = refused.first().map(ToString::to_string) {
        verdict.fail(Rule::Advisory, format!("the platform is subject to {advisory}"));
    }
    let number = verdict.evaluation_number;
    if number < policy.min_evaluation_number {
        let least = policy.min_evaluation_number;
        verdict.fail(Rule::Evaluation, format!("TCB evaluation {number} is older than {least}"));
    }
    if verdict.ppid.is_empty() {
        verdict.fail(Rule::Device, "the platform has no provisioning id");
    }
    if !policy.devices.is_empty() && !policy.devices.iter().any(|d| d.0 == verdict.device_id) {
        let device = hex::encode(verdict.device_id);
        verdict.fail(Rule::Device, format!("device {device} is not on the list"));
    }
}

/// The TCB information must be about the provisioning enclave that certified the platform (P09): the library compares
/// FMSPC alone.
fn check_pce(verdict: &mut Verdict, claims: &QuoteClaims, evidence: &Evidence<'_>) {
    let pce = hex::encode(&claims.platform.pck.pce_id);
    let about = evidence.collateral.pce_id();
    if !about.eq_ignore_ascii_case(&pce) {
        let reason =
            format!("the TCB information is about provisioning enclave {about:?}, the platform has {pce}");
        verdict.fail(Rule::TcbStatus, reason);
    }
}

/// Trust rule T22: an out-of-date platform passes for some days, if the policy says so, and the verdict tells.
fn check_grace(verdict: &mut Verdict, claims: &QuoteClaims, policy: &Policy, now: u64) {
    let end = claims.platform.tcb_date_tag.saturating_add(u64::from(policy.tcb_grace_days) * 86_400);
    if policy.tcb_grace_days > 0 && verdict.tcb_status == "OutOfDate" && now < end {
        verdict.grace_until = Some(end);
        verdict
            .exceptions
            .push(format!("TCB status OutOfDate passes by grace for {} more days", (end - now) / 86_400));
        return;
    }
    let advisories = verdict.advisories.join(", ");
    let reason =
        format!("TCB status is {}, allowed are {}", verdict.tcb_status, policy.tcb_statuses.join(", "));
    verdict.fail(
        Rule::TcbStatus,
        if advisories.is_empty() { reason } else { format!("{reason} ({advisories})") },
    );
}

/// Log well formed, digests recomputed, registers replayed.
fn check_log(verdict: &mut Verdict, log: &[u8]) {
    let events = match event_log::parse(log) {
        Ok(events) => events,
        Err(error) => return verdict.fail(Rule::EventLog, error.to_string()),
    };
    match event_log::replay(&events) {
        Ok(registers) => {
            for (index, (replayed, quoted)) in registers.iter().zip(verdict.measurements.rtmr).enumerate() {
                // Firmware events are optional in a log; RTMR3 is not.
                let logged = index == 3 || events.iter().any(|e| usize::try_from(e.imr) == Ok(index));
                if logged && *replayed != quoted {
                    verdict
                        .fail(Rule::Replay, format!("the event log does not give RTMR{index} of the quote"));
                }
            }
        }
        Err(error) => verdict.fail(Rule::EventLog, error.to_string()),
    }
    match Trusted::of(&events) {
        Ok(boot) => verdict.boot = Some(boot),
        Err(error) => verdict.fail(Rule::Grammar, error.to_string()),
    }
    verdict.events = events;
}

fn check_boot(verdict: &mut Verdict, expect: &Expect) {
    let Some(boot) = &verdict.boot else { return };
    let expected = mr_config_id(&boot.compose_hash);
    let late = expect.milestone.is_some_and(|wanted| wanted != boot.milestone);
    if hex::encode(verdict.measurements.mr_config_id) != expected {
        verdict.fail(
            Rule::ConfigId,
            "MRCONFIGID is not that of the compose hash: the host launched another app",
        );
    }
    if late {
        verdict.fail(Rule::Milestone, "the boot is not at the point at which this may be asked for");
    }
}

fn check_image(verdict: &mut Verdict, policy: &Policy) {
    let (Some(images), Some(boot)) = (&policy.images, &verdict.boot) else { return };
    verdict.image_compared = true;
    let hash = boot.os_image_hash;
    let Some(image) = images.iter().find(|i| i.os_image_hash == hash) else {
        return verdict.fail(Rule::Image, format!("image {hash} is not on the list"));
    };
    if image.is_dev && !policy.allow_dev {
        verdict.fail(Rule::Image, format!("image {hash} is a development image: people can log in"));
    }
    for register in differing(image, &verdict.measurements) {
        verdict.fail(Rule::Image, format!("{register} is not that of image {hash}"));
    }
}

/// Names of the registers that are not the image's.
fn differing(image: &Image, measured: &Measurements) -> Vec<&'static str> {
    let [rtmr0, rtmr1, rtmr2, _] = measured.rtmr;
    let equal = [
        ("MRTD", image.mr_td.0 == measured.mr_td),
        ("RTMR0", image.rtmr0.iter().any(|r| r.0 == rtmr0)),
        ("RTMR1", image.rtmr1.0 == rtmr1),
        ("RTMR2", image.rtmr2.0 == rtmr2),
    ];
    equal.into_iter().filter(|(_, same)| !same).map(|(name, _)| name).collect()
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
