// SPDX-License-Identifier: Apache-2.0
//! Encrypted credentials by `systemd-creds`, for programs of root; secrets go through pipes, never on a command line.

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use zeroize::Zeroizing;

/// Where units find encrypted credentials by their bare names.
pub const STORE: &str = "/etc/credstore.encrypted";
const PROGRAM: &str = "/usr/bin/systemd-creds";

/// Why nothing was encrypted or decrypted.
#[derive(Debug, thiserror::Error)]
pub enum SealingError {
    /// The program cannot be run.
    #[error("systemd-creds: {0}")]
    Io(#[from] io::Error),
    /// It ended otherwise than well; what it said is in the journal or on the terminal.
    #[error("systemd-creds: ended with {0}")]
    Failed(std::process::ExitStatus),
}

/// Encrypts a credential; `with_key` is what `--with-key=` takes, such as `host`.
///
/// # Errors
/// [`SealingError`].
pub fn encrypt(secret: &[u8], name: &str, with_key: &str) -> Result<Vec<u8>, SealingError> {
    let mut child = Command::new(PROGRAM)
        .arg("encrypt")
        .args([format!("--name={name}"), format!("--with-key={with_key}"), "-".into(), "-".into()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    // A credential is far smaller than a pipe holds, so this never waits for the other end.
    let sent = child.stdin.take().map_or(Ok(()), |mut pipe| pipe.write_all(secret));
    let output = child.wait_with_output()?;
    sent?;
    if output.status.success() && !output.stdout.is_empty() {
        Ok(output.stdout)
    } else {
        Err(SealingError::Failed(output.status))
    }
}

/// Decrypts the credential in a file.
///
/// # Errors
/// [`SealingError`]: also when this machine did not encrypt it.
pub fn decrypt(path: &Path, name: &str) -> Result<Zeroizing<Vec<u8>>, SealingError> {
    let output = Command::new(PROGRAM)
        .arg("decrypt")
        .arg(format!("--name={name}"))
        .arg(path)
        .arg("-")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()?;
    let secret = Zeroizing::new(output.stdout);
    if output.status.success() { Ok(secret) } else { Err(SealingError::Failed(output.status)) }
}
