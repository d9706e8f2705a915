// SPDX-License-Identifier: Apache-2.0
//! Keys: the key service, the roots that quotes are checked against, and the simulated TEE.

use super::{Check, bus};
use crate::client::Client;
use crate::errors::Failure;
use crate::kms_rpc::{Endpoint, TRUST_ROOTS};
use crate::provider::{custody_words, presence, realm_words};
use crate::realm::{ANEW, TRIAL, reunite};
use crate::trust::{Store, Trusted};
use dstack_core::spec::Platform;
use dstack_ra_tls::Roots;
use std::net::IpAddr;

const KMS: &str = "key service";
const ROOT: &str = "trust root";
const SIM: &str = "simulated TEE";

/// All of it.
pub async fn check(client: &Client, platform: Option<Platform>) -> Vec<Check> {
    let found = presence(client).await;
    let has_keys = !matches!(found, Ok(None | Some(None)));
    let (root, realm) = root(platform, has_keys);
    let mut checks = kms(found, realm.as_deref());
    checks.push(root);
    if platform != Some(Platform::Tdx) && realm.as_deref().is_some_and(|r| r != "intel") {
        checks.push(bus::unit_named(client, SIM, "dstack-quote-sim.socket", "dstack-testroot").await);
    }
    checks
}

fn kms(found: Result<Option<Option<Trusted>>, Failure>, realm: Option<&str>) -> Vec<Check> {
    match found {
        Err(failure) => {
            let remedy = failure.hint.unwrap_or_else(|| "see why: journalctl -u dstack-kms -n 50".to_owned());
            vec![Check::bad(KMS, failure.message, remedy)]
        }
        Ok(None) => vec![elsewhere()],
        Ok(Some(None)) => vec![Check::warning(
            KMS,
            "has no root keys yet, so apps get none",
            "sudo dstackctl init; or: dstackctl kms bootstrap DOMAIN (once; DOMAIN is the name of this installation)",
        )],
        Ok(Some(Some(kms))) => vec![described(&kms, realm), address(&kms)],
    }
}

/// This host has no key service; another one may be trusted.
fn elsewhere() -> Check {
    match Store::open().and_then(|store| store.default()) {
        Ok(Some(kms)) => Check::good(KMS, format!("is {} ({})", kms.url, custody_words(&kms.custody))),
        Ok(None) => Check::warning(
            KMS,
            "there is none: disk and keys of every app are fresh at each boot",
            "apt install dstack-kms, then: sudo dstackctl init; or one over the network: dstackctl kms trust URL",
        ),
        Err(failure) => Check::bad(KMS, failure.message, failure.hint.unwrap_or_default()),
    }
}

fn described(kms: &Trusted, realm: Option<&str>) -> Check {
    let words = format!("{}; {}", realm_words(&kms.realm), custody_words(&kms.custody));
    match realm {
        Some(realm) if realm != kms.realm => Check::bad(
            KMS,
            format!("its keys are of realm {}, and this machine verifies quotes of realm {realm}", kms.realm),
            reunite(realm),
        ),
        _ => Check::good(KMS, format!("{} has root keys; {words}", kms.domain)),
    }
}

/// Guests reach no loopback address of the host (trust rule T19).
fn address(kms: &Trusted) -> Check {
    const NAME: &str = "key address";
    let remedy =
        "sudo dstackctl init --address HOST; or set address in /etc/dstack/kms.toml, see kms.toml(5)";
    match Endpoint::parse(&kms.url) {
        Ok(endpoint) if is_loopback(endpoint.host()) => {
            Check::bad(NAME, format!("{} is a loopback address: no guest reaches it", kms.url), remedy)
        }
        Ok(endpoint) => Check::good(NAME, format!("guests reach the key service at {}", endpoint.url())),
        Err(_) => Check::bad(
            NAME,
            format!("{:?} is no address at which guests reach the key service", kms.url),
            remedy,
        ),
    }
}

fn is_loopback(host: &str) -> bool {
    let unusable = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
    host == "localhost" || host.ends_with(".localhost") || host.parse().is_ok_and(unusable)
}

/// The realm of this machine's trust roots, and whether it fits the machine.
fn root(platform: Option<Platform>, has_keys: bool) -> (Check, Option<String>) {
    match Roots::load(&TRUST_ROOTS) {
        Err(error) => (Check::bad(ROOT, error.to_string(), "see /etc/dstack/trust.d"), None),
        Ok(roots) => {
            let (realm, simulated) = (roots.realm().to_string(), roots.realm().is_simulated());
            (fitting(&realm, simulated, platform, has_keys), Some(realm))
        }
    }
}

/// `has_keys`: root keys are made once, so that another root comes too late for them.
fn fitting(realm: &str, simulated: bool, platform: Option<Platform>, has_keys: bool) -> Check {
    match (simulated, platform) {
        (false, Some(Platform::Tdx)) => Check::good(ROOT, "is Intel's: quotes of genuine TDX machines count"),
        (true, Some(Platform::Tdx)) => Check::bad(
            ROOT,
            format!("is {realm}, a simulated one, on a machine with TDX: no VM of it gets keys"),
            "remove it from /etc/dstack/trust.d (apt remove dstack-testroot)",
        ),
        (true, _) => Check::good(ROOT, format!("is {realm}: quotes are simulated, and protect nothing")),
        (false, _) if has_keys => Check::warning(
            ROOT,
            "is Intel's, and this machine has no TDX: its key service serves TDX machines elsewhere alone, and no VM of this \
             machine gets keys",
            format!("if that is not what it is for: {ANEW}"),
        ),
        (false, _) => Check::warning(
            ROOT,
            "is Intel's, and this machine has no TDX: no VM of it gets keys",
            format!("for trying things out: {TRIAL}, before root keys are made"),
        ),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::Status;
    use super::*;

    fn kms(url: &str) -> Trusted {
        Trusted {
            version: 1,
            url: url.to_owned(),
            domain: "kms.test".into(),
            realm: "test:0011223344556677".into(),
            custody: "host".into(),
            ca_public_key: vec![1],
            k256_public_key: [2; 33],
            attested: false,
            trusted_at: 0,
        }
    }

    #[test]
    fn t19_a_loopback_address_is_none_for_guests() {
        for (url, status) in [
            ("https://127.0.0.1:9043", Status::Bad),
            ("https://localhost:9043", Status::Bad),
            ("https://[::1]:9043", Status::Bad),
            ("https://0.0.0.0:9043", Status::Bad),
            ("", Status::Bad),
            ("https://10.0.0.7:9043", Status::Good),
            ("https://kms.example.com:9043", Status::Good),
        ] {
            assert_eq!(address(&kms(url)).status, status, "{url}");
        }
    }

    #[test]
    fn t04_a_test_root_is_advised_only_before_there_are_keys() {
        let remedy = |has_keys| fitting("intel", false, Some(Platform::Tcg), has_keys).remedy.unwrap();
        assert!(remedy(false).contains("apt install dstack-testroot"));
        assert!(!remedy(true).contains("apt install") && remedy(true).contains("dstack-setup(7)"));
        let mixed = described(&Trusted { realm: "intel".into(), ..kms("https://a") }, Some("test:00"));
        assert!(mixed.remedy.unwrap().contains("apt purge dstack-testroot"));
    }

    #[test]
    fn t04_custody_is_said_and_realms_never_mix() {
        let good = described(&kms("https://a"), Some("test:0011223344556677"));
        assert!(
            good.status == Status::Good && good.message.contains("owner can derive every app's keys"),
            "{good:?}"
        );
        assert_eq!(described(&kms("https://a"), Some("intel")).status, Status::Bad);
        for (realm, simulated, platform, status) in [
            ("intel", false, Some(Platform::Tdx), Status::Good),
            ("intel", false, Some(Platform::Tcg), Status::Warning),
            ("test:00", true, Some(Platform::Kvm), Status::Good),
            ("test:00", true, Some(Platform::Tdx), Status::Bad),
        ] {
            for has_keys in [false, true] {
                let check = fitting(realm, simulated, platform, has_keys);
                assert_eq!(check.status, status, "{realm} {platform:?}");
            }
        }
    }
}
