// SPDX-License-Identifier: Apache-2.0
//! Another version of an app: what the old one says of trust goes on, unless options say otherwise.

use super::{Prepared, chosen, document, owner_keys, pinned_input, ports, refuse_without_keys};
use crate::cli_deploy::{Document, KeyProvider, OlderDisk, Upgrade};
use crate::client::Client;
use crate::compose::{self, Input, Trust};
use crate::errors::Failure;
use crate::identity::Identity;
use crate::provider::{self, Provider};
use crate::secrets;
use dstack_core::compose::AppCompose;
use dstack_core::ids::SignerKey;
use dstack_keys::env::Variables;

/// Prepares another version of an app.
///
/// # Errors
/// As [`super::deploy`]; also when the secrets that the app has cannot be signed for the new version.
pub async fn upgrade(
    client: &Client,
    args: &Upgrade,
    name: &str,
    old: &AppCompose,
) -> Result<Prepared, Failure> {
    let options = &args.document;
    let input = args.file.as_deref().map(compose::read).transpose()?;
    let variables = secrets::gather(&options.env, &options.env_file)?;
    let mut prepared = match input.as_ref().filter(|i| i.is_document()) {
        Some(input) => document(Some(client), input, options, variables).await?,
        None => carried(client, input, args, name, old, variables).await?,
    };
    let keeps = prepared.variables.is_empty() && !args.no_secrets;
    prepared.again = keeps && had_secrets(old) && prepared.built.parsed.env_signer.is_some();
    if prepared.again {
        prepared.signer = Some(same_signer(options, &prepared.built.parsed)?);
    }
    Ok(prepared)
}

fn had_secrets(old: &AppCompose) -> bool {
    old.env_signer.is_some() && old.allowed_envs.as_ref().is_none_or(|names| !names.is_empty())
}

/// A version whose document is built here: what the old one trusts goes on, unless options say otherwise.
async fn carried(
    client: &Client,
    input: Option<Input>,
    args: &Upgrade,
    name: &str,
    old: &AppCompose,
    variables: Variables,
) -> Result<Prepared, Failure> {
    let options = &args.document;
    let (provider, key_provider_id) = carried_provider(client, options, old, !variables.is_empty()).await?;
    if key_provider_id.is_none() {
        refuse_without_keys(options, &variables)?;
    }
    let signer = carried_signer(options, old, &variables)?;
    let (before, owners) = (Trust::of(old), owner_keys(options)?);
    let allowed_envs = match (variables.is_empty(), args.no_secrets) {
        (true, true) => Vec::new(),
        (true, false) => before.allowed_envs,
        (false, _) => variables.keys().cloned().collect(),
    };
    let trust = Trust {
        key_provider_id,
        allowed_envs,
        env_signer: signer.as_ref().map_or(before.env_signer, |s| Some(s.public)),
        upgrade_keys: if owners.is_empty() { before.upgrade_keys } else { owners },
        rollback: options.rollback.map_or(before.rollback, OlderDisk::measured),
        tproxy: options.tproxy || (before.tproxy && !options.no_tproxy),
        port_policy: ports::policy(options, before.port_policy.as_ref())?,
    };
    ports::refuse_without_ingress(options, trust.tproxy)?;
    let (input, pinned) = pinned_input(input, options, trust.key_provider_id.is_some()).await?;
    let built = compose::build(input.as_ref(), Some(name), options, &trust)?;
    Ok(Prepared { built, provider, pinned, variables, signer, again: false })
}

async fn carried_provider(
    client: &Client,
    options: &Document,
    old: &AppCompose,
    sends: bool,
) -> Result<(Option<Provider>, Option<String>), Failure> {
    let kept = Trust::of(old).key_provider_id;
    match (options.key_provider, kept) {
        (Some(KeyProvider::None), _) => Ok((None, None)),
        (None, Some(id)) if options.kms.is_none() => {
            let provider = if sends {
                Some(provider::of_document(client, &old.key_provider_spki()).await?)
            } else {
                None
            };
            Ok((provider, Some(id)))
        }
        (None, None) if options.kms.is_none() => Ok((None, None)),
        _ => {
            let provider = chosen(Some(client), options, true).await?;
            let id = provider.as_ref().map(|p| hex::encode(&p.kms.ca_public_key));
            Ok((provider, id))
        }
    }
}

/// Who sends new secrets: the one that the app knows, or the one that is given.
fn carried_signer(
    options: &Document,
    old: &AppCompose,
    variables: &Variables,
) -> Result<Option<Identity>, Failure> {
    if variables.is_empty() && options.env_signer.is_none() {
        return Ok(None);
    }
    let own = Identity::of_secrets(options.env_signer.as_deref())?;
    match old.env_signer {
        Some(known) if known != own.public && options.env_signer.is_none() => {
            Err(another_signer(&own, known))
        }
        _ => Ok(Some(own)),
    }
}

fn same_signer(options: &Document, document: &AppCompose) -> Result<Identity, Failure> {
    let own = Identity::of_secrets(options.env_signer.as_deref())?;
    match document.env_signer {
        Some(known) if known != own.public => Err(another_signer(&own, known)),
        _ => Ok(own),
    }
}

fn another_signer(own: &Identity, known: SignerKey) -> Failure {
    Failure::new(format!(
        "the app takes secrets from {known} alone, and this machine's key is {}",
        own.public
    ))
    .hint(
        "give the key that the app knows: --env-signer FILE; or send all secrets anew by another: \
         --env-signer FILE --env-file FILE",
    )
}
