// SPDX-License-Identifier: Apache-2.0
//! What a provisioning certificate cache serves beside a quote: revocation lists, TCB information, enclave identity.

use crate::SimError;
use crate::pki::{Authority, COMPONENT_SVN, FMSPC, PCE_SVN, TestRoot};
use crate::quote::{QE_PROD_ID, QE_SIGNER, QE_SVN};
use rcgen::{CertificateRevocationListParams, KeyIdMethod, SerialNumber};
use serde::Serialize;
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

/// Collateral in the form that verifiers exchange: PEM chains, JSON texts, and in hex
/// DER lists and `r ‖ s` signatures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Collateral {
    /// Chain of the issuer of `pck_crl`.
    pub pck_crl_issuer_chain: String,
    /// The root's revocation list.
    #[serde(with = "hex::serde")]
    pub root_ca_crl: Vec<u8>,
    /// The platform CA's revocation list.
    #[serde(with = "hex::serde")]
    pub pck_crl: Vec<u8>,
    /// Chain of the signer of `tcb_info`.
    pub tcb_info_issuer_chain: String,
    /// TCB information, the exact signed text.
    pub tcb_info: String,
    /// Signature over `tcb_info`.
    #[serde(with = "hex::serde")]
    pub tcb_info_signature: Vec<u8>,
    /// Chain of the signer of `qe_identity`.
    pub qe_identity_issuer_chain: String,
    /// Identity of the quoting enclave, the exact signed text.
    pub qe_identity: String,
    /// Signature over `qe_identity`.
    #[serde(with = "hex::serde")]
    pub qe_identity_signature: Vec<u8>,
}

/// What the collateral says about the platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Status of the platform, e.g. `UpToDate`.
    pub platform: String,
    /// Status of the TDX module.
    pub module: String,
    /// Advisories of a platform that is not up to date.
    pub advisories: Vec<String>,
    /// Number of the TCB evaluation; never falls.
    pub evaluation: u32,
    /// When it was issued.
    pub issued: OffsetDateTime,
    /// How long it holds.
    pub validity: Duration,
}

impl Claims {
    /// An up-to-date platform, issued now, for 30 days.
    #[must_use]
    pub fn up_to_date(now: OffsetDateTime) -> Self {
        Self {
            platform: "UpToDate".into(),
            module: "UpToDate".into(),
            advisories: Vec::new(),
            evaluation: 17,
            issued: now - Duration::minutes(5),
            validity: Duration::days(30),
        }
    }
}

impl TestRoot {
    /// Signs collateral.
    ///
    /// # Errors
    /// [`SimError`] when signing fails or a time cannot be written.
    pub fn collateral(&self, claims: &Claims) -> Result<Collateral, SimError> {
        self.collateral_of(claims, |_, _| ())
    }

    /// The same with changes to the TCB information and the enclave's identity before they are signed: a platform whose
    /// collateral says something else, for tests of verifiers.
    ///
    /// # Errors
    /// [`SimError`] when signing fails or a time cannot be written.
    pub fn collateral_of(
        &self,
        claims: &Claims,
        change: impl FnOnce(&mut Value, &mut Value),
    ) -> Result<Collateral, SimError> {
        let issued = text(claims.issued)?;
        let next = text(claims.issued + claims.validity)?;
        let mut tcb_info = tcb_info(claims, &issued, &next);
        let mut qe_identity = qe_identity(claims, &issued, &next);
        change(&mut tcb_info, &mut qe_identity);
        let (tcb_info, qe_identity) = (tcb_info.to_string(), qe_identity.to_string());
        let signer = [self.tcb.pem.as_str(), &self.root.pem].concat();
        Ok(Collateral {
            pck_crl_issuer_chain: [self.platform.pem.as_str(), &self.root.pem].concat(),
            root_ca_crl: revocations(&self.root, claims)?,
            pck_crl: revocations(&self.platform, claims)?,
            tcb_info_issuer_chain: signer.clone(),
            tcb_info_signature: self.tcb.sign(tcb_info.as_bytes()),
            tcb_info,
            qe_identity_issuer_chain: signer,
            qe_identity_signature: self.tcb.sign(qe_identity.as_bytes()),
            qe_identity,
        })
    }
}

fn text(time: OffsetDateTime) -> Result<String, SimError> {
    time.replace_nanosecond(0).map_err(|_| SimError::Time)?.format(&Rfc3339).map_err(|_| SimError::Time)
}

/// An empty list: nothing was ever revoked.
fn revocations(authority: &Authority, claims: &Claims) -> Result<Vec<u8>, SimError> {
    let params = CertificateRevocationListParams {
        this_update: claims.issued,
        next_update: claims.issued + claims.validity,
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Ok(params.signed_by(&authority.issuer)?.der().to_vec())
}

fn components(svn: u8) -> Vec<Value> {
    vec![json!({ "svn": svn }); 16]
}

fn tcb_info(claims: &Claims, issued: &str, next: &str) -> Value {
    let advisories: &[String] = if claims.platform == "UpToDate" { &[] } else { &claims.advisories };
    let any = |bytes: usize| "ff".repeat(bytes);
    let zero = |bytes: usize| "00".repeat(bytes);
    json!({
        "id": "TDX", "version": 3, "issueDate": issued, "nextUpdate": next,
        "fmspc": hex::encode(FMSPC), "pceId": "0000", "tcbType": 0,
        "tcbEvaluationDataNumber": claims.evaluation,
        "tdxModule": { "mrsigner": zero(48), "attributes": zero(8), "attributesMask": any(8) },
        "tdxModuleIdentities": [{
            "id": "TDX_01", "mrsigner": zero(48), "attributes": zero(8), "attributesMask": any(8),
            "tcbLevels": [{ "tcb": { "isvsvn": 4 }, "tcbDate": issued, "tcbStatus": claims.module }],
        }],
        "tcbLevels": [{
            "tcb": {
                "sgxtcbcomponents": components(COMPONENT_SVN),
                "pcesvn": PCE_SVN,
                "tdxtcbcomponents": components(0),
            },
            "tcbDate": issued, "tcbStatus": claims.platform, "advisoryIDs": advisories,
        }],
    })
}

fn qe_identity(claims: &Claims, issued: &str, next: &str) -> Value {
    json!({
        "id": "TD_QE", "version": 2, "issueDate": issued, "nextUpdate": next,
        "tcbEvaluationDataNumber": claims.evaluation,
        "miscselect": "00000000", "miscselectMask": "ffffffff",
        "attributes": "00".repeat(16), "attributesMask": "fb".repeat(16),
        "mrsigner": hex::encode(QE_SIGNER), "isvprodid": QE_PROD_ID,
        "tcbLevels": [{ "tcb": { "isvsvn": QE_SVN }, "tcbDate": issued, "tcbStatus": "UpToDate" }],
    })
}
