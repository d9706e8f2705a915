// SPDX-License-Identifier: Apache-2.0
//! Certificates as rows of the bus, and in a sentence.

use crate::certificate::Leaf;
use crate::engine::state::Renewal;
use crate::engine::{Engine, View, time};
use crate::http;
use crate::renewal::{self, Decision, Known};
use dstack_service::api::certbot1::{CertificateRow, Error};
use dstack_service::errors::Fdo;
use std::collections::HashMap;
use zbus::{OwnedVariant, Variant};

/// Seconds, never before 1970.
#[must_use]
pub fn unsigned(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap_or_default()
}

/// A certificate as the bus has it.
///
/// # Errors
/// A defect of this daemon.
pub fn row(engine: &Engine, view: &View) -> Result<CertificateRow, Error> {
    let now = http::now();
    let leaf = view.live.as_ref().ok().and_then(Option::as_ref);
    let renewal = view.renewal.as_ref().ok().cloned().unwrap_or_default();
    let known = Known {
        validity: leaf.map(|leaf| leaf.validity),
        fits: leaf.is_some_and(|leaf| leaf.names == view.wanted.names),
        suggested: renewal.suggested,
        spread: leaf.map_or(0, Leaf::spread),
    };
    let due = match renewal::decide(now, &known, engine.settings().renew_days_before, false) {
        Decision::At(at) => unsigned(at),
        Decision::Renew(_) => 0,
    };
    let (state, error) = state(now, view);
    let names: Vec<String> = view.wanted.names.iter().map(ToString::to_string).collect();
    let validity = |of: fn(&renewal::Validity) -> i64| leaf.map_or(0, |leaf| unsigned(of(&leaf.validity)));
    let values: [(&str, Variant<'_>); 11] = [
        ("domain", view.wanted.domain.to_string().into()),
        ("names", names.into()),
        ("state", state.into()),
        ("issuer", leaf.map(|leaf| leaf.issuer.clone()).unwrap_or_default().into()),
        ("not_before", validity(|v| v.not_before).into()),
        ("not_after", validity(|v| v.not_after).into()),
        ("renewal", due.into()),
        ("failures", renewal.failures.count.into()),
        ("error", error.into()),
        ("retry", unsigned(renewal.failures.until(now, false).unwrap_or(0)).into()),
        ("public_key", leaf.map(|leaf| leaf.public_key.clone()).unwrap_or_default().into()),
    ];
    let owned = |(name, value): (&str, Variant<'_>)| {
        let value = OwnedVariant::try_from(value)
            .map_err(|e| Error::Fdo(Fdo::failed(format!("internal error, please report it: {e}"))))?;
        Ok((name.to_owned(), value))
    };
    values.into_iter().map(owned).collect::<Result<HashMap<_, _>, _>>()
}

/// The state of a certificate in a word, and its last failure in a sentence. One that has expired is shown as that, though
/// its renewal has failed, too: nobody is served any more.
fn state(now: i64, view: &View) -> (&'static str, String) {
    let failed = |renewal: &Renewal| match renewal.failures.count {
        0 => String::new(),
        _ => renewal.error.clone(),
    };
    match (&view.live, &view.renewal) {
        (Err(error), _) | (_, Err(error)) => ("unreadable", error.clone()),
        (Ok(Some(leaf)), Ok(renewal)) if is_over(now, leaf) => ("expired", failed(renewal)),
        (_, Ok(renewal)) if renewal.failures.count > 0 => ("renewal-failed", failed(renewal)),
        (Ok(None), _) => ("missing", String::new()),
        _ => ("valid", String::new()),
    }
}

const fn is_over(now: i64, leaf: &Leaf) -> bool {
    now > leaf.validity.not_after
}

/// A sentence on the certificates, for `systemctl status`.
#[must_use]
pub fn sentence(engine: &Engine) -> String {
    let views = engine.views();
    let count = views.len();
    let leaves: Vec<&Leaf> = views.iter().filter_map(|v| v.live.as_ref().ok()?.as_ref()).collect();
    let now = http::now();
    let (over, live): (Vec<&Leaf>, Vec<&Leaf>) = leaves.into_iter().partition(|leaf| is_over(now, leaf));
    let failing = views
        .iter()
        .filter(|v| v.renewal.as_ref().map_or(true, |r| r.failures.count > 0) || v.live.is_err())
        .count();
    let first = live.iter().map(|leaf| leaf.validity.not_after).min();
    let first = first.map(|at| format!(", the first expires {}", time(at))).unwrap_or_default();
    let over = if over.is_empty() { String::new() } else { format!("; {} expired", over.len()) };
    let rehearsal = match engine.rehearsed() {
        Ok(rehearsed) if rehearsed.problems.is_empty() => String::new(),
        _ => "; the last rehearsal failed".to_owned(),
    };
    let failing = if failing == 0 { String::new() } else { format!("; {failing} failing") };
    format!("{} of {count} certificates{first}{over}{failing}{rehearsal}", live.len())
}
