// SPDX-License-Identifier: Apache-2.0
//! What a peer presents about itself: a quote, its event log, and collateral from wherever it is cached.

use dcap_qvl::QuoteCollateralV3;

/// Largest quote, bytes.
pub const QUOTE_MAX: usize = 16 * 1024;
/// Largest collateral as JSON, bytes.
pub const COLLATERAL_MAX: usize = 1024 * 1024;

/// Evidence, not yet believed in any part.
#[derive(Debug, Clone)]
pub struct Evidence<'a> {
    /// The quote, raw.
    pub quote: &'a [u8],
    /// The event log, JSON.
    pub event_log: &'a [u8],
    /// Collateral for the quote's platform.
    pub collateral: &'a Collateral,
}

/// Parsed collateral: revocation lists, TCB information, enclave identity. It is signed; a cache need not be trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collateral(pub(crate) QuoteCollateralV3);

/// Why collateral cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CollateralError {
    /// Larger than [`COLLATERAL_MAX`].
    #[error("collateral is larger than {COLLATERAL_MAX} bytes")]
    TooLarge,
    /// Not the JSON it should be.
    #[error("collateral is not valid: {0}")]
    Json(#[from] serde_json::Error),
}

impl Collateral {
    /// Parses collateral as JSON, in the form that `dcap-qvl` and quote-sim write.
    ///
    /// # Errors
    /// [`CollateralError`].
    pub fn parse(json: &[u8]) -> Result<Self, CollateralError> {
        if json.len() > COLLATERAL_MAX {
            return Err(CollateralError::TooLarge);
        }
        Ok(Self(serde_json::from_slice(json)?))
    }

    /// The number of the TCB evaluation that its text names, zero when it names none. Not verified.
    #[must_use]
    pub fn evaluation_number(&self) -> u32 {
        self.tcb_text().map_or(0, |text| text.tcb_evaluation_data_number)
    }

    /// The provisioning enclave that its text is about, hex.
    pub(crate) fn pce_id(&self) -> String {
        self.tcb_text().map(|text| text.pce_id).unwrap_or_default()
    }

    fn tcb_text(&self) -> Option<TcbText> {
        serde_json::from_str(&self.0.tcb_info).ok()
    }
}

/// The parts of the TCB information that are looked at here.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct TcbText {
    tcb_evaluation_data_number: u32,
    #[serde(default)]
    pce_id: String,
}
