// SPDX-License-Identifier: Apache-2.0
//! The bearer token: from credential `teepod.token`, else made once and kept in the state directory.

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use dstack_service::{credentials, state};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;
use zeroize::Zeroizing;

const CREDENTIAL: &str = "teepod.token";
const FILE: &str = "token";
/// Fewest characters of a token that an operator sets.
const LENGTH_MIN: usize = 16;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The credential.
    #[error(transparent)]
    Credential(#[from] credentials::CredentialError),
    /// The file in the state directory.
    #[error(transparent)]
    State(#[from] state::StateError),
    /// It cannot be read.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// Too short, or not printable.
    #[error("the token of {0} is not usable: use 16 or more printable characters without spaces")]
    Form(String),
    /// The kernel gave no random bytes.
    #[error("no random bytes: {0}")]
    Random(getrandom::Error),
}

/// A token; only its hash is kept, which also makes comparing it safe.
#[derive(Debug)]
pub struct Token([u8; 32]);

impl Token {
    /// Reads the token, making one at the first start (mode 0600).
    ///
    /// # Errors
    /// [`TokenError`] says which file is wrong; unreadable is never taken for absent.
    pub fn load(state_directory: &Path) -> Result<Self, TokenError> {
        if let Some(bytes) = credentials::read_optional(CREDENTIAL)? {
            return Self::new(&bytes, &format!("credential {CREDENTIAL}"));
        }
        let path = state_directory.join(FILE);
        match std::fs::read(&path).map(Zeroizing::new) {
            Ok(bytes) => Self::new(&bytes, &path.display().to_string()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::make(&path),
            Err(error) => Err(TokenError::Io { path: path.display().to_string(), error }),
        }
    }

    fn make(path: &Path) -> Result<Self, TokenError> {
        let mut random = Zeroizing::new([0; 32]);
        getrandom::fill(random.as_mut_slice()).map_err(TokenError::Random)?;
        let text = Zeroizing::new(format!("{}\n", hex::encode(random.as_slice())));
        state::replace(path, text.as_bytes(), 0o600)?;
        Self::new(text.as_bytes(), &path.display().to_string())
    }

    fn new(bytes: &[u8], source: &str) -> Result<Self, TokenError> {
        let token = bytes.trim_ascii();
        if token.len() < LENGTH_MIN || !token.iter().all(u8::is_ascii_graphic) {
            return Err(TokenError::Form(source.to_owned()));
        }
        Ok(Self(Sha256::digest(token).into()))
    }

    fn accepts(&self, header: &[u8]) -> bool {
        let Some(token) = header.strip_prefix(b"Bearer ") else { return false };
        let given: [u8; 32] = Sha256::digest(token).into();
        given == self.0
    }
}

/// Lets a request pass that carries the token.
pub async fn check(State(token): State<Option<Arc<Token>>>, request: Request, next: Next) -> Response {
    let header = request.headers().get(header::AUTHORIZATION).map(|v| v.as_bytes());
    match token {
        Some(token) if !header.is_some_and(|h| token.accepts(h)) => refuse(),
        _ => next.run(request).await,
    }
}

fn refuse() -> Response {
    let text = "send `Authorization: Bearer TOKEN`; the token is in /var/lib/dstack/teepod/token\n";
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], text).into_response()
}

/// Whatever has no route.
pub async fn not_found() -> (StatusCode, &'static str) {
    (StatusCode::NOT_FOUND, "there is nothing here\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn p32_the_token_is_made_once_private_and_needed() {
        let dir = tempfile::tempdir().unwrap();
        let token = Token::load(dir.path()).unwrap();
        let path = dir.path().join(FILE);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(token.accepts(format!("Bearer {}", text.trim()).as_bytes()));
        assert!(Token::load(dir.path()).unwrap().accepts(format!("Bearer {}", text.trim()).as_bytes()));
        for wrong in ["", "Bearer ", "Bearer wrong", text.trim(), &format!("bearer {}", text.trim())] {
            assert!(!token.accepts(wrong.as_bytes()), "{wrong}");
        }
        assert!(!format!("{token:?}").contains(text.trim()));
    }

    #[test]
    fn p30_a_useless_token_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["", "short\n", "with spaces with spaces"] {
            std::fs::write(dir.path().join(FILE), bad).unwrap();
            assert!(matches!(Token::load(dir.path()), Err(TokenError::Form(_))), "{bad:?}");
        }
    }
}
