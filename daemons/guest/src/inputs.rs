// SPDX-License-Identifier: Apache-2.0
//! The host's inputs: bytes in, checked values out. Everything here is hostile until a measurement says otherwise (T6).

use dstack_core::boot::Failure;
use dstack_core::compose::{AppCompose, ComposeError, KeyProvider};
use dstack_core::config_disk::{self, ConfigDiskError, File, Files};
use dstack_core::ids::{AppId, ComposeHash, IdError, InstanceId, OsImageHash};
use dstack_core::kms_address::{ADDRESSES_MAX, Address};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Environment variables of the app; names have passed [`dstack_core::env::check`].
pub type Env = BTreeMap<String, String>;

/// Random bytes behind an instance id.
pub type Seed = [u8; 20];

/// Largest `vm_config`, bytes.
const VM_CONFIG_MAX: usize = 4096;

/// Where the app's keys come from, as the measured compose file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provider {
    /// Nowhere: they live as long as the boot (T24).
    None,
    /// The key service with this public key (SPKI DER), and no other (T3).
    Kms(Vec<u8>),
}

/// What the host says beside the deployer's files: claims.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    /// Where the key service may be.
    pub kms_urls: Vec<String>,
    /// The same, parsed; URLs that are none are left out.
    pub kms: Vec<Address>,
    /// Where tproxies may be.
    pub tproxy_urls: Vec<String>,
    /// The image that it launched (T2).
    pub os_image_hash: Option<OsImageHash>,
    /// The VM's shape, JSON text.
    pub vm_config: String,
}

/// Checked inputs of one boot.
#[derive(Debug)]
pub struct Inputs {
    /// The exact, measured bytes of `app-compose.json`.
    pub compose_bytes: Vec<u8>,
    /// The same, parsed.
    pub compose: AppCompose,
    /// Hash of those bytes.
    pub compose_hash: ComposeHash,
    /// The app's identity.
    pub app_id: AppId,
    /// This instance; `None` when the app wants none.
    pub instance_id: Option<InstanceId>,
    /// Where keys come from.
    pub provider: Provider,
    /// What the host says.
    pub hints: Hints,
    /// Digest of all the host's files (T6).
    pub host_inputs: [u8; 32],
    /// The deployer's encrypted environment; empty when there is none.
    pub sealed_env: Vec<u8>,
    /// Who sent it; empty when nobody says.
    pub env_signature: Vec<u8>,
    /// Bytes for the app that nobody measured.
    pub user_config: Vec<u8>,
}

/// Why the inputs do not make a boot.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// The config disk is malformed.
    #[error(transparent)]
    Disk(#[from] ConfigDiskError),
    /// A file that must be there.
    #[error("config disk has no {0}")]
    Missing(&'static str),
    /// A JSON file of the host.
    #[error("{0} is not valid: {1}")]
    Json(&'static str, serde_json::Error),
    /// An id or hash in `instance-info.json` or `sys-config.json`.
    #[error("instance-info.json or sys-config.json: {0}")]
    Id(#[from] IdError),
    /// The description of the app.
    #[error(transparent)]
    Compose(#[from] ComposeError),
    /// The given app id is another app's, and no kms decides.
    #[error(
        "app id {given} is not that of this compose file ({own}), and without a kms nobody vouches for it"
    )]
    AppId {
        /// What `instance-info.json` says.
        given: AppId,
        /// What the compose hash says.
        own: AppId,
    },
    /// A key provider that this image does not have.
    #[error("{}", Failure::KeysUnsupported.sentence())]
    Provider,
    /// What the measured compose file asks for and this image does not have. It is never passed over.
    #[error("app-compose.json asks for {0}, which this guest image does not support yet; remove the key")]
    Unsupported(&'static str),
}

impl InputError {
    /// What the host is told.
    #[must_use]
    pub const fn failure(&self) -> Failure {
        match self {
            Self::Disk(_) | Self::Missing(_) | Self::Json(..) | Self::Id(_) => Failure::ConfigInvalid,
            Self::Compose(_) | Self::Unsupported(_) => Failure::ComposeInvalid,
            Self::AppId { .. } => Failure::AppIdMismatch,
            Self::Provider => Failure::KeysUnsupported,
        }
    }
}

/// `instance-info.json`; other keys are the host's own.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct InstanceInfo {
    app_id: Option<String>,
    instance_id_seed: Option<String>,
}

/// `sys-config.json`; other keys are for others.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SysConfig {
    kms_urls: Vec<String>,
    tproxy_urls: Vec<String>,
    /// The newer name of the same.
    gateway_urls: Vec<String>,
    os_image_hash: String,
    vm_config: String,
}

/// Parses the buffer that holds the whole config disk.
///
/// `seed` is used when the host keeps none and nothing outlives the boot.
///
/// # Errors
/// [`InputError`] names the first input that is wrong.
pub fn parse(disk: &[u8], seed: Seed) -> Result<Inputs, InputError> {
    let mut files = config_disk::parse(disk)?;
    let host_inputs = config_disk::digest(&files);
    let name = File::AppCompose.name();
    let compose_bytes = files.remove(&File::AppCompose).ok_or(InputError::Missing(name))?;
    let compose = AppCompose::parse(&compose_bytes)?;
    supported(&compose)?;
    let compose_hash = ComposeHash::of(&compose_bytes);
    let provider = provider(&compose)?;
    let info: InstanceInfo = json(&files, File::InstanceInfo)?;
    let hints = hints(json(&files, File::SysConfig)?)?;
    let app_id = app_id(&info, compose_hash, &provider)?;
    let seed = match (given(info.instance_id_seed.as_deref()), &provider) {
        (Some(text), _) => parse_seed(text)?,
        // Keys and disk of an instance follow its seed: another one at each boot would be another instance.
        (None, Provider::Kms(_)) if !compose.no_instance_id => {
            return Err(InputError::Missing("instance_id_seed in instance-info.json"));
        }
        (None, _) => seed,
    };
    let instance_id = (!compose.no_instance_id).then(|| instance_id(&seed, &app_id));
    let mut take = |file| files.remove(&file).unwrap_or_default();
    Ok(Inputs {
        sealed_env: take(File::EncryptedEnv),
        env_signature: take(File::EncryptedEnvSig),
        user_config: take(File::UserConfig),
        compose_bytes,
        compose,
        compose_hash,
        app_id,
        instance_id,
        provider,
        hints,
        host_inputs,
    })
}

/// A promise that the app asks for is kept or refused.
fn supported(compose: &AppCompose) -> Result<(), InputError> {
    compose.unsupported().map_or(Ok(()), |what| Err(InputError::Unsupported(what)))
}

fn provider(compose: &AppCompose) -> Result<Provider, InputError> {
    match compose.key_provider() {
        KeyProvider::None => Ok(Provider::None),
        KeyProvider::Kms if compose.key_provider_spki().is_empty() => {
            Err(ComposeError::Field("key_provider kms needs key_provider_id").into())
        }
        KeyProvider::Kms => Ok(Provider::Kms(compose.key_provider_spki())),
        KeyProvider::Local => Err(InputError::Provider),
    }
}

fn hints(config: SysConfig) -> Result<Hints, InputError> {
    if config.vm_config.len() > VM_CONFIG_MAX {
        return Err(InputError::Missing("vm_config of 4096 bytes at most in sys-config.json"));
    }
    let kms_urls: Vec<String> = config.kms_urls.into_iter().take(ADDRESSES_MAX).collect();
    let tproxies = config.tproxy_urls.into_iter().chain(config.gateway_urls);
    Ok(Hints {
        tproxy_urls: tproxies.take(ADDRESSES_MAX).collect(),
        kms: kms_urls.iter().filter_map(|url| Address::parse(url)).collect(),
        kms_urls,
        os_image_hash: given(Some(&config.os_image_hash)).map(str::parse).transpose()?,
        vm_config: config.vm_config,
    })
}

/// `sha256(seed ‖ app id)`, the first 20 bytes.
#[must_use]
pub fn instance_id(seed: &Seed, app_id: &AppId) -> InstanceId {
    let digest: [u8; 32] = Sha256::new().chain_update(seed).chain_update(app_id.as_bytes()).finalize().into();
    let mut head = [0; 20];
    head.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
    InstanceId::from(head)
}

/// A JSON object; an absent or empty file is an empty one. (As a struct, serde would take an array too.)
fn json<T: for<'a> Deserialize<'a>>(files: &Files, file: File) -> Result<T, InputError> {
    let wrong = |e| InputError::Json(file.name(), e);
    let bytes = files.get(&file).filter(|b| !b.is_empty()).map_or(&b"{}"[..], Vec::as_slice);
    let object: serde_json::Map<_, _> = serde_json::from_slice(bytes).map_err(wrong)?;
    serde_json::from_value(object.into()).map_err(wrong)
}

fn given(text: Option<&str>) -> Option<&str> {
    text.filter(|t| !t.is_empty())
}

/// Only a kms may vouch for an app id that is not the compose file's own (T1).
fn app_id(info: &InstanceInfo, hash: ComposeHash, provider: &Provider) -> Result<AppId, InputError> {
    let own = hash.app_id();
    match (given(info.app_id.as_deref()), provider) {
        (None, _) => Ok(own),
        (Some(text), Provider::Kms(_)) => Ok(text.parse()?),
        (Some(text), Provider::None) => match text.parse()? {
            id if id == own => Ok(own),
            given => Err(InputError::AppId { given, own }),
        },
    }
}

fn parse_seed(text: &str) -> Result<Seed, IdError> {
    // A seed has the shape of an instance id, and its errors.
    text.parse::<InstanceId>().map(|id| *id.as_bytes())
}

#[cfg(test)]
#[path = "inputs_tests.rs"]
mod tests;
