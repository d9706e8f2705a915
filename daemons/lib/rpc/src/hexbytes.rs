// SPDX-License-Identifier: Apache-2.0
//! serde for `bytes` fields: lower-case hex out; hex of either case in, with any number of `0x` before it.
//!
//! Use with `#[serde(with = "dstack_rpc::hexbytes")]` on a `Vec<u8>`.

use serde::{Deserialize, Deserializer, Serializer, de::Error};

/// Writes lower-case hex.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&hex::encode(bytes))
}

/// Reads hex; `null` is empty.
///
/// # Errors
/// When the text is no hex of whole bytes.
pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    let text = Option::<String>::deserialize(from)?.unwrap_or_default();
    parse(&text).map_err(|e| D::Error::custom(format!("not hexadecimal: {e}")))
}

/// Parses hex of either case, with any number of `0x` before it.
///
/// # Errors
/// When the rest is no hex of whole bytes.
pub fn parse(text: &str) -> Result<Vec<u8>, hex::FromHexError> {
    hex::decode(text.trim_start_matches("0x"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::parse;

    #[test]
    fn prefixes_and_case() {
        for (text, bytes) in
            [("", &[][..]), ("0x", &[]), ("0x0x12aB", &[0x12, 0xab]), ("1234DEAD", &[0x12, 0x34, 0xde, 0xad])]
        {
            assert_eq!(parse(text).unwrap(), bytes, "{text}");
        }
        assert!(parse("123").is_err());
        assert!(parse("xy").is_err());
    }
}
