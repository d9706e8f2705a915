// SPDX-License-Identifier: Apache-2.0
//! Where each key comes from: HKDF-SHA256 with salt `RATLS`, the context parts one after the other as info.
//!
//! | key | from | info |
//! |---|---|---|
//! | app CA (P-256) | root CA scalar | app id, `app-ca` |
//! | disk | root CA scalar | app id, instance id, `app-disk-crypt-key`; then DH |
//! | environment (X25519) | root CA scalar | app id, `env-encrypt-key`; then DH |
//! | app key (secp256k1) | root k256 scalar | app id, `app-key` |
//! | key of a path | app key | path |
//! | Ed25519 key of a path | app key | 0xff, `ed25519`, length of the path (4, big-endian), path |
//!
//! "DH" is the SHA-256 of the PKCS#8 encoding of the derived bytes taken as a P-256 key; it is kept for the sake of
//! existing apps. The parts have no separators, which is unambiguous only because ids have fixed lengths.

use crate::{KeyError, Secret};
use dstack_core::ids::{AppId, InstanceId};
use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::{EcGroup, EcKey, EcPoint, PointConversionForm};
use openssl::md::Md;
use openssl::nid::Nid;
use openssl::pkey::{Id, PKey, Private};
use openssl::pkey_ctx::PkeyCtx;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

const SALT: &[u8] = b"RATLS";

/// 32 bytes from a parent secret and context parts.
///
/// # Errors
/// When the library refuses.
pub fn hkdf(parent: &Secret, parts: &[&[u8]]) -> Result<Secret, KeyError> {
    let mut context = PkeyCtx::new_id(Id::HKDF)?;
    context.derive_init()?;
    context.set_hkdf_md(Md::sha256())?;
    context.set_hkdf_key(parent.expose())?;
    context.set_hkdf_salt(SALT)?;
    context.add_hkdf_info(&parts.concat())?;
    let mut bytes = Zeroizing::new([0; 32]);
    context.derive(Some(bytes.as_mut_slice()))?;
    Ok(Secret::from(*bytes))
}

/// The two root scalars of a key service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// P-256 scalar of the root CA.
    pub ca: Secret,
    /// secp256k1 scalar.
    pub k256: Secret,
}

impl Roots {
    /// Scalar of the app's own CA.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn app_ca(&self, app: &AppId) -> Result<Secret, KeyError> {
        let scalar = hkdf(&self.ca, &[app.as_bytes(), b"app-ca"])?;
        p256(&scalar).map(|_| scalar)
    }

    /// Key of an instance's disk; without an instance id all instances share it.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn disk_key(&self, app: &AppId, instance: Option<&InstanceId>) -> Result<Secret, KeyError> {
        let instance: &[u8] = instance.map_or(&[], |i| i.as_bytes());
        through_pkcs8(&hkdf(&self.ca, &[app.as_bytes(), instance, b"app-disk-crypt-key"])?)
    }

    /// X25519 secret that an app's environment is encrypted for.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn env_secret(&self, app: &AppId) -> Result<Secret, KeyError> {
        through_pkcs8(&hkdf(&self.ca, &[app.as_bytes(), b"env-encrypt-key"])?)
    }

    /// secp256k1 scalar from which the app derives its own keys.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn app_key(&self, app: &AppId) -> Result<Secret, KeyError> {
        hkdf(&self.k256, &[app.as_bytes(), b"app-key"])
    }
}

/// A key that an app derives from its app key for a path of its choice.
///
/// # Errors
/// [`KeyError`].
pub fn of_path(app_key: &Secret, path: &str) -> Result<Secret, KeyError> {
    hkdf(app_key, &[path.as_bytes()])
}

/// The Ed25519 secret that an app derives for a path: other bytes than [`of_path`] gives for any path (known attack P13),
/// since its info begins with a byte that no UTF-8 text has.
///
/// # Errors
/// [`KeyError`].
pub fn ed25519_of_path(app_key: &Secret, path: &str) -> Result<Secret, KeyError> {
    let length = u32::try_from(path.len()).map_err(|_| KeyError::Form("a path is shorter than 4 GiB"))?;
    hkdf(app_key, &[&[0xff], b"ed25519", &length.to_be_bytes(), path.as_bytes()])
}

/// The P-256 key of a scalar.
///
/// # Errors
/// [`KeyError::NotAKey`] for zero and for numbers beyond the curve's order.
pub fn p256(scalar: &Secret) -> Result<EcKey<Private>, KeyError> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    let number = BigNum::from_slice(scalar.expose())?;
    let mut context = BigNumContext::new()?;
    let mut point = EcPoint::new(&group)?;
    point.mul_generator2(&group, &number, &mut context)?;
    let key = EcKey::from_private_components(&group, &number, &point)?;
    key.check_key().map_err(|_| KeyError::NotAKey)?;
    Ok(key)
}

/// The X25519 public key of a secret.
///
/// # Errors
/// When the library refuses.
pub fn x25519_public(secret: &Secret) -> Result<[u8; 32], KeyError> {
    let raw = PKey::private_key_from_raw_bytes(secret.expose(), Id::X25519)?.raw_public_key()?;
    raw.as_slice().try_into().map_err(|_| KeyError::Form("an X25519 public key has 32 bytes"))
}

/// DER before the scalar: PKCS#8 version 0, id-ecPublicKey, prime256v1, ECPrivateKey version 1.
const PKCS8_HEAD: [u8; 36] = [
    0x30, 0x81, 0x87, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01,
    0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x6d, 0x30, 0x6b, 0x02, 0x01, 0x01,
    0x04, 0x20,
];
/// DER between the scalar and the uncompressed point.
const PKCS8_MIDDLE: [u8; 5] = [0xa1, 0x44, 0x03, 0x42, 0x00];

/// The 138 bytes of a P-256 scalar as PKCS#8.
///
/// # Errors
/// [`KeyError::NotAKey`] when it is no scalar of the curve.
pub fn pkcs8(scalar: &Secret) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let key = p256(scalar)?;
    let mut context = BigNumContext::new()?;
    let point = key.public_key().to_bytes(key.group(), PointConversionForm::UNCOMPRESSED, &mut context)?;
    Ok(Zeroizing::new([&PKCS8_HEAD[..], scalar.expose(), &PKCS8_MIDDLE, &point].concat()))
}

fn through_pkcs8(scalar: &Secret) -> Result<Secret, KeyError> {
    Ok(Secret::from(<[u8; 32]>::from(Sha256::digest(pkcs8(scalar)?.as_slice()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const APP: &str = "3327603e03f5bd1f830812ca4a789277fc31f577";
    const INSTANCE: &str = "00112233445566778899aabbccddeeff00112233";

    fn roots() -> Roots {
        Roots { ca: Secret::from([0x11; 32]), k256: Secret::from([0x22; 32]) }
    }

    fn same(secret: &Secret, expected: &str) {
        assert_eq!(hex::encode(secret.expose()), expected);
    }

    #[test]
    fn parts_join_without_separators() {
        let parent = Secret::from([7; 32]);
        assert_eq!(hkdf(&parent, &[b"ab", b"c"]).unwrap(), hkdf(&parent, &[b"a", b"bc"]).unwrap());
        assert_ne!(hkdf(&parent, &[b"abc"]).unwrap(), hkdf(&parent, &[b"abd"]).unwrap());
    }

    #[test]
    fn published_vectors_of_every_derivation() {
        let (roots, app, instance) = (roots(), APP.parse().unwrap(), INSTANCE.parse().unwrap());
        same(
            &roots.app_ca(&app).unwrap(),
            "ef345fd830a8bdbee1934902baa85106c76fd39856f4e064dfbb5178bf228add",
        );
        let disk = roots.disk_key(&app, Some(&instance)).unwrap();
        same(&disk, "0b1f243958ceef0218284656fb6dcc405955665617d2a1101519272d72fda4f9");
        let env = roots.env_secret(&app).unwrap();
        same(&env, "91b4422e7a0a650188fd11aa417d3e42250a5e566781335a3935b57e3ebf49c2");
        let public = x25519_public(&env).unwrap();
        assert_eq!(hex::encode(public), "b69a7043cda25ae1f07c1b610024b38792c439a9a222e199e2eb7b6e76008459");
        let app_key = roots.app_key(&app).unwrap();
        same(&app_key, "cf8e2da891fdc16167e0eb7f8701cc75d89a6bbc7804f8d58d3fdf0512d6027b");
        let path = of_path(&app_key, "wallet/eth").unwrap();
        same(&path, "160da35de75a7a847ba6102080b9a4fa70712bff16720d2a37ce80eb6dc5c3d2");
    }

    #[test]
    fn p13_no_path_gives_the_same_bytes_to_two_curves() {
        let app_key = Secret::from([0x33; 32]);
        let mut seen = std::collections::HashSet::new();
        // Among them what a text would have to be to reach the other derivation.
        for path in ["", "a", "ed25519", "\u{ff}ed25519\0\0\0\u{1}a", "\u{ff}ed25519", "a\0"] {
            assert!(seen.insert(of_path(&app_key, path).unwrap().expose().to_vec()), "{path:?}");
            assert!(seen.insert(ed25519_of_path(&app_key, path).unwrap().expose().to_vec()), "{path:?}");
        }
    }

    #[test]
    fn pkcs8_of_the_published_root() {
        let der = pkcs8(&Secret::from([0x11; 32])).unwrap();
        let point = "040217e617f0b6443928278f96999e69a23a4f2c152bdf6d6cdf66e5b80282d4ed\
                     194a7debcb97712d2dda3ca85aa8765a56f45fc758599652f2897c65306e5794";
        assert_eq!(der.len(), 138);
        assert_eq!(hex::encode(&der[73..]), point);
        let parsed = PKey::private_key_from_pkcs8(&der).unwrap();
        assert!(parsed.ec_key().unwrap().check_key().is_ok());
    }

    #[test]
    fn what_is_no_scalar_is_refused() {
        assert!(p256(&Secret::from([0; 32])).is_err());
        assert!(p256(&Secret::from([0xff; 32])).is_err());
    }
}
