// SPDX-License-Identifier: Apache-2.0
//! From settings and credentials to an engine.

use crate::acme::Acme;
use crate::acme::ExternalAccount;
use crate::acme::client::Authority;
use crate::dns::Provider;
use crate::dns::authority::Authorities;
use crate::dns::cloudflare::Cloudflare;
use crate::dns::rfc2136::{Key, Rfc2136};
use crate::engine::{Engine, Parts};
use crate::http::Http;
use crate::settings::{AuthorityAt, Dns, Settings};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use dstack_service::credentials::{self, CredentialError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

/// Token of Cloudflare.
pub const CLOUDFLARE: &str = "certbot-cloudflare";
/// Secret of the TSIG key, base64.
pub const TSIG: &str = "certbot-tsig";
/// Key of the external account, base64url.
pub const EAB: &str = "certbot-eab";

/// Reads a credential by its name; `None` when there is none.
pub type Secrets<'a> = &'a dyn Fn(&str) -> Result<Option<Zeroizing<Vec<u8>>>, CredentialError>;

/// Credentials as systemd passes them.
///
/// # Errors
/// [`CredentialError`] for one that is there and cannot be read.
pub fn by_systemd(name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, CredentialError> {
    credentials::read_optional(name)
}

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// A credential cannot be read.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// A credential is missing.
    #[error(
        "the credential {0} is missing: {1}; store it with: systemd-creds encrypt --name={0} - /etc/credstore.encrypted/{0}"
    )]
    Missing(&'static str, &'static str),
    /// A credential is not what it is to be.
    #[error("the credential {0} is not {1}")]
    Malformed(&'static str, &'static str),
    /// Something else.
    #[error("{0}")]
    Other(String),
}

/// Makes the engine; nobody is asked anything yet.
///
/// # Errors
/// [`AssembleError`].
pub fn assemble(settings: Settings, workdir: &Path, secrets: Secrets<'_>) -> Result<Engine, AssembleError> {
    Ok(Engine::new(parts(settings, workdir, secrets)?))
}

/// What the engine is made of.
///
/// # Errors
/// [`AssembleError`].
pub fn parts(settings: Settings, workdir: &Path, secrets: Secrets<'_>) -> Result<Parts, AssembleError> {
    let other = |e: &dyn std::fmt::Display| AssembleError::Other(e.to_string());
    let servers = Authorities::new(settings.servers.clone(), settings.resolver).map_err(|e| other(&e))?;
    let rehearsal = settings.rehearsal.as_ref().map(|at| authority(at, &settings)).transpose()?;
    Ok(Parts {
        acme: authority(&settings.authority, &settings)?,
        rehearsal,
        external: external(&settings, secrets)?,
        provider: provider(&settings, secrets)?,
        servers: Arc::new(servers),
        workdir: workdir.to_owned(),
        settings,
    })
}

fn http(root: Option<&PathBuf>) -> Result<Http, AssembleError> {
    Http::new(root.map(PathBuf::as_path)).map_err(|e| AssembleError::Other(e.to_string()))
}

fn authority(at: &AuthorityAt, settings: &Settings) -> Result<Arc<dyn Acme>, AssembleError> {
    Ok(Arc::new(Authority::new(http(at.root.as_ref())?, at.url.clone(), settings.renew_timeout)))
}

fn text(name: &'static str, secrets: Secrets<'_>) -> Result<Option<Zeroizing<String>>, AssembleError> {
    let Some(bytes) = secrets(name)? else { return Ok(None) };
    let text = std::str::from_utf8(&bytes).map_err(|_| AssembleError::Malformed(name, "text"))?;
    Ok(Some(Zeroizing::new(text.trim().to_owned())).filter(|text| !text.is_empty()))
}

fn external(settings: &Settings, secrets: Secrets<'_>) -> Result<Option<ExternalAccount>, AssembleError> {
    let Some(key_id) = settings.eab_key_id.clone() else { return Ok(None) };
    let text = text(EAB, secrets)?.ok_or(AssembleError::Missing(EAB, "certbot.toml has eab.key_id"))?;
    let key = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map(Zeroizing::new);
    let key = key.map_err(|_| AssembleError::Malformed(EAB, "base64url"))?;
    Ok(Some(ExternalAccount { key_id, key }))
}

fn provider(settings: &Settings, secrets: Secrets<'_>) -> Result<Arc<dyn Provider>, AssembleError> {
    match &settings.dns {
        Dns::Cloudflare { base_url, zone_id, token } => {
            let token = text(CLOUDFLARE, secrets)?.or_else(|| token.clone());
            let token = token.ok_or(AssembleError::Missing(
                CLOUDFLARE,
                "certbot.toml has dns.provider = \"cloudflare\"",
            ))?;
            Ok(Arc::new(Cloudflare::new(http(None)?, base_url, token, zone_id.clone())))
        }
        Dns::Rfc2136 { server, zone, key_name, algorithm } => {
            let missing = AssembleError::Missing(TSIG, "certbot.toml has dns.provider = \"rfc2136\"");
            let secret = STANDARD.decode(text(TSIG, secrets)?.ok_or(missing)?.as_bytes()).map(Zeroizing::new);
            let secret = secret.map_err(|_| AssembleError::Malformed(TSIG, "base64"))?;
            let key = Key { name: key_name.clone(), algorithm: *algorithm, secret };
            let provider = Rfc2136::new(*server, zone.clone(), &key).map_err(AssembleError::Other)?;
            Ok(Arc::new(provider))
        }
    }
}
