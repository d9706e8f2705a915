// SPDX-License-Identifier: Apache-2.0
//! What an authority says of itself, and when it wants a certificate renewed. Pure.

use crate::renewal::Suggested;
use serde::Deserialize;

/// Longest pause between two questions about renewal, seconds, whatever the authority says; RFC 9773 suggests limits.
const ASK_MAX: i64 = 86_400;
/// Shortest one.
const ASK_MIN: i64 = 60;
/// Most names of an authority.
const NAMES_MAX: usize = 16;

/// The directory of an authority (RFC 8555, 7.1.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Where nonces are.
    pub new_nonce: String,
    /// Where accounts are made.
    pub new_account: String,
    /// Where renewal is asked about; `None`: it suggests nothing.
    pub renewal_info: Option<String>,
    /// Names by which CAA records mean it.
    pub caa_identities: Vec<String>,
    /// Whether accounts need an external binding.
    pub external_account_required: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    new_nonce: String,
    new_account: String,
    renewal_info: Option<String>,
    #[serde(default)]
    meta: Meta,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    caa_identities: Vec<String>,
    external_account_required: bool,
}

/// Parses a directory.
///
/// # Errors
/// A sentence on what is wrong.
pub fn parse(bytes: &[u8]) -> Result<Directory, String> {
    let raw: Raw = serde_json::from_slice(bytes).map_err(|e| format!("is no ACME directory: {e}"))?;
    let urls = [Some(&raw.new_nonce), Some(&raw.new_account), raw.renewal_info.as_ref()];
    if !urls.into_iter().flatten().all(|url| url.starts_with("https://")) {
        return Err("is no ACME directory: a URL is not https".to_owned());
    }
    if raw.meta.caa_identities.len() > NAMES_MAX {
        return Err(format!("is no ACME directory: it has more than {NAMES_MAX} caaIdentities"));
    }
    Ok(Directory {
        new_nonce: raw.new_nonce,
        new_account: raw.new_account,
        renewal_info: raw.renewal_info,
        caa_identities: raw.meta.caa_identities.iter().map(|n| n.to_ascii_lowercase()).collect(),
        external_account_required: raw.meta.external_account_required,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RenewalInfo {
    suggested_window: Window,
}

#[derive(Deserialize)]
struct Window {
    start: String,
    end: String,
}

/// Parses what an authority suggests (RFC 9773); `ask_again` is its `Retry-After` in Unix seconds.
///
/// # Errors
/// A sentence on what is wrong.
pub fn parse_suggestion(bytes: &[u8], now: i64, ask_again: Option<i64>) -> Result<Suggested, String> {
    let raw: RenewalInfo =
        serde_json::from_slice(bytes).map_err(|e| format!("is no renewal information: {e}"))?;
    let second = |text: &str| {
        let time = text.parse::<jiff::Timestamp>();
        time.map(jiff::Timestamp::as_second).map_err(|e| format!("is no renewal information: {text:?}: {e}"))
    };
    let (start, end) = (second(&raw.suggested_window.start)?, second(&raw.suggested_window.end)?);
    let ask_again =
        ask_again.unwrap_or(now + 6 * 3600).clamp(now.saturating_add(ASK_MIN), now.saturating_add(ASK_MAX));
    Ok(Suggested { start, end, ask_again })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn directories() {
        let text = r#"{"newNonce":"https://a/n","newAccount":"https://a/a","newOrder":"https://a/o","renewalInfo":"https://a/r","meta":{"caaIdentities":["LetsEncrypt.org"],"website":"x"}}"#;
        let found = parse(text.as_bytes()).unwrap();
        assert_eq!(
            (found.caa_identities, found.external_account_required),
            (vec!["letsencrypt.org".to_owned()], false)
        );
        assert_eq!(found.renewal_info.as_deref(), Some("https://a/r"));
        assert!(parse(text.replacen("https://a/n", "http://a/n", 1).as_bytes()).is_err());
        let small = parse(br#"{"newNonce":"https://a","newAccount":"https://b"}"#).unwrap();
        assert!(small.renewal_info.is_none() && small.caa_identities.is_empty());
        for bad in ["", "[]", "{}", r#"{"newNonce":1,"newAccount":"https://b"}"#] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn suggestions() {
        let text = r#"{"suggestedWindow":{"start":"2026-01-02T03:04:05Z","end":"2026-01-03T03:04:05.5Z"},"explanationURL":"https://a"}"#;
        let found = parse_suggestion(text.as_bytes(), 1_000, Some(i64::MAX)).unwrap();
        assert_eq!((found.end - found.start, found.ask_again), (86_400, 1_000 + ASK_MAX));
        assert_eq!(parse_suggestion(text.as_bytes(), 1_000, Some(0)).unwrap().ask_again, 1_060);
        assert!(parse_suggestion(br#"{"suggestedWindow":{"start":"x","end":"y"}}"#, 0, None).is_err());
    }
}
