// SPDX-License-Identifier: Apache-2.0
//! `verify`: judges evidence, and explains the verdict.

use crate::cli::Global;
use crate::errors::{Exit, Failure};
use crate::measure::{Image, here, read};
use crate::output::Ui;
use crate::verify_cli::{Compare, Expected, Trust, Verify};
use crate::verify_input::Sample;
use crate::verify_report::{Report, Subject};
use dstack_core::compose::AppCompose;
use dstack_core::ids::ComposeHash;
use dstack_core::limits::APP_COMPOSE_MAX;
use dstack_core::measure::{Difference, Platform, Prediction, Shape, explain};
use dstack_core::quote_sim_wire::SOCKET;
use dstack_ra_rpc::collateral::{Cache, Fetch, PlatformId, QuoteSim};
use dstack_ra_rpc::pccs::{INTEL, Pccs};
use dstack_ra_tls::certificate::report_data;
use dstack_ra_tls::evidence::{COLLATERAL_MAX, Collateral};
use dstack_ra_tls::policy::{self, Register};
use dstack_ra_tls::roots::{DIRECTORIES, ROOT_MAX};
use dstack_ra_tls::{Evidence, Expect, Policy, Roots, Verdict, VerifyError, verify};
use sha2::{Digest, Sha512};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Largest policy file, bytes.
const POLICY_MAX: usize = 1024 * 1024;

/// Carries out `verify`.
///
/// # Errors
/// [`Failure`] when there is no verdict because something cannot be read or fetched.
pub async fn run(args: &Verify, global: &Global, ui: &Ui) -> Result<ExitCode, Failure> {
    here(global, "verify")?;
    let sample = Sample::of(args).await?;
    let roots = roots(&args.trust)?;
    let case = Case::of(args, &roots, &sample)?;
    let verdict = case.judge(&sample, &roots, &args.trust).await?;
    let report = Report::of(&roots, verdict, &case.subject);
    if ui.json {
        ui.json(&report.json())?;
    } else {
        ui.text(&report.text(ui))?;
    }
    Ok(if report.is_verified() { ExitCode::SUCCESS } else { ExitCode::from(Exit::Refused as u8) })
}

/// The root that is trusted: the named one, or this machine's.
fn roots(trust: &Trust) -> Result<Roots, Failure> {
    if let Some(path) = &trust.root {
        let most = usize::try_from(ROOT_MAX).unwrap_or(usize::MAX);
        let text = String::from_utf8_lossy(&read(path, most)?).into_owned();
        return Roots::test_pem(&text).map_err(|e| Failure::new(format!("{}: {e}", path.display())));
    }
    if trust.realm.as_deref() == Some("intel") {
        return Ok(Roots::intel());
    }
    let roots = Roots::load(&DIRECTORIES).map_err(|e| Failure::new(e.to_string()))?;
    match &trust.realm {
        Some(realm) if *realm != roots.realm().to_string() => {
            Err(Failure::new(format!("this machine trusts {} and not {realm}", roots.realm()))
                .hint("name the root's certificate: --root FILE"))
        }
        _ => Ok(roots),
    }
}

/// What to judge by.
struct Case {
    policy: Policy,
    expect: Expect,
    subject: Subject,
}

impl Case {
    fn of(args: &Verify, roots: &Roots, sample: &Sample) -> Result<Self, Failure> {
        let mut policy = policy_of(&args.trust)?;
        let predicted = predicted(&args.compare, roots)?;
        if let Some((image, predicted)) = &predicted {
            policy.allow_dev |= args.compare.allow_dev;
            policy.images = whole(image, predicted).map(|entry| vec![entry]);
        }
        let report_data = expected_report_data(&args.expected, sample)?;
        let subject = Subject {
            predicted: predicted.map(|(image, predicted)| (image.manifest.hash, predicted)),
            compose: compose(&args.expected)?,
            kms: args.expected.kms.as_ref().map(|id| id.trim_start_matches("0x").to_lowercase()),
            binds_report_data: report_data.is_some(),
            signature: sample.signature,
        };
        Ok(Self { policy, expect: Expect { report_data, milestone: None }, subject })
    }

    /// The verdict, or why there is none although everything was there.
    async fn judge(
        &self,
        sample: &Sample,
        roots: &Roots,
        trust: &Trust,
    ) -> Result<Result<Verdict, VerifyError>, Failure> {
        let now = SystemTime::now();
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let judged = |collateral: &Collateral, policy: &Policy, seconds| {
            let evidence = Evidence { quote: &sample.quote, event_log: &sample.event_log, collateral };
            verify(&evidence, roots, policy, &self.expect, seconds)
        };
        if let Some(path) = &trust.collateral {
            let collateral = Collateral::parse(&read(path, COLLATERAL_MAX)?);
            let collateral = collateral.map_err(|e| Failure::new(format!("{}: {e}", path.display())))?;
            return Ok(judged(&collateral, &self.policy, seconds));
        }
        let cache = cache(trust, roots)?;
        let platform = PlatformId::of(&sample.quote).map_err(|e| Failure::new(e.to_string()))?;
        let collateral: Arc<Collateral> = cache.of_platform(platform, now).await.map_err(|e| {
            Failure::new(e.to_string()).hint("name another source: --pccs URL, or --collateral FILE")
        })?;
        let floor = cache.floors().of(platform);
        let mut policy = self.policy.clone();
        policy.min_evaluation_number = policy.min_evaluation_number.max(floor.evaluation_number);
        let verdict = judged(&collateral, &policy, seconds.max(floor.not_earlier_than));
        if let Ok(verdict) = &verdict {
            cache.floors().raise(platform, verdict);
        }
        Ok(verdict)
    }
}

fn policy_of(trust: &Trust) -> Result<Policy, Failure> {
    let Some(path) = &trust.policy else { return Ok(Policy::default()) };
    let text = String::from_utf8_lossy(&read(path, POLICY_MAX)?).into_owned();
    Policy::parse(&text).map_err(|e| Failure::new(format!("{}: {e}", path.display())))
}

/// The image that is expected, and what it measures in its shape.
fn predicted(compare: &Compare, roots: &Roots) -> Result<Option<(Image, Prediction)>, Failure> {
    let (Some(name), Some(vcpus), Some(memory)) = (&compare.image, compare.vcpus, compare.memory) else {
        return Ok(None);
    };
    let platform = if roots.realm().is_simulated() { Platform::Simulated } else { Platform::Tdx };
    let image = Image::open(name)?;
    let predicted = image.predict(platform, Shape { vcpus, memory }, &compare.boot)?;
    Ok(Some((image, predicted)))
}

/// The entry of a policy; `None` when a register is not predicted.
fn whole(image: &Image, predicted: &Prediction) -> Option<policy::Image> {
    Some(policy::Image {
        os_image_hash: image.manifest.hash,
        is_dev: image.manifest.metadata.is_dev,
        mr_td: Register(predicted.mrtd),
        rtmr0: vec![Register(predicted.rtmr0?)],
        rtmr1: Register(predicted.rtmr1),
        rtmr2: Register(predicted.rtmr2),
    })
}

/// By the certificate's key, by the bytes themselves, or by what an agent makes of a nonce.
fn expected_report_data(expected: &Expected, sample: &Sample) -> Result<Option<[u8; 64]>, Failure> {
    let digits = |text: &String| hex::decode(text.trim_start_matches("0x"));
    if let Some(text) = &expected.report_data {
        let bytes = digits(text).ok().and_then(|bytes| <[u8; 64]>::try_from(bytes).ok());
        return bytes.map(Some).ok_or_else(|| Failure::usage("--report-data takes 128 hexadecimal digits"));
    }
    if let Some(text) = &expected.nonce {
        let nonce = digits(text).map_err(|_| Failure::usage("--nonce takes hexadecimal digits"))?;
        return Ok(Some(Sha512::digest([b"app-data:", nonce.as_slice()].concat()).into()));
    }
    Ok(sample.public_key.as_deref().map(report_data))
}

fn compose(expected: &Expected) -> Result<Option<(ComposeHash, AppCompose)>, Failure> {
    let Some(path) = &expected.compose else { return Ok(None) };
    let bytes = read(path, APP_COMPOSE_MAX)?;
    let parsed = AppCompose::parse(&bytes).map_err(|e| Failure::new(format!("{}: {e}", path.display())))?;
    Ok(Some((ComposeHash::of(&bytes), parsed)))
}

/// Where collateral comes from, kept in the user's cache for use without a network.
fn cache(trust: &Trust, roots: &Roots) -> Result<Cache, Failure> {
    let directory = cache_directory();
    if let Some(directory) = &directory {
        // Without it everything works, and nothing is kept.
        drop(std::fs::create_dir_all(directory));
    }
    let pccs = |url: &str| Pccs::parse(url).map_err(|e| Failure::usage(e.to_string()));
    Ok(match &trust.pccs {
        Some(url) => cached(directory, roots, pccs(url)?),
        None if roots.realm().is_simulated() => cached(directory, roots, QuoteSim(SOCKET.into())),
        None => cached(directory, roots, pccs(INTEL)?),
    })
}

/// Each realm has files of its own: test roots all simulate the same platform.
fn cached(directory: Option<PathBuf>, roots: &Roots, fetch: impl Fetch) -> Cache {
    let directory = directory.map(|d| d.join(roots.realm().to_string().replace(':', "-")));
    if let Some(directory) = &directory {
        drop(std::fs::create_dir_all(directory));
    }
    Cache::new(directory, fetch)
}

fn cache_directory() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| Path::new(v).is_absolute()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("dstack/collateral"))
}

/// The first register and event that differ from an image.
pub fn difference(predicted: &Prediction, verdict: &Verdict) -> Option<Difference> {
    let [rtmr0, rtmr1, rtmr2, _] = verdict.measurements.rtmr;
    explain(predicted, [verdict.measurements.mr_td, rtmr0, rtmr1, rtmr2], &verdict.events)
}
