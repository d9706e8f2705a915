// SPDX-License-Identifier: Apache-2.0
//! The deployer's environment: who sent it (T9), opened whole or not at all (P05, P06), and only the names that the
//! measured compose file allows.

use crate::inputs::{Env, Inputs};
use dstack_keys::Secret;
use dstack_keys::env::{self, EncryptedEnvError, SenderError, Sent};

/// Why the environment ends the boot. No message carries a value.
#[derive(Debug, thiserror::Error)]
pub enum EnvFailure {
    /// There is one, and nobody who has its key.
    #[error("there is an encrypted environment, and without a kms nobody can open it")]
    NoKey,
    /// It does not open.
    #[error(transparent)]
    Sealed(#[from] EncryptedEnvError),
    /// It is not the app's owner who sent it.
    #[error(transparent)]
    Sender(#[from] SenderError),
    /// The app has a signer and names of secrets, and the host gives none.
    #[error("the app expects a signed environment (allowed_envs), and the host gave none")]
    Withheld,
}

/// An opened environment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// What reaches the app.
    pub env: Env,
    /// Whether its sender was verified; `None` when there is no environment.
    pub authenticated: Option<bool>,
    /// Names that the compose file does not allow.
    pub skipped: Vec<String>,
}

/// Checks the sender, decrypts, and drops what is not allowed.
///
/// # Errors
/// [`EnvFailure`]: an environment that cannot be opened never becomes an empty one (P05).
pub fn open(inputs: &Inputs, key: Option<&Secret>) -> Result<Opened, EnvFailure> {
    let (blob, compose) = (&inputs.sealed_env, &inputs.compose);
    if blob.is_empty() {
        let expected = compose.allowed_envs.as_ref().is_some_and(|names| !names.is_empty());
        let withheld = compose.env_signer.is_some() && expected;
        return if withheld { Err(EnvFailure::Withheld) } else { Ok(Opened::default()) };
    }
    if let Some(signer) = &compose.env_signer {
        let sent = Sent::new(&inputs.app_id, &inputs.compose_hash, blob);
        env::verify(signer, &sent, &inputs.env_signature)?;
    }
    let variables = env::decrypt(blob, key.ok_or(EnvFailure::NoKey)?)?;
    let allowed = |name: &String| compose.allowed_envs.as_ref().is_none_or(|allowed| allowed.contains(name));
    let (taken, skipped): (Vec<_>, Vec<_>) = variables.into_iter().partition(|(name, _)| allowed(name));
    Ok(Opened {
        env: taken.into_iter().map(|(name, value)| (name, value.as_str().to_owned())).collect(),
        authenticated: Some(compose.env_signer.is_some()),
        skipped: skipped.into_iter().map(|(name, _)| name).collect(),
    })
}

#[cfg(test)]
#[path = "env_tests.rs"]
mod tests;
