// SPDX-License-Identifier: Apache-2.0
//! The host's inputs: bytes in, checked values out. Everything here is hostile until a measurement says otherwise (T6).

use crate::keys::{self, Keys};
use dstack_core::boot::Failure;
use dstack_core::compose::{AppCompose, ComposeError};
use dstack_core::config_disk::{self, ConfigDiskError, File, Files};
use dstack_core::ids::{AppId, ComposeHash, IdError, InstanceId};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Environment variables of the app; names have passed [`dstack_core::env::check`].
pub type Env = BTreeMap<String, String>;

/// Random bytes behind an instance id.
pub type Seed = [u8; 20];

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
    /// The deployer's environment.
    pub env: Env,
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
    /// An id in `instance-info.json`.
    #[error("instance-info.json: {0}")]
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
    /// The key provider refused.
    #[error("{}", .0.sentence())]
    Keys(Failure),
}

impl InputError {
    /// What the host is told.
    #[must_use]
    pub const fn failure(&self) -> Failure {
        match self {
            Self::Disk(_) | Self::Missing(_) | Self::Json(..) | Self::Id(_) => Failure::ConfigInvalid,
            Self::Compose(_) => Failure::ComposeInvalid,
            Self::AppId { .. } => Failure::AppIdMismatch,
            Self::Keys(failure) => *failure,
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

/// Parses the buffer that holds the whole config disk, and with it chooses the key provider.
///
/// `seed` is used when the host keeps none.
///
/// # Errors
/// [`InputError`] names the first input that is wrong.
pub fn parse(disk: &[u8], seed: Seed) -> Result<(Inputs, Box<dyn Keys>), InputError> {
    let mut files = config_disk::parse(disk)?;
    let name = File::AppCompose.name();
    let compose_bytes = files.remove(&File::AppCompose).ok_or(InputError::Missing(name))?;
    let compose = AppCompose::parse(&compose_bytes)?;
    let compose_hash = ComposeHash::of(&compose_bytes);
    let keys = keys::provider(&compose).map_err(InputError::Keys)?;
    let info: InstanceInfo = json(&files, File::InstanceInfo)?;
    // Addresses of services: nothing uses them without a key provider, yet a damaged file is not passed over.
    let _hints: serde_json::Map<String, serde_json::Value> = json(&files, File::SysConfig)?;
    let app_id = app_id(&info, compose_hash)?;
    let seed = given(info.instance_id_seed.as_deref()).map_or(Ok(seed), parse_seed)?;
    let instance_id = (!compose.no_instance_id).then(|| instance_id(&seed, &app_id));
    let env = open_env(&files, keys.as_ref())?;
    let user_config = files.remove(&File::UserConfig).unwrap_or_default();
    Ok((Inputs { compose_bytes, compose, compose_hash, app_id, instance_id, env, user_config }, keys))
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

/// Only a kms may vouch for an app id that is not the compose file's own.
fn app_id(info: &InstanceInfo, hash: ComposeHash) -> Result<AppId, InputError> {
    let own = hash.app_id();
    match given(info.app_id.as_deref()) {
        None => Ok(own),
        Some(text) => match text.parse()? {
            id if id == own => Ok(own),
            given => Err(InputError::AppId { given, own }),
        },
    }
}

fn parse_seed(text: &str) -> Result<Seed, IdError> {
    // A seed has the shape of an instance id, and its errors.
    text.parse::<InstanceId>().map(|id| *id.as_bytes())
}

/// P05: an environment that cannot be opened ends the boot.
fn open_env(files: &Files, keys: &dyn Keys) -> Result<Env, InputError> {
    match files.get(&File::EncryptedEnv) {
        Some(blob) if !blob.is_empty() => keys.open_env(blob).map_err(InputError::Keys),
        _ => Ok(Env::new()),
    }
}

#[cfg(test)]
#[path = "inputs_tests.rs"]
mod tests;
