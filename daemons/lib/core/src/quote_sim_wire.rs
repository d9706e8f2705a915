// SPDX-License-Identifier: Apache-2.0
//! Frames between a guest and the simulated TEE of its host.
//!
//! A frame is its length as four big-endian bytes and that many bytes of JSON. Requests and replies alternate; a
//! connection carries as many as it likes. A reply is what was asked for, or `{"error": "…"}`.

use crate::event_log::Digest;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Largest frame, bytes, without its length.
pub const FRAME_MAX: usize = 1024 * 1024;
/// Largest request, bytes: each is a few hundred.
pub const REQUEST_MAX: usize = 4096;
/// Vsock port on the host.
pub const PORT: u32 = 9998;
/// Unix socket on the host.
pub const SOCKET: &str = "/run/dstack/quote-sim.sock";

/// What a guest may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Request {
    /// A quote over this report data.
    Quote {
        /// 64 bytes.
        #[serde(with = "hex::serde")]
        report_data: [u8; 64],
    },
    /// Extend RTMR3, the only register that can be.
    Extend {
        /// SHA-384 digest.
        #[serde(with = "hex::serde")]
        digest: Digest,
    },
    /// Read the registers.
    Registers,
    /// Collateral and root certificate; any local process may ask.
    Collateral,
}

/// Answer to [`Request::Quote`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quoted {
    /// The quote, raw.
    #[serde(with = "hex::serde")]
    pub quote: Vec<u8>,
}

/// Answer to [`Request::Extend`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extended {
    /// RTMR3 afterwards.
    #[serde(with = "hex::serde")]
    pub rtmr3: Digest,
}

/// Answer to [`Request::Registers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// Initial contents.
    #[serde(with = "hex::serde")]
    pub mrtd: Digest,
    /// Firmware's configuration.
    #[serde(with = "hex::serde")]
    pub rtmr0: Digest,
    /// Kernel.
    #[serde(with = "hex::serde")]
    pub rtmr1: Digest,
    /// Command line.
    #[serde(with = "hex::serde")]
    pub rtmr2: Digest,
    /// Runtime events.
    #[serde(with = "hex::serde")]
    pub rtmr3: Digest,
    /// Chosen by the host at launch.
    #[serde(with = "hex::serde")]
    pub mr_config_id: Digest,
}

/// Answer to [`Request::Collateral`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certified {
    /// Collateral in the form that verifiers parse.
    pub collateral: serde_json::Value,
    /// The root certificate, PEM.
    pub root: String,
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Why, in a sentence.
    pub error: String,
}

/// Why a frame cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Over its limit.
    #[error("a frame of {0} bytes is over the limit")]
    TooLarge(usize),
    /// Not the JSON it should be.
    #[error("a frame is not what it should be: {0}")]
    Json(String),
    /// The other end refused.
    #[error("the simulated TEE refused: {0}")]
    Refused(String),
}

/// The length that the head of a frame announces.
///
/// # Errors
/// [`WireError::TooLarge`] over `max`.
pub fn length(head: [u8; 4], max: usize) -> Result<usize, WireError> {
    let length = usize::try_from(u32::from_be_bytes(head)).unwrap_or(usize::MAX);
    if length > max { Err(WireError::TooLarge(length)) } else { Ok(length) }
}

/// A whole frame around a message.
///
/// # Errors
/// [`WireError::TooLarge`] over [`FRAME_MAX`]; [`WireError::Json`] for what has no JSON form.
pub fn frame<T: Serialize>(message: &T) -> Result<Vec<u8>, WireError> {
    let body = serde_json::to_vec(message).map_err(|e| WireError::Json(e.to_string()))?;
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= FRAME_MAX);
    let length = length.ok_or(WireError::TooLarge(body.len()))?;
    Ok([&length.to_be_bytes()[..], &body].concat())
}

/// Parses the body of a request's frame.
///
/// # Errors
/// [`WireError::TooLarge`] over [`REQUEST_MAX`], or [`WireError::Json`].
pub fn parse_request(body: &[u8]) -> Result<Request, WireError> {
    if body.len() > REQUEST_MAX {
        return Err(WireError::TooLarge(body.len()));
    }
    serde_json::from_slice(body).map_err(|e| WireError::Json(e.to_string()))
}

/// Parses the body of a reply's frame.
///
/// # Errors
/// [`WireError::Refused`] with what the other end said, or [`WireError::Json`].
pub fn parse_reply<T: DeserializeOwned>(body: &[u8]) -> Result<T, WireError> {
    if body.len() > FRAME_MAX {
        return Err(WireError::TooLarge(body.len()));
    }
    if let Ok(refused) = serde_json::from_slice::<Refused>(body) {
        return Err(WireError::Refused(
            refused.error.chars().filter(|c| !c.is_control()).take(500).collect(),
        ));
    }
    serde_json::from_slice(body).map_err(|e| WireError::Json(e.to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_these_texts() {
        let cases = [
            (
                Request::Quote { report_data: [1; 64] },
                format!(r#"{{"op":"quote","report_data":"{}"}}"#, "01".repeat(64)),
            ),
            (
                Request::Extend { digest: [2; 48] },
                format!(r#"{{"op":"extend","digest":"{}"}}"#, "02".repeat(48)),
            ),
            (Request::Registers, r#"{"op":"registers"}"#.to_owned()),
            (Request::Collateral, r#"{"op":"collateral"}"#.to_owned()),
        ];
        for (request, text) in cases {
            let frame = frame(&request).unwrap();
            let (head, body) = frame.split_at(4);
            assert_eq!(length(head.try_into().unwrap(), REQUEST_MAX), Ok(text.len()));
            assert_eq!(body, text.as_bytes());
            assert_eq!(parse_request(body), Ok(request));
        }
    }

    #[test]
    fn p15_frames_have_limits_and_forms() {
        assert_eq!(length([0, 0x10, 0, 1], FRAME_MAX), Err(WireError::TooLarge(FRAME_MAX + 1)));
        assert_eq!(length([255; 4], FRAME_MAX), Err(WireError::TooLarge(0xffff_ffff)));
        assert!(matches!(parse_request(&[b' '; REQUEST_MAX + 1]), Err(WireError::TooLarge(_))));
        let short = format!(r#"{{"op":"extend","digest":"{}"}}"#, "02".repeat(47));
        for bad in ["", "{}", "[]", r#"{"op":"sign"}"#, r#"{"op":"quote"}"#, &short] {
            assert!(matches!(parse_request(bad.as_bytes()), Err(WireError::Json(_))), "{bad}");
        }
    }

    #[test]
    fn a_refusal_is_an_error_without_control_characters() {
        let reply = parse_reply::<Quoted>(br#"{"error":"no\u001b such VM"}"#);
        assert_eq!(reply, Err(WireError::Refused("no such VM".into())));
        assert_eq!(parse_reply::<Quoted>(br#"{"quote":"0102"}"#).unwrap().quote, [1, 2]);
        assert!(matches!(parse_reply::<Extended>(br#"{"quote":"0102"}"#), Err(WireError::Json(_))));
    }
}
