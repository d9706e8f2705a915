// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use super::*;
use crate::evidence::Collateral;
use crate::policy::{DeviceId, Register};
use dstack_core::event_log::{Event, TRUSTED};
use dstack_core::ids::ComposeHash;
use dstack_quote_sim::collateral::Claims;
use dstack_quote_sim::pki::{self, TestRoot};
use dstack_quote_sim::quote::TdReport;
use std::sync::LazyLock;
use time::{Duration, OffsetDateTime};

const NOW: u64 = 1_800_000_000;

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(NOW.cast_signed()).unwrap()
}

static ROOT: LazyLock<TestRoot> = LazyLock::new(|| TestRoot::load(&pki::generate(now()).unwrap()).unwrap());

/// Evidence that passes, with parts to spoil.
struct Case {
    report: TdReport,
    events: Vec<Event>,
    claims: Claims,
    policy: Policy,
    expect: Expect,
    roots: Roots,
    at: u64,
}

impl Case {
    fn good() -> Self {
        let compose = ComposeHash::of(b"{}");
        let app = compose.app_id();
        let payloads: [&[u8]; 10] =
            [b"", app.as_bytes(), compose.as_bytes(), &[3; 20], b"", &[5; 32], &[6; 32], b"{}", b"ext4", b""];
        let events: Vec<Event> =
            TRUSTED.iter().zip(payloads).map(|(n, p)| Event::runtime(n, p).unwrap()).collect();
        let mut report = TdReport { mr_td: [1; 48], report_data: [9; 64], ..TdReport::default() };
        report.rtmr = [[10; 48], [11; 48], [12; 48], event_log::replay(&events).unwrap()[3]];
        report.mr_config_id.copy_from_slice(&hex::decode(mr_config_id(&compose)).unwrap());
        Self {
            report,
            events,
            claims: Claims::up_to_date(now()),
            policy: Policy::default(),
            expect: Expect::default(),
            roots: Roots::test(ROOT.certificate().to_vec()),
            at: NOW,
        }
    }

    fn collateral(&self) -> Collateral {
        let json = serde_json::to_vec(&ROOT.collateral(&self.claims).unwrap()).unwrap();
        Collateral::parse(&json).unwrap()
    }

    fn verify(&self) -> Result<Verdict, VerifyError> {
        self.verify_quote(&ROOT.quote(&self.report))
    }

    fn verify_quote(&self, quote: &[u8]) -> Result<Verdict, VerifyError> {
        let log = serde_json::to_vec(&self.events).unwrap();
        let evidence = Evidence { quote, event_log: &log, collateral: &self.collateral() };
        verify(&evidence, &self.roots, &self.policy, &self.expect, self.at)
    }

    fn rules(&self) -> Vec<Rule> {
        self.verify().unwrap().failures.into_iter().map(|f| f.rule).collect()
    }
}

fn image(case: &Case) -> Image {
    Image {
        os_image_hash: [5; 32].into(),
        is_dev: false,
        mr_td: Register(case.report.mr_td),
        rtmr0: vec![Register([99; 48]), Register(case.report.rtmr[0])],
        rtmr1: Register(case.report.rtmr[1]),
        rtmr2: Register(case.report.rtmr[2]),
    }
}

#[test]
fn good_evidence_passes_and_says_under_which_root() {
    let verdict = Case::good().verify().unwrap();
    assert!(verdict.passed(), "{}", verdict.reasons());
    assert_eq!(verdict.root.to_string(), format!("test:{}", ROOT.fingerprint()));
    assert_eq!(verdict.tcb_status, "UpToDate");
    assert_eq!(verdict.boot.unwrap().milestone, Milestone::Ready);
    assert!(!verdict.image_compared);
}

#[test]
fn t04_the_production_root_refuses_a_simulated_quote() {
    let mut case = Case::good();
    case.roots = Roots::intel();
    assert!(matches!(case.verify(), Err(VerifyError::NotGenuine { root: Label::Intel, .. })));
    let other = TestRoot::load(&pki::generate(now()).unwrap()).unwrap();
    case.roots = Roots::test(other.certificate().to_vec());
    assert!(matches!(case.verify(), Err(VerifyError::NotGenuine { .. })));
}

#[test]
fn p09_every_byte_of_the_quote_counts() {
    let case = Case::good();
    let quote = ROOT.quote(&case.report);
    let signed = 48 + 584;
    // Beyond the signed part lie signatures, keys and certificates; the PEM chain's line ends may differ without harm.
    let step = |from: usize, to: usize, by: usize| (from..to).step_by(by);
    for at in step(0, signed, 7).chain(step(signed + 4, signed + 4 + 64 + 64, 5)).chain(step(770, 1154, 11)) {
        let mut other = quote.clone();
        other[at] ^= 1;
        assert!(case.verify_quote(&other).is_err(), "byte {at}");
    }
    for end in [0, 1, 47, 48, 631, 632, 700, quote.len() - 1] {
        assert!(case.verify_quote(&quote[..end]).is_err(), "length {end}");
    }
}

#[test]
fn p15_limits_come_before_any_work() {
    let case = Case::good();
    assert_eq!(case.verify_quote(&vec![0; QUOTE_MAX + 1]), Err(VerifyError::TooLarge("quote")));
    let log = vec![b' '; LOG_MAX + 1];
    let evidence = Evidence { quote: &[], event_log: &log, collateral: &case.collateral() };
    let result = verify(&evidence, &case.roots, &case.policy, &case.expect, NOW);
    assert_eq!(result, Err(VerifyError::TooLarge("event log")));
}

#[test]
fn collateral_is_signed_and_expires() {
    let mut case = Case::good();
    case.at = NOW + 31 * 86_400;
    assert!(matches!(case.verify(), Err(VerifyError::NotGenuine { .. })));
    let case = Case::good();
    let mut collateral = case.collateral();
    collateral.0.tcb_info = collateral.0.tcb_info.replace("UpToDate", "OutOfDate");
    let log = serde_json::to_vec(&case.events).unwrap();
    let evidence = Evidence { quote: &ROOT.quote(&case.report), event_log: &log, collateral: &collateral };
    assert!(verify(&evidence, &case.roots, &case.policy, &case.expect, NOW).is_err());
}

#[test]
fn a_td_that_can_be_debugged_is_named() {
    let mut case = Case::good();
    case.report.attributes[0] = 1;
    assert_eq!(case.rules(), [Rule::Debug]);
}

#[test]
fn tcb_status_is_judged_not_only_shown() {
    for status in ["OutOfDate", "SWHardeningNeeded", "ConfigurationNeeded"] {
        let mut case = Case::good();
        case.claims.platform = status.into();
        case.claims.advisories = vec!["INTEL-SA-00001".into()];
        assert_eq!(case.rules(), [Rule::TcbStatus], "{status}");
        case.policy.tcb_statuses.push(status.into());
        assert!(case.rules().is_empty(), "{status}");
        case.policy.refused_advisories.push("INTEL-SA-00001".into());
        assert_eq!(case.rules(), [Rule::Advisory], "{status}");
    }
    let mut case = Case::good();
    case.claims.platform = "Revoked".into();
    assert!(case.verify().map_or(true, |v| !v.passed()));
}

#[test]
fn t22_grace_is_explicit_and_told() {
    let mut case = Case::good();
    case.claims.platform = "OutOfDate".into();
    case.claims.issued = now() - Duration::days(10);
    case.policy.tcb_grace_days = 9;
    assert_eq!(case.rules(), [Rule::TcbStatus]);
    case.policy.tcb_grace_days = 12;
    let verdict = case.verify().unwrap();
    assert!(verdict.passed() && verdict.exceptions[0].contains("grace"), "{:?}", verdict.exceptions);
}

#[test]
fn p19_devices_and_t12_evaluations() {
    let mut case = Case::good();
    case.policy.devices = vec![DeviceId([0; 32])];
    case.policy.min_evaluation_number = 18;
    assert_eq!(case.rules(), [Rule::Evaluation, Rule::Device]);
    case.policy.devices.push(DeviceId(case.verify().unwrap().device_id));
    case.claims.evaluation = 18;
    assert!(case.rules().is_empty());
}

#[test]
fn p11_a_forged_log_is_named() {
    let mut case = Case::good();
    case.events[1].event_payload = vec![0; 20];
    assert_eq!(case.rules(), [Rule::EventLog]);
    let mut case = Case::good();
    case.events[1] = Event::runtime("app-id", &[7; 20]).unwrap();
    assert_eq!(case.rules(), [Rule::Replay]);
    let mut case = Case::good();
    case.events.push(Event::runtime("extra", b"").unwrap());
    assert_eq!(case.rules(), [Rule::Replay]);
    let mut case = Case::good();
    case.events.truncate(9);
    case.report.rtmr[3] = event_log::replay(&case.events).unwrap()[3];
    assert_eq!(case.rules(), [Rule::Grammar]);
}

#[test]
fn t07_keys_are_asked_for_at_one_moment_only() {
    let mut case = Case::good();
    case.expect.milestone = Some(Milestone::KeysWanted);
    assert_eq!(case.rules(), [Rule::Milestone]);
    case.events.truncate(7);
    case.report.rtmr[3] = event_log::replay(&case.events).unwrap()[3];
    assert!(case.rules().is_empty());
    case.expect.milestone = Some(Milestone::Ready);
    assert_eq!(case.rules(), [Rule::Milestone]);
}

#[test]
fn p12_a_config_id_of_zero_or_of_another_app_is_refused() {
    for other in [[0; 48], [1; 48]] {
        let mut case = Case::good();
        case.report.mr_config_id = other;
        assert_eq!(case.rules(), [Rule::ConfigId]);
    }
}

#[test]
fn t02_all_four_registers_of_an_image_are_compared() {
    let mut case = Case::good();
    case.policy.images = Some(vec![image(&case)]);
    let verdict = case.verify().unwrap();
    assert!(verdict.passed() && verdict.image_compared, "{}", verdict.reasons());
    for spoil in 0..4 {
        let mut case = Case::good();
        case.policy.images = Some(vec![image(&case)]);
        if spoil == 3 {
            case.report.mr_td = [77; 48]
        } else {
            case.report.rtmr[spoil] = [77; 48]
        }
        assert_eq!(case.rules(), [Rule::Image], "{spoil}");
    }
    let mut case = Case::good();
    case.policy.images = Some(vec![Image { is_dev: true, ..image(&case) }]);
    assert_eq!(case.rules(), [Rule::Image]);
    case.policy.allow_dev = true;
    assert!(case.rules().is_empty());
    case.policy.images = Some(Vec::new());
    assert_eq!(case.rules(), [Rule::Image]);
}

#[test]
fn report_data_binds_what_the_caller_holds() {
    let mut case = Case::good();
    case.expect.report_data = Some([9; 64]);
    assert!(case.rules().is_empty());
    case.expect.report_data = Some([8; 64]);
    assert_eq!(case.rules(), [Rule::ReportData]);
}

#[path = "verify_changes_tests.rs"]
mod changes;
