// SPDX-License-Identifier: Apache-2.0
//! Tokens: from a file or a question into the credential store, encrypted; never on a command line.

use super::answers::{Answers, Dns};
use super::ask::Asker;
use super::settings::{CLOUDFLARE_TOKEN, EAB_KEY, TSIG_KEY};
use crate::cli_init::option_of;
use crate::errors::Failure;
use crate::places;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Longest secret, bytes.
const SECRET_MAX: usize = 4096;

/// A secret that the answers need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    /// Name of its credential.
    pub name: &'static str,
    /// What it is, for questions.
    pub what: &'static str,
    /// The key of the answers that names its file.
    pub key: &'static str,
    /// The file.
    pub file: Option<PathBuf>,
}

/// The secrets that the answers need.
#[must_use]
pub fn needed(answers: &Answers) -> Vec<Needed> {
    let Some(acme) = answers.acme() else { return Vec::new() };
    let dns = match &acme.dns {
        Dns::Cloudflare { token_file, .. } => Needed {
            name: CLOUDFLARE_TOKEN,
            what: "API token of Cloudflare",
            key: "certificate.dns.cloudflare.token_file",
            file: token_file.clone(),
        },
        Dns::Rfc2136 { key_file, .. } => Needed {
            name: TSIG_KEY,
            what: "TSIG key, base64",
            key: "certificate.dns.rfc2136.key_file",
            file: key_file.clone(),
        },
    };
    let eab = acme.eab.as_ref().map(|(_, file)| Needed {
        name: EAB_KEY,
        what: "Key of the external account, base64url",
        key: "certificate.eab.key_file",
        file: file.clone(),
    });
    std::iter::once(dns).chain(eab).collect()
}

/// What a secret is, once it was looked for.
pub type Value = Zeroizing<String>;

/// The secret of the answers; `None` when there is none, and the stored one is to stay.
///
/// # Errors
/// A file that cannot be read; no secret at all and none stored.
pub fn get(
    needed: &Needed,
    is_stored: bool,
    asker: Option<&mut dyn Asker>,
) -> Result<Option<Value>, Failure> {
    if let Some(file) = &needed.file
        && let Some(value) = read(file)?
    {
        return Ok(Some(value));
    }
    match (asker, &needed.file) {
        // Also for one that is stored: it may be the wrong one, and nobody could say so otherwise.
        (Some(asker), _) => ask(needed, is_stored, asker),
        (None, _) if is_stored => Ok(None),
        (None, Some(file)) => Err(Failure::usage(format!("{}: there is no {}", needed.key, file.display()))
            .hint("write the secret into it, readable by root alone: chmod 600")),
        (None, None) => {
            let option = option_of(needed.key).unwrap_or("the answers");
            Err(Failure::usage(format!("{}: is missing, and no {} is stored yet", needed.key, needed.what))
                .hint(format!(
                    "write the secret into a file that root alone can read, and name it by {option} FILE"
                )))
        }
    }
}

/// Asks until something usable is typed; with a stored one, nothing is.
fn ask(needed: &Needed, is_stored: bool, asker: &mut dyn Asker) -> Result<Option<Value>, Failure> {
    let what = match is_stored {
        true => format!("{}, empty: the stored one stays", needed.what),
        false => needed.what.to_owned(),
    };
    loop {
        let typed = asker.secret(&what)?;
        if is_stored && typed.trim().is_empty() {
            return Ok(None);
        }
        match clean("it", &typed) {
            Ok(value) => return Ok(Some(value)),
            Err(failure) => asker.say(&format!("  {}", failure.message)),
        }
    }
}

/// Reads a secret's file; `None` when there is none.
fn read(path: &Path) -> Result<Option<Value>, Failure> {
    let Some(bytes) = places::read(path)? else { return Ok(None) };
    let text = std::str::from_utf8(&bytes);
    let text = text.map_err(|_| Failure::usage(format!("{} is no text", path.display())))?;
    let secret = clean(&path.display().to_string(), text)?;
    if std::fs::metadata(path).is_ok_and(|m| m.mode() & 0o004 != 0) {
        crate::output::note(&format!(
            "note: every user of this machine can read {}; remove it once it is stored, or: chmod 600",
            path.display()
        ));
    }
    Ok(Some(secret))
}

/// A secret is one word.
fn clean(place: &str, text: &str) -> Result<Value, Failure> {
    let word = text.trim();
    if word.is_empty() || word.len() > SECRET_MAX || !word.bytes().all(|b| b.is_ascii_graphic()) {
        let reason =
            format!("{place}: must hold the secret and nothing else, one word of at most {SECRET_MAX} bytes");
        return Err(Failure::usage(reason));
    }
    Ok(Zeroizing::new(word.to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::ask::tests::Script;
    use super::*;

    fn token(file: Option<PathBuf>) -> Needed {
        Needed { name: CLOUDFLARE_TOKEN, what: "API token of Cloudflare", key: "the.key", file }
    }

    #[test]
    fn a_secret_comes_from_its_file_or_a_question_or_stays_as_it_is_stored() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        let of_file = token(Some(file.clone()));
        let error = get(&of_file, false, None).unwrap_err();
        assert!(error.message.starts_with("the.key: there is no ") && error.hint.is_some(), "{error}");
        assert_eq!(get(&of_file, true, None).unwrap(), None, "the file may go once it is stored");
        std::fs::write(&file, " s3cret\n").unwrap();
        assert_eq!(get(&of_file, true, None).unwrap().unwrap().as_str(), "s3cret");
        assert!(get(&token(None), false, None).unwrap_err().message.contains("the.key: is missing"));
        assert_eq!(get(&token(None), true, None).unwrap(), None);
        let mut script = Script::new(&["typed"]);
        assert_eq!(get(&token(None), false, Some(&mut script)).unwrap().unwrap().as_str(), "typed");
        assert!(script.said.contains("API token of Cloudflare"), "{}", script.said);
    }

    #[test]
    fn a_stored_secret_is_asked_for_again_and_stays_when_nothing_is_typed() {
        let mut nothing = Script::new(&[""]);
        assert_eq!(get(&token(None), true, Some(&mut nothing)).unwrap(), None);
        assert!(nothing.said.contains("the stored one stays"), "{}", nothing.said);
        let other = get(&token(None), true, Some(&mut Script::new(&["right"]))).unwrap();
        assert_eq!(other.unwrap().as_str(), "right");
        let gone = token(Some("/nonexistent/token".into()));
        assert_eq!(get(&gone, true, Some(&mut Script::new(&["right"]))).unwrap().unwrap().as_str(), "right");
    }

    #[test]
    fn an_empty_or_odd_secret_is_asked_for_again() {
        let mut script = Script::new(&["", "two words", "right"]);
        assert_eq!(get(&token(None), false, Some(&mut script)).unwrap().unwrap().as_str(), "right");
        assert!(script.said.contains("must hold the secret and nothing else"), "{}", script.said);
    }

    #[test]
    fn a_file_of_something_else_is_refused_without_showing_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        for wrong in ["", "\n", "two words", "\u{1}x", "ä"] {
            std::fs::write(&file, wrong).unwrap();
            let error = get(&token(Some(file.clone())), true, None).unwrap_err();
            assert!(error.message.contains("token: must hold the secret and nothing else"), "{error}");
            assert!(!error.message.contains("two words"));
        }
        assert!(get(&token(Some(directory.path().into())), true, None).is_err(), "a directory is no file");
    }
}
