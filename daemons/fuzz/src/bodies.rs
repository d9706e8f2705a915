// SPDX-License-Identifier: Apache-2.0
//! Targets for what is called: bodies of pRPC, and the encrypted environment that travels in one.

use dstack_keys::{Secret, derive, env};
use dstack_rpc::wire::{self, Format};
use dstack_rpc::{dstack, guest, kms, tappd, teepod, worker};
use prost::Message;
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

/// Key and blob of the original's published vector.
const SECRET: &str = "7c282bf94b35dc47801dc953bfa0896fc2bd313381d3e8eca4e42f6536d2a96f";
const BLOB: &str = "0bd18749612f4c8b9dd583c7d6a646b90abd34e3c731a7708d0caf9039095641e1f0948e775f0b7351788db7\
                    f246d51806954626dcccb6a60d64665ca3715c6bef75616cab476d27bba04080361200d6a58cec";

/// What is no environment is refused; one that is allowed survives being sent.
pub fn encrypted_env(bytes: &[u8]) {
    let secret = secret();
    if let Ok(variables) = env::decrypt(bytes, &secret) {
        assert!(variables.len() <= env::VARIABLES_MAX, "{} variables", variables.len());
    }
    let (Ok(variables), Ok(public)) = (env::parse(bytes), derive::x25519_public(&secret)) else { return };
    // What is parsed may still be too large to be sent.
    if let Ok(blob) = env::encrypt(&variables, &public) {
        assert_eq!(env::decrypt(&blob, &secret).ok(), Some(variables), "another environment");
    }
}

fn secret() -> Secret {
    Secret::try_from(hex::decode(SECRET).unwrap_or_default().as_slice()).unwrap_or_else(|_| [1; 32].into())
}

pub(crate) fn encrypted_env_samples() -> Vec<Vec<u8>> {
    let plain = [
        r#"{"env":[]}"#,
        r#"{"env":[{"key":"API_KEY","value":"s3cret"},{"key":"_B2","value":"two\nlines \u00e9"}]}"#,
        r#"{"env":[{"key":"PATH","value":"x"}]}"#,
    ];
    let plain = plain.map(|text| text.as_bytes().to_vec());
    plain.into_iter().chain(hex::decode(BLOB)).collect()
}

/// A body of a request that is decoded is encoded so that it decodes to the same, in both formats.
pub fn prpc_body(bytes: &[u8]) {
    survives::<kms::GetAppKeyRequest>(bytes);
    survives::<kms::AppKeyResponse>(bytes);
    survives::<kms::SignCertRequest>(bytes);
    survives::<kms::SignCertResponse>(bytes);
    survives::<kms::PublicKeyResponse>(bytes);
    survives::<kms::GetMetaResponse>(bytes);
    survives::<kms::SubmitUpgradeRequest>(bytes);
    survives::<kms::GetReleaseLogRequest>(bytes);
    survives::<kms::GetReleaseLogResponse>(bytes);
    survives::<kms::GetKmsKeyRequest>(bytes);
    survives::<kms::GetKmsKeyResponse>(bytes);
    survives::<teepod::VmConfiguration>(bytes);
    survives::<teepod::UpgradeAppRequest>(bytes);
    survives::<teepod::ResizeVmRequest>(bytes);
    survives::<dstack::GetTlsKeyArgs>(bytes);
    survives::<dstack::GetKeyArgs>(bytes);
    survives::<dstack::RawQuoteArgs>(bytes);
    survives::<dstack::EmitEventArgs>(bytes);
    survives::<dstack::SignArgs>(bytes);
    survives::<dstack::VerifyArgs>(bytes);
    survives::<tappd::DeriveKeyArgs>(bytes);
    survives::<tappd::TdxQuoteArgs>(bytes);
    survives::<worker::WorkerInfo>(bytes);
    survives::<guest::GuestInfo>(bytes);
    survives::<guest::NetworkInfo>(bytes);
    survives::<guest::ListContainersResponse>(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = wire::decode_query::<dstack::RawQuoteArgs>(text);
        let method = wire::method_name(text, &["KMS", "Teepod"]);
        assert!(method.is_err() || text.ends_with(method.unwrap_or_default()), "{text:?}");
    }
}

fn survives<T: Message + Default + PartialEq + Debug + Serialize + DeserializeOwned>(bytes: &[u8]) {
    for format in [Format::Json, Format::Protobuf] {
        let Ok(message) = wire::decode::<T>(format, bytes) else { continue };
        for other in [Format::Json, Format::Protobuf] {
            let again = wire::encode(other, &message).and_then(|body| wire::decode::<T>(other, &body));
            assert_eq!(again.as_ref(), Ok(&message), "by {other:?}");
        }
    }
}

pub(crate) fn prpc_body_samples() -> Vec<Vec<u8>> {
    let key = kms::GetAppKeyRequest { api_version: 1, ..kms::GetAppKeyRequest::default() };
    let port = teepod::PortMapping { protocol: "tcp".to_owned(), host_port: 80, ..Default::default() };
    let vm = teepod::VmConfiguration { name: "a".to_owned(), ports: vec![port], ..Default::default() };
    let log = kms::GetReleaseLogResponse { entries: vec!["{}".to_owned()], ..Default::default() };
    let quote = dstack::RawQuoteArgs { report_data: vec![7; 64] };
    let names = tappd::DeriveKeyArgs { alt_names: vec!["a.example".to_owned()], ..Default::default() };
    let mut samples = vec![b"null".to_vec(), b"report_data=0x0102".to_vec(), b"KMS.GetAppKey".to_vec()];
    samples.extend([Format::Json, Format::Protobuf].into_iter().flat_map(|format| {
        let all = [
            wire::encode(format, &key),
            wire::encode(format, &vm),
            wire::encode(format, &log),
            wire::encode(format, &quote),
            wire::encode(format, &names),
        ];
        all.into_iter().flatten().collect::<Vec<_>>()
    }));
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_parse() {
        assert!(encrypted_env_samples().iter().take(2).all(|plain| env::parse(plain).is_ok()));
        // The vector opens with its key, and what is in it is no environment of ours.
        let opened = env::decrypt(&hex::decode(BLOB).unwrap(), &secret());
        assert!(matches!(opened, Err(env::EncryptedEnvError::Plaintext)), "{opened:?}");
    }
}
