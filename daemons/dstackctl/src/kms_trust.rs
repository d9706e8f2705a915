// SPDX-License-Identifier: Apache-2.0
//! `kms trust`: a key service is checked over the network before it is trusted (trust rule T15).

use crate::cli_kms::Trust;
use crate::errors::{Exit, Failure};
use crate::kms_rpc::{self, Endpoint};
use crate::output::{Ui, note};
use crate::provider::{custody_words, realm_words};
use crate::trust::{Store, Trusted, fingerprint};
use dstack_ra_rpc::collateral::Cache;
use dstack_ra_tls::certificate::{Claims, Custody};
use dstack_ra_tls::{Evidence, Expect, Policy, Roots, verify};
use dstack_rpc::kms::GetMetaResponse;
use serde_json::json;
use std::io::{BufRead, IsTerminal, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Carries out `kms trust`.
///
/// # Errors
/// Why the key service is not to be trusted.
pub async fn trust(args: &Trust, ui: &Ui) -> Result<(), Failure> {
    let store = Store::open()?;
    let found = confirmed(&args.url, args.fingerprint.as_deref(), args.yes).await?;
    if let Some(other) = store.all()?.into_iter().find(|t| is_replaced(t, &found)) {
        return Err(replaced(&other, &found));
    }
    store.add(&found, args.system, args.default)?;
    let fingerprint = found.fingerprint();
    if ui.json {
        return ui.json(&json!({
            "url": found.url, "domain": found.domain, "realm": found.realm, "custody": found.custody,
            "fingerprint": fingerprint, "attested": found.attested, "result": "trusted",
        }));
    }
    ui.text(&format!("trusted: {} sha256:{fingerprint}\n", found.url))
}

/// The same address or domain with another key: that is what an attack looks like.
fn is_replaced(known: &Trusted, found: &Trusted) -> bool {
    let same_place = known.url == found.url || (!known.domain.is_empty() && known.domain == found.domain);
    same_place && known.ca_public_key != found.ca_public_key
}

fn replaced(known: &Trusted, found: &Trusted) -> Failure {
    let old = known.fingerprint();
    Failure::new(format!(
        "{} was trusted with the CA key sha256:{old} and now has sha256:{}: either its operator made new keys, or this is \
         another one",
        found.url,
        found.fingerprint()
    ))
    .hint(format!("ask the operator; if the new one is right: dstackctl kms untrust {}", old.get(..16).unwrap_or_default()))
}

/// Carries out `kms untrust`.
///
/// # Errors
/// When it is not trusted, or its file cannot be removed.
pub fn untrust(name: &str, ui: &Ui) -> Result<(), Failure> {
    let store = Store::open()?;
    let found = store.find(name)?;
    store.remove(&found)?;
    if ui.json {
        return ui.json(&json!({"fingerprint": found.fingerprint(), "result": "no longer trusted"}));
    }
    ui.text(&format!("no longer trusted: {}\n", found.url))
}

/// Looks at a key service, shows what it is, and gets the user's consent.
///
/// # Errors
/// When it is none, its quote is not genuine, or the user says no.
pub async fn confirmed(url: &str, wanted: Option<&str>, yes: bool) -> Result<Trusted, Failure> {
    let endpoint = Endpoint::parse(url)?;
    let ca = kms_rpc::presented_ca(&endpoint).await?;
    let found_fingerprint = fingerprint(&ca.public_key);
    if wanted.is_some_and(|wanted| wanted != found_fingerprint) {
        return Err(Failure::new(format!(
            "{} has the fingerprint sha256:{found_fingerprint}, not the one you gave",
            endpoint.url()
        ))
        .hint("compare with `dstackctl kms status` on the key service's host"));
    }
    // The second connection is to that key and no other; it shows that the server has it.
    let meta: GetMetaResponse = kms_rpc::call(&endpoint, &ca.public_key, "GetMeta", &json!({})).await?;
    let found = checked(&endpoint, &ca, &meta)?;
    let found = Trusted { attested: attested(&found, &meta).await?, ..found };
    show(&found);
    if wanted.is_none() && !yes {
        ask()?;
    }
    Ok(found)
}

/// What it says of itself must be what its certificate says.
fn checked(endpoint: &Endpoint, ca: &Claims, meta: &GetMetaResponse) -> Result<Trusted, Failure> {
    let wrong = |what: &str| Failure::new(format!("{} is no key service to trust: {what}", endpoint.url()));
    let (Some(realm), Some(custody)) = (&ca.realm, ca.custody) else {
        return Err(wrong("its CA names no realm and custody"));
    };
    if meta.ca_public_key != ca.public_key {
        return Err(wrong("it tells another CA key than its own"));
    }
    if meta.realm != realm.to_string() || meta.custody != custody.text() {
        return Err(wrong("it tells another realm or custody than its CA"));
    }
    let k256: [u8; 33] =
        meta.k256_pubkey.as_slice().try_into().map_err(|_| wrong("it has no k256 root key"))?;
    if !matches!(k256.first(), Some(2 | 3)) {
        return Err(wrong("its k256 root key is none"));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    Ok(Trusted {
        version: 1,
        url: endpoint.url(),
        domain: meta.domain.clone(),
        realm: meta.realm.clone(),
        custody: meta.custody.clone(),
        ca_public_key: ca.public_key.clone(),
        k256_public_key: k256,
        attested: false,
        trusted_at: now,
    })
}

/// Verifies the quote over both root keys; one in a CVM must have one.
async fn attested(found: &Trusted, meta: &GetMetaResponse) -> Result<bool, Failure> {
    let info = meta.bootstrap_info.clone().unwrap_or_default();
    if info.quote.is_empty() {
        if found.custody == Custody::Cvm.text() {
            return Err(Failure::new(
                "the key service says that it is in a confidential VM, and has no quote that shows it",
            ));
        }
        return Ok(false);
    }
    let roots = Roots::load(&kms_rpc::TRUST_ROOTS).map_err(|e| Failure::new(e.to_string()))?;
    if roots.realm().to_string() != found.realm {
        return Err(Failure::new(format!(
            "the key service is of realm {}, and this machine verifies quotes of realm {}",
            found.realm,
            roots.realm()
        )));
    }
    let verifier = kms_rpc::verifier()?;
    verify_quote(found, &info.quote, &info.eventlog, &roots, verifier.collateral(), verifier.now())
        .await
        .map(|()| true)
}

async fn verify_quote(
    found: &Trusted,
    quote: &[u8],
    event_log: &[u8],
    roots: &Roots,
    cache: &Cache,
    now: u64,
) -> Result<(), Failure> {
    let refused = |why: String| Failure::new(format!("the key service's quote is refused: {why}"));
    let at = UNIX_EPOCH + Duration::from_secs(now);
    let collateral = cache.get(quote, at).await.map_err(|e| refused(e.to_string()))?;
    let expect = Expect { report_data: Some(report_data(found)), milestone: None };
    let evidence = Evidence { quote, event_log, collateral: &collateral };
    let verdict =
        verify(&evidence, roots, &Policy::default(), &expect, now).map_err(|e| refused(e.to_string()))?;
    if verdict.passed() { Ok(()) } else { Err(refused(verdict.reasons())) }
}

/// The report data that binds both root keys.
fn report_data(found: &Trusted) -> [u8; 64] {
    dstack_keys::sign::bootstrap_report_data(&found.ca_public_key, &found.k256_public_key)
}

/// On standard error, since standard output is for the result.
fn show(found: &Trusted) {
    let quote =
        if found.attested { "verified: both root keys are the ones it was made with" } else { "none" };
    let domain = if found.domain.is_empty() { "none" } else { &found.domain };
    note(&format!(
        "key service {}\n  domain       {domain}\n  realm        {}\n  custody      {}\n  quote        {quote}\n\
         \x20 fingerprint  sha256:{}\n  k256 key     {}",
        found.url,
        realm_words(&found.realm),
        custody_words(&found.custody),
        found.fingerprint(),
        hex::encode(found.k256_public_key)
    ));
}

fn ask() -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("nobody is there to be asked: give --fingerprint HEX, or --yes")
            .hint("`dstackctl kms status` on the key service's host shows its fingerprint"));
    }
    let mut err = std::io::stderr().lock();
    let asked = err.write_all(b"Is this the fingerprint that the operator told you? Trust it? [y/N] ");
    asked.and_then(|()| err.flush()).map_err(|e| Failure::new(format!("cannot ask: {e}")))?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(|e| Failure::new(format!("cannot ask: {e}")))?;
    if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        Ok(())
    } else {
        Err(Failure::with(Exit::Failed, "not trusted"))
    }
}

#[cfg(test)]
#[path = "kms_trust_tests.rs"]
mod tests;
