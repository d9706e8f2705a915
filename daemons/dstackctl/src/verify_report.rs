// SPDX-License-Identifier: Apache-2.0
//! A verdict for people and for programs, with what only the command line compares.

use crate::measure::hex;
use crate::output::{Tone, Ui};
use crate::verify::difference;
use crate::verify_chain::Signature;
use comfy_table::Cell;
use dstack_core::compose::AppCompose;
use dstack_core::event_log::{Milestone, Trusted};
use dstack_core::ids::{ComposeHash, OsImageHash};
use dstack_core::measure::{Difference, Prediction};
use dstack_ra_tls::{Label, Roots, Verdict, VerifyError};
use serde::Deserialize;
use serde_json::{Value, json};

/// What the user expects.
#[derive(Debug, Default)]
pub struct Subject {
    /// Hash of the image that is expected, and what it measures.
    pub predicted: Option<(OsImageHash, Prediction)>,
    /// The reviewed app, and its hash.
    pub compose: Option<(ComposeHash, AppCompose)>,
    /// The expected key service, lower-case hex.
    pub kms: Option<String>,
    /// Whether the report data is compared with something.
    pub binds_report_data: bool,
    /// The signature of the certificate that brought the evidence.
    pub signature: Signature,
}

/// A rule that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which.
    pub rule: String,
    /// Why, in a sentence.
    pub reason: String,
}

/// Who gave the app its keys, as the measured event says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Provider {
    name: String,
    #[serde(default)]
    id: String,
}

/// A verdict and all that is compared with it.
#[derive(Debug)]
pub struct Report<'a> {
    realm: Label,
    verdict: Result<Verdict, VerifyError>,
    subject: &'a Subject,
    findings: Vec<Finding>,
    difference: Option<Difference>,
}

impl<'a> Report<'a> {
    /// Compares a verdict with what is expected.
    #[must_use]
    pub fn of(roots: &Roots, verdict: Result<Verdict, VerifyError>, subject: &'a Subject) -> Self {
        let mut report =
            Self { realm: roots.realm().clone(), verdict, subject, findings: Vec::new(), difference: None };
        match &report.verdict {
            Err(error) => report.findings = vec![finding("genuine", error.to_string())],
            Ok(verdict) => {
                report.findings = own_findings(verdict);
                report.findings.extend(compose_finding(verdict, subject));
                report.findings.extend(provider_finding(verdict, subject));
                report.difference = subject.predicted.as_ref().and_then(|(_, p)| difference(p, verdict));
                report.findings.extend(partial_findings(verdict, subject, report.difference.as_ref()));
            }
        }
        let refusal = subject.signature.refusal();
        report.findings.extend(refusal.map(|reason| finding("certificate", reason)));
        report
    }

    /// Whether every rule was met.
    #[must_use]
    pub const fn is_verified(&self) -> bool {
        self.findings.is_empty()
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let failures: Vec<Value> =
            self.findings.iter().map(|f| json!({"rule": f.rule, "reason": f.reason})).collect();
        let mut value = json!({
            "verified": self.is_verified(), "root": self.realm.to_string(),
            "simulated": self.realm.is_simulated(), "failures": failures,
        });
        if let (Ok(verdict), Some(object)) = (&self.verdict, value.as_object_mut()) {
            object.insert("tcb".into(), tcb_json(verdict));
            object.insert("measurements".into(), measurements_json(verdict));
            object.insert("report_data".into(), hex::encode(verdict.report_data).into());
            object.insert("report_data_compared".into(), self.subject.binds_report_data.into());
            object.insert("device_id".into(), hex::encode(verdict.device_id).into());
            object.insert("ppid".into(), hex::encode(&verdict.ppid).into());
            object.insert("boot".into(), verdict.boot.as_ref().map_or(Value::Null, boot_json));
            object.insert("image".into(), self.image_json(verdict));
            object.insert("key_provider_compared".into(), self.subject.kms.is_some().into());
            object.insert("compose_compared".into(), self.subject.compose.is_some().into());
            object.insert("upgrades".into(), self.upgrades().into());
            object.insert("env".into(), self.env().into());
            object.insert("exceptions".into(), verdict.exceptions.clone().into());
        }
        value
    }

    fn image_json(&self, verdict: &Verdict) -> Value {
        let difference = self
            .difference
            .as_ref()
            .map(|d| json!({"register": d.register, "event": d.event, "likely_cause": d.cause}));
        json!({"compared": self.image_words(verdict).0, "difference": difference})
    }

    /// For people.
    #[must_use]
    pub fn text(&self, ui: &Ui) -> String {
        let mut text = self.head(ui);
        if let Ok(verdict) = &self.verdict {
            text.push_str(&ui.table(&[], self.rows(verdict)));
        }
        for finding in &self.findings {
            let line = format!("{}: {}", finding.rule, finding.reason);
            text.push_str(&format!("{}\n", ui.paint(Tone::Bad, &line)));
        }
        if let Some(difference) = &self.difference {
            let at = difference.event.as_ref().map(|e| format!(", event {e}")).unwrap_or_default();
            text.push_str(&format!(
                "first difference from the image: {}{at}; likely cause: {}\n",
                difference.register, difference.cause
            ));
        }
        text
    }

    fn head(&self, ui: &Ui) -> String {
        let (word, tone) = if self.is_verified() { ("VERIFIED", Tone::Good) } else { ("REFUSED", Tone::Bad) };
        let word = ui.paint(tone, word);
        if self.realm.is_simulated() {
            let mark = format!("SIMULATED root={}: NOTHING IS PROTECTED, this is no TDX machine", self.realm);
            return format!("{}\n{word} as a simulation\n", ui.paint(Tone::Warning, &mark));
        }
        format!("root={}\n{word}\n", self.realm)
    }

    fn rows(&self, verdict: &Verdict) -> Vec<Vec<Cell>> {
        let mut rows = Vec::new();
        let mut row = |name: &str, value: String| rows.push(vec![Cell::new(name), Cell::new(value)]);
        let advisories =
            if verdict.advisories.is_empty() { "none".into() } else { verdict.advisories.join(", ") };
        row("TCB status", verdict.tcb_status.clone());
        row("advisories", advisories);
        row(
            "TCB evaluation",
            format!("{}, until {}", verdict.evaluation_number, date(verdict.collateral_expires)),
        );
        if let Some(boot) = &verdict.boot {
            self.boot_rows(boot, &mut row);
        }
        row("image", self.image_words(verdict).1);
        row("key provider", self.provider_words(verdict));
        row("trust", format!("upgrades={} env={}", self.upgrades(), self.env()));
        let bound =
            if self.subject.binds_report_data { "compared" } else { "not compared (--report-data, --nonce)" };
        row("report data", format!("{} {bound}", hex::encode(verdict.report_data)));
        if let Some(words) = self.subject.signature.words() {
            row("certificate", words.into());
        }
        row("device id", hex::encode(verdict.device_id));
        row("MRTD", hex(verdict.measurements.mr_td));
        for (index, value) in verdict.measurements.rtmr.iter().enumerate() {
            row(&format!("RTMR{index}"), hex(*value));
        }
        row("MRCONFIGID", hex(verdict.measurements.mr_config_id));
        verdict.exceptions.iter().for_each(|exception| row("exception", exception.clone()));
        rows
    }

    fn boot_rows(&self, boot: &Trusted, row: &mut impl FnMut(&str, String)) {
        let compared = if self.subject.compose.is_some() { "compared" } else { "not compared (--compose)" };
        let instance =
            boot.instance_id.map_or_else(|| "none: instances share all".into(), |id| id.to_string());
        row("app id", boot.app_id.to_string());
        row("compose hash", format!("{} {compared}", boot.compose_hash));
        row("instance id", instance);
        row("os image hash", boot.os_image_hash.to_string());
        row("boot", milestone(boot.milestone).into());
    }

    /// How far the image was compared: a word for programs, and words for people.
    fn image_words(&self, verdict: &Verdict) -> (&'static str, String) {
        match &self.subject.predicted {
            _ if verdict.image_compared => ("all", "MRTD and RTMR0 to RTMR2 compared".into()),
            Some(_) => ("partly", "compared but for RTMR0, which is recorded and not recomputed".into()),
            None => ("none", "only recorded, not compared (--image, --policy)".into()),
        }
    }

    fn provider_words(&self, verdict: &Verdict) -> String {
        let compared =
            if self.subject.kms.is_some() { "compared" } else { "key provider not compared (--kms)" };
        match provider(verdict) {
            Some(Provider { name, id }) if id.is_empty() => format!("{name}; {compared}"),
            Some(Provider { name, id }) => format!("{name} {id}; {compared}"),
            None => "not known yet".into(),
        }
    }

    /// Who may replace the app (trust rule T8).
    fn upgrades(&self) -> &'static str {
        match &self.subject.compose {
            Some((_, compose)) if compose.upgrade_keys.is_empty() => "operator",
            Some(_) => "owner",
            None => "unknown",
        }
    }

    /// Whether its secrets have a sender (trust rule T9).
    fn env(&self) -> &'static str {
        match &self.subject.compose {
            Some((_, compose)) if compose.env_signer.is_some() => "signed",
            Some(_) => "unauthenticated",
            None => "unknown",
        }
    }
}

fn finding(rule: &str, reason: impl Into<String>) -> Finding {
    Finding { rule: rule.into(), reason: reason.into() }
}

fn own_findings(verdict: &Verdict) -> Vec<Finding> {
    let rule = |f: &dstack_ra_tls::Failure| json!(f.rule).as_str().unwrap_or("rule").to_owned();
    verdict.failures.iter().map(|f| Finding { rule: rule(f), reason: f.reason.clone() }).collect()
}

fn compose_finding(verdict: &Verdict, subject: &Subject) -> Option<Finding> {
    let (expected, _) = subject.compose.as_ref()?;
    let measured = verdict.boot.as_ref()?.compose_hash;
    (measured != *expected).then(|| {
        finding("compose", format!("the app that runs is {measured}, the reviewed one is {expected}"))
    })
}

/// Trust rule T3: the app trusts the key service whose key is measured, not the one that answered.
fn provider_finding(verdict: &Verdict, subject: &Subject) -> Option<Finding> {
    let expected = subject.kms.as_ref()?;
    let found = provider(verdict);
    let is_it = found.as_ref().is_some_and(|p| p.name == "kms" && p.id == *expected);
    let found = found.map_or_else(|| "none yet".to_owned(), |p| format!("{} {}", p.name, p.id));
    (!is_it)
        .then(|| finding("key-provider", format!("the key provider is {found}, expected is kms {expected}")))
}

/// What the verifier cannot compare when RTMR0 is not predicted.
fn partial_findings(verdict: &Verdict, subject: &Subject, difference: Option<&Difference>) -> Vec<Finding> {
    let Some((hash, _)) = subject.predicted.as_ref().filter(|_| !verdict.image_compared) else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    if let Some(boot) = verdict.boot.as_ref().filter(|boot| boot.os_image_hash != *hash) {
        findings.push(finding("image", format!("the image is {}, expected is {hash}", boot.os_image_hash)));
    }
    if let Some(difference) = difference {
        findings.push(finding("image", format!("{} is not that of image {hash}", difference.register)));
    }
    findings
}

/// The key provider that was measured; its words come from the guest, so only plain ones count.
fn provider(verdict: &Verdict) -> Option<Provider> {
    let json = verdict.boot.as_ref()?.key_provider.as_ref()?;
    let provider: Provider = serde_json::from_slice(json).ok()?;
    let is_plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    (is_plain(&provider.name) && is_plain(&provider.id)).then_some(provider)
}

const fn milestone(milestone: Milestone) -> &'static str {
    match milestone {
        Milestone::KeysWanted => "waiting for its keys",
        Milestone::Ready => "complete",
    }
}

fn date(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
    time.map_or_else(|| seconds.to_string(), |time| time.to_string())
}

fn tcb_json(verdict: &Verdict) -> Value {
    json!({
        "status": verdict.tcb_status, "advisories": verdict.advisories,
        "evaluation_number": verdict.evaluation_number, "collateral_expires": verdict.collateral_expires,
        "not_earlier_than": verdict.not_earlier_than,
    })
}

fn measurements_json(verdict: &Verdict) -> Value {
    let m = &verdict.measurements;
    let [rtmr0, rtmr1, rtmr2, rtmr3] = m.rtmr.map(hex);
    json!({
        "mrtd": hex(m.mr_td), "rtmr0": rtmr0, "rtmr1": rtmr1, "rtmr2": rtmr2, "rtmr3": rtmr3,
        "mr_config_id": hex(m.mr_config_id), "mr_owner": hex(m.mr_owner),
        "mr_owner_config": hex(m.mr_owner_config), "mr_aggregated": hex::encode(m.aggregated()),
    })
}

fn boot_json(boot: &Trusted) -> Value {
    let provider = boot.key_provider.as_ref().map(|json| String::from_utf8_lossy(json).into_owned());
    json!({
        "complete": boot.milestone == Milestone::Ready, "app_id": boot.app_id.to_string(),
        "compose_hash": boot.compose_hash.to_string(),
        "instance_id": boot.instance_id.map(|id| id.to_string()),
        "os_image_hash": boot.os_image_hash.to_string(),
        "host_inputs": hex::encode(boot.host_inputs), "key_provider": provider,
    })
}
