// SPDX-License-Identifier: Apache-2.0
//! The signature of a certificate that `verify` was given. Evidence binds the certificate's key; names, dates and all
//! else in it are worth what the signature is.

use dstack_keys::ecdsa;
use dstack_ra_tls::signature::Signed;

/// What is known about a certificate's signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Signature {
    /// There is no certificate.
    #[default]
    None,
    /// It is by the certificate's own key.
    Own,
    /// It is by the next certificate's key.
    Issuer,
    /// Whoever signed it did not come with it, or signs in another way.
    Unchecked,
    /// It is not good: the certificate was changed, or somebody else signed it.
    Bad,
}

impl Signature {
    /// Checks the first certificate (DER) by itself, or by the second.
    #[must_use]
    pub fn of(chain: &[Vec<u8>]) -> Self {
        let Some(leaf) = chain.first() else { return Self::None };
        let Ok(leaf) = Signed::of(leaf) else { return Self::Bad };
        let issuer = chain.get(1).and_then(|der| Signed::of(der).ok()).filter(|issuer| leaf.is_by(issuer));
        let (key, good) = match &issuer {
            _ if leaf.is_by(&leaf) => (&leaf.public_key, Self::Own),
            Some(issuer) => (&issuer.public_key, Self::Issuer),
            None => return Self::Unchecked,
        };
        if !leaf.is_ecdsa {
            return Self::Unchecked;
        }
        if ecdsa::verify(key, &leaf.message, &leaf.signature) { good } else { Self::Bad }
    }

    /// For people; `None` without a certificate, or when [`Self::refusal`] says it.
    #[must_use]
    pub const fn words(self) -> Option<&'static str> {
        match self {
            Self::Own => Some("signed by its own key"),
            Self::Issuer => Some("signed by the certificate that comes with it, which is not compared"),
            Self::None | Self::Unchecked | Self::Bad => None,
        }
    }

    /// Why it is refused, if it is.
    #[must_use]
    pub const fn refusal(self) -> Option<&'static str> {
        match self {
            Self::None | Self::Own | Self::Issuer => None,
            Self::Unchecked => Some(
                "the certificate's signature cannot be checked: the issuer that it names is not in the input, or does \
                 not sign by ECDSA; give the whole chain as one PEM file, the leaf first",
            ),
            Self::Bad => Some(
                "the certificate's signature is not good: it was changed after it was signed, or is not by the issuer \
                 that it names",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dstack_ra_tls::certificate;
    use rcgen::{CertificateParams, CertifiedIssuer, DnType, KeyPair};

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params
    }

    #[test]
    fn a_leaf_is_checked_by_itself_or_by_its_issuer() {
        let key = || KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(params("ca"), key()).unwrap();
        let other = CertifiedIssuer::self_signed(params("ca"), key()).unwrap();
        let leaf = params("leaf").signed_by(&key(), &issuer).unwrap().der().to_vec();
        let (ca, other) = (issuer.der().to_vec(), other.der().to_vec());
        for (chain, expected) in [
            (vec![], Signature::None),
            (vec![ca.clone()], Signature::Own),
            (vec![leaf.clone()], Signature::Unchecked),
            (vec![leaf.clone(), ca], Signature::Issuer),
            (vec![leaf.clone(), other], Signature::Bad),
            (vec![leaf.clone(), leaf], Signature::Unchecked),
            (vec![b"x".to_vec()], Signature::Bad),
        ] {
            assert_eq!(Signature::of(&chain), expected);
        }
    }

    #[test]
    fn p23_every_byte_of_a_certificate_that_signed_itself_counts() {
        let der = params("app").self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
        for at in 0..der.len() {
            for bit in [1, 0x80] {
                let mut changed = der.clone();
                changed[at] ^= bit;
                let refused = certificate::parse(&changed).is_err();
                // With another name it is another's, who did not come with it.
                let signature = Signature::of(&[changed]);
                assert!(refused || signature.refusal().is_some(), "byte {at}: {signature:?}");
            }
        }
    }
}
