// SPDX-License-Identifier: Apache-2.0
//! Which key service an app gets its keys from, and the key that its secrets are encrypted for.

use crate::client::Client;
use crate::errors::{Exit, Failure, is_away};
use crate::kms_rpc;
use crate::realm;
use crate::trust::{Store, Trusted, fingerprint};
use dstack_core::ids::AppId;
use dstack_keys::sign::{env_key_message, recover};
use dstack_rpc::kms::{AppId as AppIdMessage, PublicKeyResponse};
use dstack_service::api::kms1;
use std::time::Duration;

/// The name of this host's key service for `--kms`.
pub const LOCAL: &str = "local";
/// A key service that does not answer within this time is taken for broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// What custody means, in words (trust rule T4).
#[must_use]
pub fn custody_words(custody: &str) -> &'static str {
    match custody {
        "cvm" => "custody=cvm: its root keys are in the memory of a confidential VM",
        _ => "custody=host: this machine's owner can derive every app's keys",
    }
}

/// What a realm means, in words (trust rule T4).
#[must_use]
pub fn realm_words(realm: &str) -> String {
    if realm == "intel" {
        return "realm=intel: it gives keys to genuine Intel TDX machines alone".to_owned();
    }
    format!("realm={realm}: simulated, nothing is protected; for trying things out")
}

/// The key service of the host that is worked on, as it describes itself on the bus; `None` when it has no keys or is
/// not there.
///
/// # Errors
/// When there is one, and it does not answer.
pub async fn local(client: &Client) -> Result<Option<Trusted>, Failure> {
    presence(client).await.map(Option::flatten)
}

/// The same, telling one that is not there (`None`) from one without keys (`Some(None)`).
///
/// # Errors
/// As [`local`].
pub async fn presence(client: &Client) -> Result<Option<Option<Trusted>>, Failure> {
    let asked = tokio::time::timeout(PATIENCE, describe(client)).await;
    let late = || Failure::with(Exit::Timeout, "dstack-kms does not answer");
    match asked.map_err(|_| late())? {
        Ok(found) => found.map(check).transpose().map(Some),
        Err(zbus::Error::MethodError(name, ..)) if is_away(name.as_str()) => Ok(None),
        Err(zbus::Error::FDO(error)) if is_away(zbus::DBusError::name(&*error).as_str()) => Ok(None),
        Err(error) => Err(kms1::Error::from(error).into()),
    }
}

/// What the key service says of itself; `None` before it has keys.
struct Described {
    ca_public_key: String,
    k256_public_key: String,
    /// Why it serves nobody although it has keys.
    refusal: Option<Failure>,
    rest: Trusted,
}

async fn describe(client: &Client) -> zbus::Result<Option<Described>> {
    let builder = kms1::ManagerProxy::builder(&client.connection);
    let kms = builder.cache_properties(zbus::proxy::CacheProperties::No).build().await?;
    if !kms.bootstrapped().await? {
        return Ok(None);
    }
    let rest = Trusted {
        version: 1,
        url: kms.address().await?,
        domain: kms.domain().await?,
        realm: kms.realm().await?,
        custody: kms.custody().await?,
        ca_public_key: Vec::new(),
        k256_public_key: [0; 33],
        attested: false,
        trusted_at: 0,
    };
    let (ca_public_key, k256_public_key) = (kms.ca_public_key().await?, kms.k256_public_key().await?);
    let refusal = if ca_public_key.is_empty() { refusal(&kms, &rest.realm).await } else { None };
    Ok(Some(Described { ca_public_key, k256_public_key, refusal, rest }))
}

/// Keys that are there and not shown are of another realm, or cannot be opened; which, it says to any call that needs them.
async fn refusal(kms: &kms1::ManagerProxy<'_>, here: &str) -> Option<Failure> {
    match kms.get_app_env_key(&AppId::from([0; 20]).to_string()).await {
        Err(kms1::Error::Misconfigured(reason)) => {
            let remedy =
                if reason.contains(" realm ") { realm::reunite(here) } else { realm::ANEW.to_owned() };
            Some(Failure::new(format!("this host's key service serves nobody: {reason}")).hint(remedy))
        }
        _ => None,
    }
}

fn check(found: Described) -> Result<Trusted, Failure> {
    let wrong = || {
        Failure::new("dstack-kms describes its keys in a way that cannot be read; are both of one version?")
    };
    if let Some(refusal) = found.refusal {
        return Err(refusal);
    }
    let mut k256_public_key = [0; 33];
    hex::decode_to_slice(&found.k256_public_key, &mut k256_public_key).map_err(|_| wrong())?;
    let ca_public_key = hex::decode(&found.ca_public_key).map_err(|_| wrong())?;
    if ca_public_key.is_empty() {
        return Err(wrong());
    }
    Ok(Trusted { ca_public_key, k256_public_key, ..found.rest })
}

/// The key service for a new app, and where it is reached.
#[derive(Debug, Clone)]
pub struct Provider {
    /// Which one.
    pub kms: Trusted,
    /// Whether it is the one on the bus.
    pub on_bus: bool,
}

impl Provider {
    /// One sentence for the deployer.
    #[must_use]
    pub fn words(&self) -> String {
        let kms = &self.kms;
        let fingerprint = kms.fingerprint();
        let name = if kms.domain.is_empty() { "this host" } else { &kms.domain };
        let head = fingerprint.get(..16).unwrap_or_default();
        let simulated = if kms.realm == "intel" { "" } else { ", simulated" };
        format!(
            "the app's keys come from the key service of {name} (sha256:{head}…{simulated}); {}",
            custody_words(&kms.custody)
        )
    }
}

/// Chooses by what the user asked for: a trusted one, this host's, or by default the trusted default, else this host's
/// when it has keys.
///
/// # Errors
/// When what was asked for is not there or not trusted.
pub async fn choose(client: &Client, name: Option<&str>) -> Result<Option<Provider>, Failure> {
    let store = Store::open()?;
    let trusted = match name {
        Some(LOCAL) => None,
        Some(name) => Some(store.find(name)?),
        None => store.default()?,
    };
    if let Some(kms) = trusted {
        // The bus is only a shorter way to a key service that is pinned; without it the network is asked.
        let local = local(client).await.ok().flatten();
        let on_bus = local.is_some_and(|l| l.ca_public_key == kms.ca_public_key);
        return Ok(Some(Provider { kms, on_bus }));
    }
    match local(client).await? {
        Some(kms) => known_here(client, &store, kms).map(|kms| Some(Provider { kms, on_bus: true })),
        None if name == Some(LOCAL) => Err(Failure::new("this host's key service has no keys yet")
            .hint("make them: dstackctl kms bootstrap DOMAIN")),
        None => Ok(None),
    }
}

/// The same without a bus: trusted ones alone.
///
/// # Errors
/// As [`choose`].
pub fn pinned(name: Option<&str>) -> Result<Option<Provider>, Failure> {
    let store = Store::open()?;
    let kms = match name {
        Some(name) => Some(store.find(name)?),
        None => store.default()?,
    };
    Ok(kms.map(|kms| Provider { kms, on_bus: false }))
}

/// The one whose CA key a finished compose file names: it must be this host's or a trusted one before secrets are
/// encrypted for it.
///
/// # Errors
/// When it is neither.
pub async fn of_document(client: &Client, ca_public_key: &[u8]) -> Result<Provider, Failure> {
    let store = Store::open()?;
    let local = local(client).await?.filter(|l| l.ca_public_key == ca_public_key);
    let trusted = store.all()?.into_iter().find(|t| t.ca_public_key == ca_public_key);
    match (trusted, local) {
        (Some(kms), local) => Ok(Provider { kms, on_bus: local.is_some() }),
        (None, Some(kms)) => known_here(client, &store, kms).map(|kms| Provider { kms, on_bus: true }),
        (None, None) => Err(Failure::new(format!(
            "the app's key service, sha256:{}, is not trusted on this machine",
            fingerprint(ca_public_key)
        ))
        .hint("check it and trust it: dstackctl kms trust URL")),
    }
}

/// This machine's own key service needs no pin, since the bus is this machine's; another host's word counts for nothing.
fn known_here(client: &Client, store: &Store, kms: Trusted) -> Result<Trusted, Failure> {
    let pinned = store.all()?.into_iter().any(|t| t.ca_public_key == kms.ca_public_key);
    match &client.remote {
        Some(host) if !pinned => Err(Failure::new(format!(
            "{host} has a key service that is not trusted on this machine, and only its own word for who it is"
        ))
        .hint(format!("check it and trust it: dstackctl kms trust {}; or go without: --key-provider none", kms.url))),
        _ => Ok(kms),
    }
}

/// The key that an app's secrets are encrypted for, signed by the root key that is trusted. What another key signed is
/// refused, whoever handed it over.
///
/// # Errors
/// When it cannot be had, or is signed by another.
pub async fn env_key(client: &Client, provider: &Provider, app: &AppId) -> Result<[u8; 32], Failure> {
    let (key, signature) = if provider.on_bus {
        client.kms().await?.get_app_env_key(&app.to_string()).await?
    } else {
        let args = AppIdMessage { app_id: app.as_bytes().to_vec() };
        let reply: PublicKeyResponse =
            kms_rpc::call_trusted(&provider.kms, "GetAppEnvEncryptPubKey", &args).await?;
        (reply.public_key, reply.signature)
    };
    check_env_key(&provider.kms, app, &key, &signature)
}

fn check_env_key(kms: &Trusted, app: &AppId, key: &[u8], signature: &[u8]) -> Result<[u8; 32], Failure> {
    let refused = |what: &str| {
        Failure::new(format!(
            "the key service gave {what} for the app's secrets, so nothing is encrypted for it"
        ))
    };
    let key: [u8; 32] = key.try_into().map_err(|_| refused("no X25519 key"))?;
    let signature: [u8; 65] = signature.try_into().map_err(|_| refused("a key without signature"))?;
    let signer = recover(&env_key_message(app, &key), &signature);
    if signer.is_ok_and(|signer| signer == kms.k256_public_key) {
        Ok(key)
    } else {
        Err(refused("a key that its trusted root key has not signed"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use dstack_keys::Secret;
    use dstack_keys::derive::{Roots, x25519_public};
    use dstack_keys::sign::{public_key, sign};

    #[test]
    fn t15_p06_only_a_key_that_the_trusted_root_signed_is_encrypted_for() {
        let roots = Roots { ca: Secret::from([0x11; 32]), k256: Secret::from([0x22; 32]) };
        let app: AppId = "3327603e03f5bd1f830812ca4a789277fc31f577".parse().unwrap();
        let kms = Trusted {
            version: 1,
            url: String::new(),
            domain: String::new(),
            realm: "intel".into(),
            custody: "host".into(),
            ca_public_key: vec![1],
            k256_public_key: public_key(&roots.k256).unwrap(),
            attested: false,
            trusted_at: 0,
        };
        let key = x25519_public(&roots.env_secret(&app).unwrap()).unwrap();
        let signature = sign(&roots.k256, &env_key_message(&app, &key)).unwrap();
        assert_eq!(check_env_key(&kms, &app, &key, &signature).unwrap(), key);
        let stranger = sign(&Secret::from([0x33; 32]), &env_key_message(&app, &key)).unwrap();
        let (other_app, other_key) = (AppId::from([1; 20]), [9; 32]);
        for (app, key, signature) in [
            (&app, &key, &stranger[..]),
            (&other_app, &key, &signature[..]),
            (&app, &other_key, &signature[..]),
            (&app, &key, &[0; 65][..]),
            (&app, &key, &[][..]),
        ] {
            let failure = check_env_key(&kms, app, key, signature).unwrap_err();
            assert!(failure.message.contains("nothing is encrypted"), "{failure}");
        }
        assert!(check_env_key(&kms, &app, &key[1..], &signature).is_err());
    }

    #[test]
    fn t04_custody_and_realm_are_said_in_words() {
        assert!(custody_words("host").contains("this machine's owner can derive every app's keys"));
        assert!(!custody_words("cvm").contains("derive"));
        assert!(custody_words("unheard of").contains("owner can derive"), "the worst is assumed");
        assert!(realm_words("test:0011223344556677").contains("nothing is protected"));
        assert!(!realm_words("intel").contains("simulated"));
    }
}
