// SPDX-License-Identifier: Apache-2.0
//! The little DER that the provisioning certificate's SGX extension needs.

/// One tag, length, value; content under 64 KiB.
fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let [.., high, low] = content.len().to_be_bytes();
    let mut out = vec![tag];
    match content.len() {
        0..128 => out.push(low),
        128..256 => out.extend([0x81, low]),
        _ => out.extend([0x82, high, low]),
    }
    out.extend_from_slice(content);
    out
}

/// A SEQUENCE.
pub(crate) fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    tlv(0x30, &parts.concat())
}

/// A non-negative INTEGER of one byte below 128.
pub(crate) fn integer(value: u8) -> Vec<u8> {
    tlv(0x02, &[value & 0x7f])
}

/// An OCTET STRING.
pub(crate) fn octets(bytes: &[u8]) -> Vec<u8> {
    tlv(0x04, bytes)
}

/// An ENUMERATED value below 128.
pub(crate) fn enumerated(value: u8) -> Vec<u8> {
    tlv(0x0a, &[value & 0x7f])
}

/// The object identifier 1.2.840.113741.1.13.1 and these last arcs, each below 128.
pub(crate) fn sgx_oid(last: &[u8]) -> Vec<u8> {
    tlv(0x06, &[&[0x2a, 0x86, 0x48, 0x86, 0xf8, 0x4d, 0x01, 0x0d, 0x01][..], last].concat())
}
