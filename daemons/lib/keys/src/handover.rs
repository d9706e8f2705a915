// SPDX-License-Identifier: Apache-2.0
//! What the boot hands over to the guest agent: the app's keys, and where they came from.
//!
//! `dstack-prepare` writes it to `/run/dstack/private/app-keys.json` (0600); the agent gets it as the credential
//! `app-keys`. Secrets are wiped when the value is dropped, and never printed.

use crate::{KeyError, Secret};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// Version of the format.
pub const VERSION: u32 = 1;
/// Largest document, bytes.
pub const APP_KEYS_MAX: usize = 64 * 1024;

/// Who gave the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// The key service that the compose file pins.
    Kms,
    /// Nobody: they are made at each boot (trust rule T24).
    None,
}

/// The keys of one app in one boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppKeys {
    /// [`VERSION`].
    pub version: u32,
    /// Who gave them.
    pub provider: Provider,
    /// The key service's public key (SPKI DER) in hex; empty for [`Provider::None`].
    pub provider_id: String,
    /// Where the key service may be: hints.
    pub kms_urls: Vec<String>,
    /// The certificate of the CA that issues the app's certificates, PEM.
    pub ca_cert: String,
    /// The scalar of that CA, for [`Provider::None`] alone.
    #[serde(with = "optional_hex")]
    pub ca_key: Option<Secret>,
    /// The secp256k1 scalar of the app.
    #[serde(with = "secret_hex")]
    pub k256_key: Secret,
    /// The key service's signature over that key's public half in hex; empty for [`Provider::None`].
    pub k256_signature: String,
    /// The app id of the gateway that the key service names; empty when there is none.
    pub gateway_app_id: String,
    /// The image hash that was attested, hex.
    pub os_image_hash: String,
    /// The VM's shape as the host claims it, JSON text.
    pub vm_config: String,
}

impl AppKeys {
    /// Reads a document.
    ///
    /// # Errors
    /// [`KeyError::Form`], which carries nothing of the document.
    pub fn parse(json: &[u8]) -> Result<Self, KeyError> {
        if json.len() > APP_KEYS_MAX {
            return Err(KeyError::Form("app keys are larger than 64 KiB"));
        }
        let form = |_| KeyError::Form("not a document of app keys");
        let keys: Self = serde_json::from_slice(json).map_err(form)?;
        if keys.version == VERSION { Ok(keys) } else { Err(KeyError::Form("unknown version of app keys")) }
    }

    /// The document, wiped when dropped.
    ///
    /// # Errors
    /// [`KeyError::Form`] when it is larger than any reader accepts.
    pub fn to_json(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        // Room from the start: a buffer that grows would leave parts of the keys behind.
        let mut json = Zeroizing::new(Vec::with_capacity(APP_KEYS_MAX));
        serde_json::to_writer(&mut *json, self).map_err(|_| KeyError::Form("app keys are not JSON"))?;
        if json.len() > APP_KEYS_MAX {
            return Err(KeyError::Form("app keys are larger than 64 KiB"));
        }
        Ok(json)
    }
}

/// A secret as 64 hex digits, for `#[serde(with = …)]`.
pub mod secret_hex {
    use super::{Deserialize, Deserializer, Secret, Serializer};

    /// Writes it.
    ///
    /// # Errors
    /// The writer's.
    pub fn serialize<S: Serializer>(secret: &Secret, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&secret.expose_hex())
    }

    /// Reads it.
    ///
    /// # Errors
    /// The reader's, and for what is no secret.
    pub fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Secret, D::Error> {
        super::from_hex(String::deserialize(input)?)
    }
}

/// The same, or null.
pub mod optional_hex {
    use super::{Deserialize, Deserializer, Secret, Serializer};

    /// Writes it.
    ///
    /// # Errors
    /// The writer's.
    pub fn serialize<S: Serializer>(secret: &Option<Secret>, out: S) -> Result<S::Ok, S::Error> {
        match secret {
            Some(secret) => super::secret_hex::serialize(secret, out),
            None => out.serialize_none(),
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// The reader's, and for what is no secret.
    pub fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Secret>, D::Error> {
        Option::<String>::deserialize(input)?.map(super::from_hex).transpose()
    }
}

fn from_hex<E: serde::de::Error>(text: String) -> Result<Secret, E> {
    let text = Zeroizing::new(text);
    let mut bytes = Zeroizing::new([0; 32]);
    hex::decode_to_slice(&*text, &mut *bytes).map_err(|_| E::custom("a key has 64 hex digits"))?;
    Ok(Secret::from(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(ca_key: Option<Secret>) -> AppKeys {
        AppKeys {
            version: VERSION,
            provider: if ca_key.is_some() { Provider::None } else { Provider::Kms },
            provider_id: "3059".into(),
            kms_urls: vec!["https://192.0.2.1:9043".into()],
            ca_cert: "-----BEGIN CERTIFICATE-----\n".into(),
            ca_key,
            k256_key: Secret::from([0xcd; 32]),
            k256_signature: "ef".repeat(65),
            gateway_app_id: String::new(),
            os_image_hash: "01".repeat(32),
            vm_config: "{}".into(),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for keys in [sample(None), sample(Some(Secret::from([0xab; 32])))] {
            assert_eq!(AppKeys::parse(&keys.to_json().unwrap()).unwrap(), keys);
        }
        let text = String::from_utf8(sample(None).to_json().unwrap().to_vec()).unwrap();
        assert!(text.contains(r#""version":1,"provider":"kms","provider_id":"3059""#), "{text}");
        assert!(text.contains(r#""ca_key":null"#), "{text}");
    }

    #[test]
    fn p02_neither_keys_nor_errors_print_a_secret() {
        let keys = sample(Some(Secret::from([0xab; 32])));
        let json = String::from_utf8(keys.to_json().unwrap().to_vec()).unwrap();
        let printed = format!("{keys:?}");
        for broken in
            [json.replace("\"version\":1", "\"version\":2"), json.replace("abab", "xxxx"), json[9..].into()]
        {
            let error = AppKeys::parse(broken.as_bytes()).unwrap_err();
            let printed = format!("{printed}{error}{error:?}");
            assert!(
                !printed.contains("abab") && !printed.contains("cdcd") && !printed.contains("171"),
                "{printed}"
            );
        }
    }

    #[test]
    fn p02_secrets_are_wiped() {
        const fn wiped<T: zeroize::ZeroizeOnDrop>(_: &T) {}
        let keys = sample(Some(Secret::from([0xab; 32])));
        wiped(&keys.k256_key);
        wiped(keys.ca_key.as_ref().unwrap());
        let json = keys.to_json().unwrap();
        wiped(&json);
        assert_eq!(json.capacity(), APP_KEYS_MAX, "the buffer never moved, so nothing of it stays behind");
    }

    #[test]
    fn too_large_a_document_is_refused_on_both_sides() {
        let mut keys = sample(None);
        keys.vm_config = "x".repeat(APP_KEYS_MAX);
        assert!(keys.to_json().is_err());
        assert!(AppKeys::parse(&vec![b' '; APP_KEYS_MAX + 1]).is_err());
    }
}
