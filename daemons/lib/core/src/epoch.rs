// SPDX-License-Identifier: Apache-2.0
//! The epoch of a data disk: which boot of its instance wrote it last (trust rule T13, known attack P07).
//!
//! It stands in the first sector of the *opened* disk, which ext4 leaves alone (its superblock begins at byte 1024), and
//! the key service keeps the same beside the instance's id:
//!
//! | bytes | content |
//! |---|---|
//! | 0..16 | [`MAGIC`] |
//! | 16..24 | number, big-endian, from 1 |
//! | 24..40 | token, random |
//! | 40..512 | zeros |
//!
//! A sector of zeros has no epoch; one that is neither is damaged. The token tells two boots of the same number apart.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Where it begins, bytes from the start of the opened disk.
pub const OFFSET: u64 = 0;
/// Its size, bytes: one sector of 512, which no crash tears.
pub const SIZE: usize = 512;
/// How it begins.
pub const MAGIC: &[u8; 16] = b"dstack-epoch-v1\0";

/// One boot of an instance, as its disk and its key service know it.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Text", into = "Text")]
pub struct Epoch {
    /// From 1; grows with each boot.
    number: u64,
    /// Random, so that nobody can guess the next one.
    token: [u8; 16],
}

/// Why bytes are no epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EpochError {
    /// The sector is neither zero nor a record of this form.
    #[error("its epoch record is damaged")]
    Damaged,
    /// The number is 0.
    #[error("an epoch's number begins with 1")]
    Zero,
    /// The token is not 16 bytes.
    #[error("an epoch's token has 16 bytes")]
    Token,
}

impl Epoch {
    /// An epoch of this number and token.
    ///
    /// # Errors
    /// [`EpochError::Zero`], [`EpochError::Token`].
    pub fn new(number: u64, token: &[u8]) -> Result<Self, EpochError> {
        let token = token.try_into().map_err(|_| EpochError::Token)?;
        if number == 0 { Err(EpochError::Zero) } else { Ok(Self { number, token }) }
    }

    /// Its number, at least 1.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// Its token.
    #[must_use]
    pub const fn token(&self) -> &[u8; 16] {
        &self.token
    }

    /// Parses the first sector of an opened disk; `Ok(None)` when it is all zero.
    ///
    /// # Errors
    /// [`EpochError`] for anything that [`Self::to_sector`] does not write.
    pub fn parse(sector: &[u8]) -> Result<Option<Self>, EpochError> {
        if sector.len() != SIZE {
            return Err(EpochError::Damaged);
        }
        if sector.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let rest = sector.strip_prefix(MAGIC).ok_or(EpochError::Damaged)?;
        let (number, rest) = rest.split_first_chunk::<8>().ok_or(EpochError::Damaged)?;
        let (token, padding) = rest.split_first_chunk::<16>().ok_or(EpochError::Damaged)?;
        if padding.iter().any(|b| *b != 0) {
            return Err(EpochError::Damaged);
        }
        Self::new(u64::from_be_bytes(*number), token).map(Some)
    }

    /// The sector.
    #[must_use]
    pub fn to_sector(&self) -> [u8; SIZE] {
        let record = MAGIC.iter().copied().chain(self.number.to_be_bytes()).chain(self.token);
        let mut sector = [0; SIZE];
        sector.iter_mut().zip(record).for_each(|(to, from)| *to = from);
        sector
    }
}

/// The number alone, as for people.
impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The number alone: the token is nobody's business.
impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}", self.number)
    }
}

/// JSON form: the token is 32 hex.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    number: u64,
    token: String,
}

impl TryFrom<Text> for Epoch {
    type Error = EpochError;

    fn try_from(text: Text) -> Result<Self, EpochError> {
        let token = hex::decode(text.token).map_err(|_| EpochError::Token)?;
        Self::new(text.number, &token)
    }
}

impl From<Epoch> for Text {
    fn from(epoch: Epoch) -> Self {
        Self { number: epoch.number, token: hex::encode(epoch.token) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn epoch() -> Epoch {
        Epoch::new(0x0102, &[0xab; 16]).unwrap()
    }

    #[test]
    fn t13_the_token_is_never_printed() {
        assert_eq!(format!("{:?} {}", epoch(), epoch()), "epoch 258 epoch 258");
    }

    #[test]
    fn t13_the_sector_has_one_form() {
        let mut expected = b"dstack-epoch-v1\0\0\0\0\0\0\0\x01\x02".to_vec();
        expected.extend([0xab; 16]);
        expected.resize(512, 0);
        assert_eq!(epoch().to_sector().as_slice(), expected);
        assert_eq!(Epoch::parse(&expected), Ok(Some(epoch())));
        assert_eq!(Epoch::parse(&[0; SIZE]), Ok(None));
    }

    #[test]
    fn t13_whatever_else_it_holds_is_damage_and_never_absence() {
        let good = epoch().to_sector();
        for bit in 0..SIZE * 8 {
            let mut other = good;
            other[bit / 8] ^= 1 << (bit % 8);
            let found = Epoch::parse(&other);
            let named = (MAGIC.len()..MAGIC.len() + 24).contains(&(bit / 8));
            assert!(if named { found.is_ok_and(|e| e != Some(epoch())) } else { found.is_err() }, "{bit}");
        }
        for bad in [&good[..SIZE - 1], &[], &[0; SIZE - 1], &[0xff; SIZE]] {
            assert_eq!(Epoch::parse(bad), Err(EpochError::Damaged));
        }
        let mut zero = good;
        zero[MAGIC.len()..MAGIC.len() + 8].fill(0);
        assert_eq!(Epoch::parse(&zero), Err(EpochError::Zero));
    }

    #[test]
    fn json_is_strict_too() {
        let json = serde_json::to_string(&epoch()).unwrap();
        assert_eq!(json, format!(r#"{{"number":258,"token":"{}"}}"#, "ab".repeat(16)));
        assert_eq!(serde_json::from_str::<Epoch>(&json).unwrap(), epoch());
        for bad in [r#"{"number":0,"token":"00"}"#, r#"{"number":1,"token":"00"}"#, r#"{"number":1}"#] {
            assert!(serde_json::from_str::<Epoch>(bad).is_err(), "{bad}");
        }
        assert!(!epoch().to_string().contains("ab"), "{}", epoch());
    }
}
