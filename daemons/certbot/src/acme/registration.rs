// SPDX-License-Identifier: Apache-2.0
//! Making an account for a key that is on the disk already, bound to an external one where the authority wants that.
//!
//! instant-acme makes either a key of its own or an account without a binding. `newAccount` gives the same account for
//! the same key however often it is asked, which is what a run after a kill needs.

use super::directory::Directory;
use super::{AcmeError, ExternalAccount, Refusal};
use crate::http::{Answer, Http};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION};
use http::{Method, Request};
use serde_json::{Value, json};

/// How often a rejected nonce is replaced.
pub(super) const NONCES: usize = 8;

/// The URL of the key's account; makes it when there is none.
///
/// # Errors
/// [`AcmeError`].
pub async fn register(
    http: &Http,
    directory: &Directory,
    key: &[u8],
    external: Option<&ExternalAccount>,
) -> Result<String, AcmeError> {
    let mut payload = serde_json::Map::from_iter([("termsOfServiceAgreed".to_owned(), json!(true))]);
    if let Some(external) = external {
        let binding = binding(external, &jwk(&parse(key)?)?, &directory.new_account);
        payload.insert("externalAccountBinding".to_owned(), binding);
    }
    call(http, directory, key, &Value::Object(payload)).await
}

/// The URL of the key's account; makes none.
///
/// # Errors
/// [`AcmeError`].
pub async fn find(http: &Http, directory: &Directory, key: &[u8]) -> Result<String, AcmeError> {
    call(http, directory, key, &json!({"onlyReturnExisting": true})).await
}

fn parse(key: &[u8]) -> Result<EcdsaKeyPair, AcmeError> {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key)
        .map_err(|_| AcmeError::Strange("the account's key on the disk is no P-256 key".into()))
}

async fn call(http: &Http, directory: &Directory, key: &[u8], payload: &Value) -> Result<String, AcmeError> {
    let key = parse(key)?;
    let jwk = jwk(&key)?;
    for _ in 0..NONCES {
        let nonce = nonce(http, directory).await?;
        let body = signed(&key, &jwk, &nonce, &directory.new_account, payload)?;
        let answer = post(http, &directory.new_account, &body).await?;
        match account_url(&answer)? {
            Some(url) => return Ok(url),
            None => tracing::debug!("a nonce was rejected"),
        }
    }
    let words = format!("it rejected {NONCES} nonces in a row");
    Err(AcmeError::Refused { what: "an account", words, kind: Refusal::Nonce })
}

/// `None` when another nonce may help.
fn account_url(answer: &Answer) -> Result<Option<String>, AcmeError> {
    if answer.status.is_success() {
        let url = answer
            .headers
            .get(LOCATION)
            .and_then(|v| v.to_str().ok())
            .filter(|url| url.starts_with("https://"));
        return url
            .map(|url| Some(url.to_owned()))
            .ok_or_else(|| AcmeError::Strange("a new account has no URL".into()));
    }
    let problem: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let member = |name: &str| problem.get(name).and_then(Value::as_str).unwrap_or_default();
    let kind = member("type").rsplit(':').next().unwrap_or_default().to_owned();
    match kind.as_str() {
        "badNonce" => Ok(None),
        "externalAccountRequired" => Err(AcmeError::ExternalAccount),
        _ => {
            let detail = member("detail");
            Err(AcmeError::Refused {
                what: "an account",
                words: format!("{detail} ({kind}, status {})", answer.status),
                kind: Refusal::of(&kind, answer.status.as_u16()),
            })
        }
    }
}

async fn nonce(http: &Http, directory: &Directory) -> Result<String, AcmeError> {
    let request = Request::builder().method(Method::HEAD).uri(&directory.new_nonce).body(Bytes::new());
    let answer = http.ask(request.map_err(|e| AcmeError::Strange(e.to_string()))?).await?;
    if !answer.status.is_success() {
        let (words, kind) = (format!("status {}", answer.status), Refusal::of("", answer.status.as_u16()));
        return Err(AcmeError::Refused { what: "a nonce", words, kind });
    }
    let nonce = answer.headers.get("replay-nonce").and_then(|v| v.to_str().ok());
    nonce.map(ToOwned::to_owned).ok_or_else(|| AcmeError::Strange("it gives no nonce".into()))
}

async fn post(http: &Http, url: &str, body: &Value) -> Result<Answer, AcmeError> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(url)
        .header(CONTENT_TYPE, "application/jose+json")
        .body(Bytes::from(body.to_string()))
        .map_err(|e| AcmeError::Strange(e.to_string()))?;
    Ok(http.ask(request).await?)
}

fn encode(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

/// The public key, with its members in the order of RFC 7638.
fn jwk(key: &EcdsaKeyPair) -> Result<Value, AcmeError> {
    let point = key.public_key().as_ref();
    let (x, y) = match point.split_first() {
        Some((4, rest)) if rest.len() == 64 => rest.split_at(32),
        _ => return Err(AcmeError::Strange("the account's key on the disk is no P-256 key".into())),
    };
    let text = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
    Ok(json!({"crv": "P-256", "kty": "EC", "x": text(x), "y": text(y)}))
}

fn signed(
    key: &EcdsaKeyPair,
    jwk: &Value,
    nonce: &str,
    url: &str,
    payload: &Value,
) -> Result<Value, AcmeError> {
    let protected = encode(&json!({"alg": "ES256", "jwk": jwk, "nonce": nonce, "url": url}));
    let payload = encode(payload);
    let signature = key.sign(&SystemRandom::new(), format!("{protected}.{payload}").as_bytes());
    let signature = signature.map_err(|_| AcmeError::Strange("the account's key cannot sign".into()))?;
    Ok(json!({"protected": protected, "payload": payload, "signature": URL_SAFE_NO_PAD.encode(signature)}))
}

/// RFC 8555, 7.3.4.
fn binding(external: &ExternalAccount, jwk: &Value, url: &str) -> Value {
    let protected = encode(&json!({"alg": "HS256", "kid": external.key_id, "url": url}));
    let payload = encode(jwk);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &external.key);
    let signature = hmac::sign(&key, format!("{protected}.{payload}").as_bytes());
    json!({"protected": protected, "payload": payload, "signature": URL_SAFE_NO_PAD.encode(signature)})
}
