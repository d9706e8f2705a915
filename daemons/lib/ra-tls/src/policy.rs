// SPDX-License-Identifier: Apache-2.0
//! The rules that evidence must meet. Strict unless a drop-in says otherwise; drop-ins only ever name what they allow.
//!
//! ```toml
//! tcb_statuses = ["UpToDate"]           # the default
//! tcb_grace_days = 0                    # at most 30; every use is in the verdict
//! refused_advisories = ["INTEL-SA-00837"]
//! min_evaluation_number = 17
//! devices = ["<64 hex: sha256 of the platform id>"]   # empty: any
//! allow_dev = false
//! [[images]]
//! os_image_hash = "<64 hex>"
//! is_dev = false
//! mr_td = "<96 hex>"
//! rtmr0 = ["<96 hex>"]                  # one per shape
//! rtmr1 = "<96 hex>"
//! rtmr2 = "<96 hex>"
//! ```

use dstack_core::event_log::Digest;
use dstack_core::ids::OsImageHash;
use serde::Deserialize;

/// Longest grace after a TCB recovery, days (trust rule T22).
pub const GRACE_MAX_DAYS: u32 = 30;

/// What evidence must meet.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// TCB statuses that pass.
    pub tcb_statuses: Vec<String>,
    /// Days that an `OutOfDate` platform still passes after the date of its TCB level.
    pub tcb_grace_days: u32,
    /// Advisories that a platform must not be subject to.
    pub refused_advisories: Vec<String>,
    /// Least number of the TCB evaluation; it never falls.
    pub min_evaluation_number: u32,
    /// Device ids that pass; empty lets all pass.
    pub devices: Vec<DeviceId>,
    /// Whether images pass that people can log in to.
    pub allow_dev: bool,
    /// Images that pass; `None` records measurements without comparing them, and says so in the verdict.
    pub images: Option<Vec<Image>>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            tcb_statuses: vec!["UpToDate".into()],
            tcb_grace_days: 0,
            refused_advisories: Vec::new(),
            min_evaluation_number: 0,
            devices: Vec::new(),
            allow_dev: false,
            images: None,
        }
    }
}

/// SHA-256 of the platform's id in a quote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct DeviceId(#[serde(with = "hex::serde")] pub [u8; 32]);

/// A register's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Register(#[serde(with = "hex::serde")] pub Digest);

/// Measurements of an allowed image (trust rule T2: all four are compared).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// SHA-256 of the image's `sha256sum.txt`.
    pub os_image_hash: OsImageHash,
    /// Whether people can log in to it.
    #[serde(default)]
    pub is_dev: bool,
    /// Firmware.
    pub mr_td: Register,
    /// Firmware's configuration, one value for each VM shape.
    pub rtmr0: Vec<Register>,
    /// Kernel image.
    pub rtmr1: Register,
    /// Command line and initrd.
    pub rtmr2: Register,
}

/// Why a policy is refused.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Not the TOML it should be.
    #[error("policy is not valid: {0}")]
    Toml(#[from] toml::de::Error),
    /// A rule that would let anything pass.
    #[error("policy: {0}")]
    Rule(&'static str),
}

impl Policy {
    /// Parses a policy.
    ///
    /// # Errors
    /// [`PolicyError`] with line and key, or the rule that is broken.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let policy: Self = toml::from_str(text)?;
        policy.check()?;
        Ok(policy)
    }

    /// Checks what types cannot say.
    ///
    /// # Errors
    /// [`PolicyError::Rule`].
    pub fn check(&self) -> Result<(), PolicyError> {
        if self.tcb_grace_days > GRACE_MAX_DAYS {
            return Err(PolicyError::Rule("tcb_grace_days is at most 30"));
        }
        if self.tcb_statuses.iter().any(|s| s == "Revoked") {
            return Err(PolicyError::Rule("tcb_statuses cannot allow Revoked"));
        }
        if self.tcb_statuses.is_empty() {
            return Err(PolicyError::Rule("tcb_statuses allows nothing; leave it out for UpToDate alone"));
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn strict_is_the_default() {
        let policy = Policy::parse("").unwrap();
        assert_eq!(policy, Policy::default());
        assert_eq!(policy.tcb_statuses, ["UpToDate"]);
    }

    #[test]
    fn t22_grace_is_bounded_and_revoked_never_passes() {
        assert!(Policy::parse("tcb_grace_days = 30").is_ok());
        for bad in ["tcb_grace_days = 31", "tcb_statuses = [\"Revoked\"]", "tcb_statuses = []", "any = true"]
        {
            assert!(Policy::parse(bad).is_err(), "{bad}");
        }
        assert!(Policy::parse("devices = [\"00\"]").is_err());
    }
}
