// SPDX-License-Identifier: Apache-2.0
//! From options to a finished `app-compose.json` with its secrets: key service, sender, pinned images.

mod ports;
mod upgrade;

pub use upgrade::upgrade;

use crate::cli_deploy::{Document, KeyProvider, OlderDisk};
use crate::client::Client;
use crate::compose::{self, Built, Input, Trust};
use crate::errors::Failure;
use crate::identity::{self, Identity};
use crate::ingress;
use crate::output::note;
use crate::pin::{self, Pinned, registry::Registries};
use crate::provider::{self, Provider};
use crate::secrets::{self, Sealed, Target};
use dstack_core::compose as core;
use dstack_core::ids::{AppId, ComposeHash, SignerKey};
use dstack_keys::env::Variables;
use dstack_service::api::teepod1::Options;
use zbus::Variant;

/// Everything that goes to teepod.
#[derive(Debug)]
pub struct Prepared {
    /// The document.
    pub built: Built,
    /// The key service, when it is known and trusted here.
    pub provider: Option<Provider>,
    /// Images whose tag was replaced.
    pub pinned: Vec<Pinned>,
    variables: Variables,
    signer: Option<Identity>,
    again: bool,
}

/// Prepares a new app. Without a bus, this host's key service is not asked.
///
/// # Errors
/// What is wrong with the input, or cannot be had.
pub async fn deploy(
    client: Option<&Client>,
    input: Option<Input>,
    name: Option<&str>,
    options: &Document,
) -> Result<Prepared, Failure> {
    let variables = secrets::gather(&options.env, &options.env_file)?;
    if let Some(input) = input.as_ref().filter(|i| i.is_document()) {
        return document(client, input, options, variables).await;
    }
    let provider = match options.key_provider {
        Some(KeyProvider::None) => None,
        wanted => chosen(client, options, wanted == Some(KeyProvider::Kms)).await?,
    };
    if provider.is_none() {
        refuse_without_keys(options, &variables)?;
    }
    let sends = !variables.is_empty() || options.env_signer.is_some();
    let signer = sends.then(|| Identity::of_secrets(options.env_signer.as_deref())).transpose()?;
    let trust = Trust {
        key_provider_id: provider.as_ref().map(|p| hex::encode(&p.kms.ca_public_key)),
        allowed_envs: variables.keys().cloned().collect(),
        env_signer: signer.as_ref().map(|s| s.public),
        upgrade_keys: owner_keys(options)?,
        rollback: options.rollback.and_then(OlderDisk::measured),
        tproxy: by_name(client, options, provider.is_some()).await?,
        port_policy: ports::policy(options, None)?,
    };
    ports::refuse_without_ingress(options, trust.tproxy)?;
    let (input, pinned) = pinned_input(input, options, provider.is_some()).await?;
    let built = compose::build(input.as_ref(), name, options, &trust)?;
    Ok(Prepared { built, provider, pinned, variables, signer, again: false })
}

/// A finished document: used as it is, so its key service, sender and images must be right already.
async fn document(
    client: Option<&Client>,
    input: &Input,
    options: &Document,
    variables: Variables,
) -> Result<Prepared, Failure> {
    let built = compose::build(Some(input), None, options, &Trust::default())?;
    let kms = built.parsed.key_provider() == core::KeyProvider::Kms;
    if !kms {
        refuse_without_keys(options, &variables)?;
    }
    if kms && !built.unpinned.is_empty() && !options.allow_tags {
        return Err(Failure::new(format!(
            "the app-compose.json names images by tag, and is used byte for byte: {}",
            built.unpinned.join(", ")
        ))
        .hint("give the docker-compose.yaml instead, to pin them; or --allow-tags: then whoever has the registry decides \
               what runs"));
    }
    let provider = match client.filter(|_| kms && !variables.is_empty()) {
        Some(client) => Some(provider::of_document(client, &built.parsed.key_provider_spki()).await?),
        None => None,
    };
    let signs = built.parsed.env_signer.is_some() && !variables.is_empty();
    let signer = signs.then(|| Identity::of_secrets(options.env_signer.as_deref())).transpose()?;
    let allowed = built.parsed.allowed_envs.as_deref();
    secrets::check_fixed(&variables, allowed, built.parsed.env_signer, signer.as_ref())?;
    Ok(Prepared { built, provider, pinned: Vec::new(), variables, signer, again: false })
}

/// The key service for a new document; none is an error only when one was asked for.
async fn chosen(
    client: Option<&Client>,
    options: &Document,
    must: bool,
) -> Result<Option<Provider>, Failure> {
    let found = match client {
        Some(client) => provider::choose(client, options.kms.as_deref()).await?,
        None => provider::pinned(options.kms.as_deref())?,
    };
    match found {
        None if must || options.kms.is_some() => Err(Failure::new("there is no key service to get keys from").hint(
            "on a host of your own: dstackctl kms bootstrap DOMAIN; one over the network: dstackctl kms trust URL",
        )),
        found => Ok(found),
    }
}

/// Whether a new app goes to the ingress: as it is asked for, else where there is one. An instance shows its keys there.
async fn by_name(client: Option<&Client>, options: &Document, keys: bool) -> Result<bool, Failure> {
    match client {
        _ if options.tproxy => Ok(true),
        Some(client) if keys && !options.no_tproxy => Ok(ingress::find(client).await?.is_some()),
        _ => Ok(false),
    }
}

/// The owner's keys that options name.
fn owner_keys(options: &Document) -> Result<Vec<SignerKey>, Failure> {
    options.upgrade_key.iter().map(|key| identity::public(key)).collect()
}

/// What would be an empty promise without keys (trust rule T24).
fn refuse_without_keys(options: &Document, variables: &Variables) -> Result<(), Failure> {
    if !variables.is_empty() || options.docker_login.is_some() {
        return Err(Failure::new(
            "secrets need a key service: without one, disk and keys are fresh at each boot, so there is no key to \
             encrypt secrets for",
        )
        .hint("on a host of your own: dstackctl kms bootstrap DOMAIN; one over the network: dstackctl kms trust URL; \
               values that are not secret can stand under `environment:` in the compose file"));
    }
    let given = [
        ("--upgrade-key", !options.upgrade_key.is_empty()),
        ("--env-signer", options.env_signer.is_some()),
        ("--tproxy", options.tproxy),
    ];
    match given.into_iter().find(|(_, set)| *set) {
        Some((option, _)) => {
            Err(Failure::usage(format!("{option} needs a key service: nobody else would heed it"))
                .hint("make or trust one: dstackctl kms --help"))
        }
        None => Ok(()),
    }
}

/// The compose file with digests for tags. An app with keys is pinned unless the deployer says otherwise: whoever can
/// change what a tag means could else read what the keys protect.
async fn pinned_input(
    input: Option<Input>,
    options: &Document,
    keys: bool,
) -> Result<(Option<Input>, Vec<Pinned>), Failure> {
    let wanted = options.pin || (keys && !options.allow_tags);
    let input = match input {
        Some(input) if wanted => input,
        other => return Ok((other, Vec::new())),
    };
    // What is no text is refused where it is built.
    let Ok(text) = std::str::from_utf8(&input.bytes) else { return Ok((Some(input), Vec::new())) };
    let registries =
        Registries { insecure: options.registry_insecure.clone(), mirrors: options.registry_mirror.clone() };
    let (text, pinned) = pin::pin(text, &registries).await?;
    Ok((Some(Input { bytes: text.into_bytes(), ..input }), pinned))
}

impl Prepared {
    /// The document's hash.
    #[must_use]
    pub fn hash(&self) -> ComposeHash {
        core::hash(&self.built.bytes)
    }

    /// Encrypts and signs the secrets for an app; `None` when there are none to send. `vm` is the id of the VM that has
    /// secrets already.
    ///
    /// # Errors
    /// When the app's key cannot be had or is not the key service's.
    pub async fn seal(&self, client: &Client, app: AppId, vm: &str) -> Result<Option<Sealed>, Failure> {
        let target = Target { app, compose: self.hash() };
        if let (true, Some(signer)) = (self.again, &self.signer) {
            return secrets::sign_again(signer, target, vm).map(Some);
        }
        let Some(provider) = self.provider.as_ref().filter(|_| !self.variables.is_empty()) else {
            return Ok(None);
        };
        let key = provider::env_key(client, provider, &app).await?;
        secrets::seal(&self.variables, &key, self.signer.as_ref(), target).map(Some)
    }

    /// Says what was decided.
    pub fn tell(&self) {
        if let Some(provider) = &self.provider {
            note(&format!("note: {}", provider.words()));
        }
        for image in &self.pinned {
            note(&format!("pinned: {} -> {}", image.tag, image.digest));
        }
        if !self.built.unpinned.is_empty() {
            let images = self.built.unpinned.join(", ");
            note(&format!("note: images=unpinned: images by tag may change between boots (--pin): {images}"));
        }
    }
}

/// Puts sealed secrets into the options of a call.
pub fn insert(options: &mut Options<'_>, sealed: Option<&Sealed>) {
    let Some(sealed) = sealed else { return };
    if let Some(blob) = &sealed.blob {
        options.insert("encrypted_env", Variant::from(blob.clone()));
    }
    if let Some(signature) = &sealed.signature {
        options.insert("encrypted_env_sig", Variant::from(signature.clone()));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::errors::Exit;

    #[test]
    fn t24_what_needs_keys_is_refused_without_a_key_service() {
        let none = Variables::new();
        assert!(refuse_without_keys(&Document::default(), &none).is_ok());
        let secret = secrets::gather(&["A=s3cret".to_owned()], &[]).unwrap();
        let login = Document { docker_login: Some("me".into()), ..Document::default() };
        for failure in [
            refuse_without_keys(&Document::default(), &secret).unwrap_err(),
            refuse_without_keys(&login, &none).unwrap_err(),
        ] {
            assert!(
                failure.message.contains("fresh at each boot") && !failure.message.contains("s3cret"),
                "{failure}"
            );
            assert!(failure.hint.is_some_and(|h| h.contains("dstackctl kms trust")));
        }
        for options in [
            Document { upgrade_key: vec!["00".into()], ..Document::default() },
            Document { env_signer: Some("k".into()), ..Document::default() },
        ] {
            assert_eq!(refuse_without_keys(&options, &none).unwrap_err().exit, Exit::Usage);
        }
    }
}
