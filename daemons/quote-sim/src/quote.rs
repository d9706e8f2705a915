// SPDX-License-Identifier: Apache-2.0
//! TDX quotes, version 4 with a TD report 1.0 (Intel TDX DCAP quoting library API, appendix A.3).

use crate::pki::{TestRoot, sign};
use sha2::{Digest, Sha256};

/// Measured fields of a TD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdReport {
    /// TD attributes; bit 0 is debug, bit 28 is SEPT_VE_DISABLE.
    pub attributes: [u8; 8],
    /// Initial contents.
    pub mr_td: [u8; 48],
    /// Chosen by the host at launch.
    pub mr_config_id: [u8; 48],
    /// Run-time registers 0 to 3.
    pub rtmr: [[u8; 48]; 4],
    /// Chosen by the guest at each quote.
    pub report_data: [u8; 64],
}

impl Default for TdReport {
    fn default() -> Self {
        Self {
            attributes: SEPT_VE_DISABLE,
            mr_td: [0; 48],
            mr_config_id: [0; 48],
            rtmr: [[0; 48]; 4],
            report_data: [0; 64],
        }
    }
}

const SEPT_VE_DISABLE: [u8; 8] = [0, 0, 0, 0x10, 0, 0, 0, 0];
const XFAM: [u8; 8] = [0xe7, 0, 6, 0, 0, 0, 0, 0];
/// Version 5 of TDX module 1.
const TEE_TCB_SVN: [u8; 16] = [5, 1, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const INTEL_QE_VENDOR: [u8; 16] =
    [0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07];
const VERSION: u16 = 4;
const ECDSA_P256: u16 = 2;
const TEE_TDX: u32 = 0x81;
const CERT_CHAIN: u16 = 5;
const QE_REPORT: u16 = 6;
/// Product id and security version of the simulated quoting enclave, and its signer.
pub(crate) const QE_PROD_ID: u16 = 2;
pub(crate) const QE_SVN: u16 = 4;
pub(crate) const QE_SIGNER: [u8; 32] = [0x44; 32];
const QE_AUTH_DATA: [u8; 32] = [0; 32];

impl TestRoot {
    /// A quote over the report.
    #[must_use]
    pub fn quote(&self, report: &TdReport) -> Vec<u8> {
        let signed = [header(&self.platform_id()), body(report)].concat();
        let point = self.attestation.verifying_key().to_sec1_point(false);
        let public_key = point.as_bytes().get(1..).unwrap_or_default().to_vec();
        let certification = self.certification(&public_key);
        let auth = [
            sign(&self.attestation, &signed),
            public_key,
            QE_REPORT.to_le_bytes().to_vec(),
            length(&certification),
            certification,
        ]
        .concat();
        [signed, length(&auth), auth].concat()
    }

    /// 16 bytes that name this test root, and 4 zeros.
    fn platform_id(&self) -> [u8; 20] {
        let mut id = [0; 20];
        id.iter_mut().zip(Sha256::digest(self.certificate())).take(16).for_each(|(to, from)| *to = from);
        id
    }

    /// The quoting enclave's report over the attestation key, signed by the provisioning key, with its chain.
    fn certification(&self, public_key: &[u8]) -> Vec<u8> {
        let report = enclave_report(public_key);
        let chain = [self.pck.pem.as_str(), &self.platform.pem, &self.root.pem].concat().into_bytes();
        let auth_length = u16::try_from(QE_AUTH_DATA.len()).unwrap_or_default();
        [
            report.clone(),
            self.pck.sign(&report),
            auth_length.to_le_bytes().to_vec(),
            QE_AUTH_DATA.to_vec(),
            CERT_CHAIN.to_le_bytes().to_vec(),
            length(&chain),
            chain,
        ]
        .concat()
    }
}

/// A four-byte length; everything here is far below 4 GiB.
fn length(bytes: &[u8]) -> Vec<u8> {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes().to_vec()
}

/// The 48 bytes before the report; `platform` is the quoting enclave's id, by which verifiers name a device.
fn header(platform: &[u8; 20]) -> Vec<u8> {
    [
        &VERSION.to_le_bytes()[..],
        &ECDSA_P256.to_le_bytes(),
        &TEE_TDX.to_le_bytes(),
        &[0; 4],
        &INTEL_QE_VENDOR,
        platform,
    ]
    .concat()
}

/// The 584 bytes of a TD report 1.0 in a quote.
fn body(report: &TdReport) -> Vec<u8> {
    let zero = [0; 48];
    [
        &TEE_TCB_SVN[..],
        &zero, // MRSEAM
        &zero, // MRSIGNERSEAM: zero for Intel's own module
        &[0; 8],
        &report.attributes,
        &XFAM,
        &report.mr_td,
        &report.mr_config_id,
        &zero, // MROWNER
        &zero, // MROWNERCONFIG
        report.rtmr.as_flattened(),
        &report.report_data,
    ]
    .concat()
}

/// The 384 bytes of the quoting enclave's report.
fn enclave_report(public_key: &[u8]) -> Vec<u8> {
    let data = Sha256::digest([public_key, &QE_AUTH_DATA].concat());
    [
        &[0; 128][..],
        &QE_SIGNER,
        &[0; 96],
        &QE_PROD_ID.to_le_bytes(),
        &QE_SVN.to_le_bytes(),
        &[0; 60],
        &data,
        &[0; 32],
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_parts_have_their_sizes() {
        assert_eq!(header(&[0; 20]).len(), 48);
        assert_eq!(body(&TdReport::default()).len(), 584);
        assert_eq!(enclave_report(&[0; 64]).len(), 384);
    }
}
