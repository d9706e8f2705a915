// SPDX-License-Identifier: Apache-2.0
//! Secrets of an app: gathered here, encrypted here for the app's key, and signed by their sender (trust rule T9).

use crate::dotenv;
use crate::errors::Failure;
use crate::identity::Identity;
use crate::places;
use dstack_core::env::{self, EnvError};
use dstack_core::env_signature::EnvSignature;
use dstack_core::ids::{AppId, ComposeHash, SignerKey};
use dstack_keys::env::{Sent, Variables, encrypt, sign};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use zeroize::Zeroizing;

/// Largest file of secrets, bytes: more cannot be encrypted.
const FILE_MAX: u64 = 1024 * 1024;

/// Gathers secrets: files in their order, then single ones; later ones win.
///
/// # Errors
/// What is wrong, never with a value.
pub fn gather(single: &[String], files: &[PathBuf]) -> Result<Variables, Failure> {
    let environment = |name: &str| std::env::var(name).ok();
    let mut variables = Variables::new();
    for path in files {
        let text = read(path)?;
        let parsed = dotenv::parse(&text, &environment);
        let parsed = parsed.map_err(|e| Failure::usage(format!("{}, {e}", path.display())))?;
        for (name, value) in &parsed {
            env::check(name, value).map_err(|e| refused(path, &e))?;
        }
        variables.extend(parsed);
    }
    for pair in single {
        let (name, value) = named(pair, &environment)?;
        env::check(&name, &value).map_err(|e| Failure::usage(e.to_string()))?;
        variables.insert(name, value);
    }
    Ok(variables)
}

/// A name that is none may be a piece of a secret, so it is not told.
fn refused(path: &Path, error: &EnvError) -> Failure {
    let what = match error {
        EnvError::Name(_) => "a name is longer than 256 characters".to_owned(),
        other => other.to_string(),
    };
    Failure::usage(format!("{}: {what}", path.display()))
}

/// `NAME=VALUE`, or a name whose value is in the environment.
fn named(pair: &str, environment: dotenv::Lookup<'_>) -> Result<(String, Zeroizing<String>), Failure> {
    if let Some((name, value)) = pair.split_once('=') {
        return Ok((name.to_owned(), Zeroizing::new(value.to_owned())));
    }
    env::check(pair, "").map_err(|e| Failure::usage(e.to_string()))?;
    let value = environment(pair).ok_or_else(|| {
        Failure::usage(format!("--env {pair} has no value, and the environment has no {pair}"))
            .hint(format!("export {pair} first, or put it into a file: --env-file FILE"))
    })?;
    Ok((pair.to_owned(), Zeroizing::new(value)))
}

fn read(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let mut text = Zeroizing::new(String::new());
    let result = if path == Path::new("-") {
        std::io::stdin().lock().take(FILE_MAX + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(FILE_MAX + 1).read_to_string(&mut text))
    };
    result.map_err(|e| places::cannot("read", path, &e))?;
    if text.len() as u64 > FILE_MAX {
        return Err(Failure::new(format!("{} is larger than {FILE_MAX} bytes", path.display())));
    }
    Ok(text)
}

/// What goes to teepod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The encrypted environment; `None` when the VM has it already.
    pub blob: Option<Vec<u8>>,
    /// `encrypted-env.sig`; `None` when the app takes secrets from anybody.
    pub signature: Option<Vec<u8>>,
}

/// The app and version that secrets are for.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The app.
    pub app: AppId,
    /// The version.
    pub compose: ComposeHash,
}

/// Encrypts secrets for an app's key, and signs them when the compose file names a signer.
///
/// # Errors
/// When they are too many or too large.
pub fn seal(
    variables: &Variables,
    key: &[u8; 32],
    signer: Option<&Identity>,
    target: Target,
) -> Result<Sealed, Failure> {
    let blob = encrypt(variables, key).map_err(|e| Failure::new(e.to_string()))?;
    let sent = Sent::new(&target.app, &target.compose, &blob);
    let signature = signer.map(|signer| signed(signer, &sent)).transpose()?;
    Ok(Sealed { blob: Some(blob), signature })
}

/// What this machine remembers of the last secrets it sent to a VM: enough to sign them for another version, and nothing
/// that is secret. Each VM of an app has its own, as encrypting twice gives two texts.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    seq: u64,
    #[serde(with = "hex::serde")]
    digest: [u8; 32],
}

/// Signs the secrets that an app has already for another version of it. Only what was sent from here is signed: what
/// teepod holds may be another's.
///
/// # Errors
/// When this machine has not sent them.
pub fn sign_again(signer: &Identity, target: Target, vm: &str) -> Result<Sealed, Failure> {
    let unknown = || {
        Failure::new(
            "the app's secrets are signed for one version of it, and were not sent from this machine",
        )
        .hint("give them again: --env-file FILE; or drop them: --no-secrets")
    };
    let record = record(&record_path(&target.app, vm)?)?.ok_or_else(unknown)?;
    let sent = Sent { app: &target.app, compose: &target.compose, digest: record.digest };
    Ok(Sealed { blob: None, signature: Some(signed(signer, &sent)?) })
}

fn signed(signer: &Identity, sent: &Sent<'_>) -> Result<Vec<u8>, Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
    let last = last_number(sent.app)?;
    // Milliseconds grow also from one machine of the sender to the next.
    let seq = u64::try_from(now).unwrap_or(u64::MAX).max(last.saturating_add(1));
    sign(&signer.secret, sent, seq).map_err(|e| Failure::new(e.to_string()))
}

/// Remembers what was sent to a VM (by its id), once teepod has it.
///
/// # Errors
/// When it cannot be written.
pub fn remember(app: &AppId, vm: &str, sealed: &Sealed) -> Result<(), Failure> {
    let Some(file) = &sealed.signature else { return Ok(()) };
    let seq = EnvSignature::parse(file).map_err(|e| Failure::new(e.to_string()))?.seq;
    let path = record_path(app, vm)?;
    let known = record(&path)?.map(|r| r.digest);
    let digest = sealed.blob.as_deref().map(dstack_core::env_signature::digest).or(known);
    let Some(digest) = digest else { return Ok(()) };
    let json = serde_json::to_vec(&Record { version: 1, seq, digest })
        .map_err(|e| Failure::new(format!("cannot write what was sent: {e}")))?;
    places::make_directory(&directory(app)?, 0o700)?;
    places::replace(&path, &json, 0o600)
}

fn directory(app: &AppId) -> Result<PathBuf, Failure> {
    Ok(places::state()?.join("sent").join(app.to_string()))
}

/// A VM's id comes from the host, so it is no part of a path.
fn record_path(app: &AppId, vm: &str) -> Result<PathBuf, Failure> {
    let name: String = Sha256::digest(vm).iter().take(16).map(|b| format!("{b:02x}")).collect();
    Ok(directory(app)?.join(format!("{name}.json")))
}

/// The number of the last secrets sent to any VM of an app; 0 when there were none.
fn last_number(app: &AppId) -> Result<u64, Failure> {
    let directory = directory(app)?;
    let entries = match std::fs::read_dir(&directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        other => other.map_err(|e| places::cannot("read", &directory, &e))?,
    };
    let mut last = 0;
    for entry in entries {
        let path = entry.map_err(|e| places::cannot("read", &directory, &e))?.path();
        if path.extension().is_some_and(|e| e == "json") {
            last = last.max(record(&path)?.map_or(0, |r| r.seq));
        }
    }
    Ok(last)
}

fn record(path: &Path) -> Result<Option<Record>, Failure> {
    let Some(bytes) = places::read(path)? else { return Ok(None) };
    let parsed: Result<Record, _> = serde_json::from_slice(&bytes);
    match parsed {
        Ok(record) if record.version == 1 => Ok(Some(record)),
        _ => Err(Failure::new(format!("{} cannot be read", path.display()))
            .hint("remove it, and send the secrets again: --env-file FILE")),
    }
}

/// Checks that secrets reach an app whose compose file is used as it is.
///
/// # Errors
/// When it names another signer, or does not allow one of them.
pub fn check_fixed(
    variables: &Variables,
    allowed: Option<&[String]>,
    signer: Option<SignerKey>,
    own: Option<&Identity>,
) -> Result<(), Failure> {
    if let Some(name) = variables.keys().find(|n| allowed.is_some_and(|a| !a.contains(n))) {
        return Err(Failure::new(format!(
            "the app would not get {name}: it is not in allowed_envs of the compose file"
        )));
    }
    match (signer, own) {
        (Some(signer), Some(own)) if signer != own.public => Err(Failure::new(format!(
            "the app takes secrets from {signer} alone, and this machine's key is {}",
            own.public
        ))
        .hint("give the key that the app knows: --env-signer FILE")),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use dstack_keys::derive::x25519_public;
    use dstack_keys::env::{decrypt, verify};
    use dstack_keys::{Secret, ed25519};

    fn identity(n: u8) -> Identity {
        let secret = Secret::from([n; 32]);
        Identity { public: ed25519::public_key(&secret).unwrap(), secret }
    }

    #[test]
    fn t10_reserved_names_are_refused_first() {
        for (pair, part) in [("LD_PRELOAD=x", "reserved"), ("1A=x", "not allowed"), ("=x", "not allowed")] {
            let failure = gather(&[pair.to_owned()], &[]).unwrap_err();
            assert!(failure.message.contains(part), "{pair}: {failure}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "A=1\nDOCKER_HOST=s3cret\n").unwrap();
        let failure = gather(&[], &[file.path().to_owned()]).unwrap_err();
        assert!(failure.message.contains("reserved") && !failure.message.contains("s3cret"), "{failure}");
    }

    #[test]
    fn single_ones_win_over_files() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "A=1\nB='two words'\n").unwrap();
        let found = gather(&["A=3=4".to_owned()], &[file.path().to_owned()]).unwrap();
        let found: Vec<(&str, &str)> = found.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(found, [("A", "3=4"), ("B", "two words")]);
        let failure = gather(&["SURELY_NOT_SET_HERE".to_owned()], &[]).unwrap_err();
        assert!(failure.message.contains("environment"), "{failure}");
    }

    #[test]
    fn t09_p06_what_is_sealed_opens_for_the_app_and_names_its_sender() {
        let (key, own) = (Secret::from([3; 32]), identity(5));
        let target = Target { app: AppId::from([1; 20]), compose: ComposeHash::from([2; 32]) };
        let variables = gather(&["A=s3cret".to_owned()], &[]).unwrap();
        // The record of earlier secrets is not looked at here: the app is nobody's.
        let sealed = seal(&variables, &x25519_public(&key).unwrap(), Some(&own), target).unwrap();
        let blob = sealed.blob.unwrap();
        assert_eq!(decrypt(&blob, &key).unwrap(), variables);
        let sent = Sent::new(&target.app, &target.compose, &blob);
        let file = sealed.signature.unwrap();
        assert!(verify(&own.public, &sent, &file).unwrap() > 1_600_000_000_000);
        assert!(verify(&identity(6).public, &sent, &file).is_err());
        let unsigned = seal(&variables, &x25519_public(&key).unwrap(), None, target).unwrap();
        assert_eq!(unsigned.signature, None);
    }

    #[test]
    fn t09_a_fixed_document_must_know_sender_and_names() {
        let variables = gather(&["A=1".to_owned()], &[]).unwrap();
        let (own, other) = (identity(1), identity(2));
        let allowed = ["A".to_owned()];
        assert!(check_fixed(&variables, None, None, None).is_ok());
        assert!(check_fixed(&variables, Some(&allowed), Some(own.public), Some(&own)).is_ok());
        assert!(check_fixed(&variables, Some(&[]), None, None).unwrap_err().message.contains("allowed_envs"));
        let failure = check_fixed(&variables, None, Some(other.public), Some(&own)).unwrap_err();
        assert!(failure.hint.is_some_and(|h| h.contains("--env-signer")));
    }
}
