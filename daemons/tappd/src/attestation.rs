// SPDX-License-Identifier: Apache-2.0
//! The blob of `Attest`: quote, events, report data and VM shape in SCALE encoding, version 0.
//!
//! ```text
//! u8        0, the version
//! u8        0, the kind: a TDX quote
//! Vec<u8>   quote
//! Vec of    u32 register, u32 type, Vec<u8> digest, String name, Vec<u8> payload: the whole log
//! Vec of    String name, Vec<u8> payload: its runtime events once more
//! [u8; 64]  report data
//! String    the VM's shape, JSON
//! ```
//!
//! Numbers are little-endian; a length is SCALE's compact integer in its shortest form.

use dstack_core::event_log::{Event, RUNTIME_IMR};

/// Encodes an attestation.
#[must_use]
pub fn encode(quote: &[u8], events: &[Event], report_data: &[u8; 64], vm_config: &str) -> Vec<u8> {
    let mut out = vec![0, 0];
    bytes(&mut out, quote);
    compact(&mut out, events.len());
    for event in events {
        out.extend(event.imr.to_le_bytes());
        out.extend(event.event_type.to_le_bytes());
        bytes(&mut out, &event.digest);
        bytes(&mut out, event.event.as_bytes());
        bytes(&mut out, &event.event_payload);
    }
    let runtime: Vec<&Event> = events.iter().filter(|event| event.imr == RUNTIME_IMR).collect();
    compact(&mut out, runtime.len());
    for event in runtime {
        bytes(&mut out, event.event.as_bytes());
        bytes(&mut out, &event.event_payload);
    }
    out.extend(report_data);
    bytes(&mut out, vm_config.as_bytes());
    out
}

fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    compact(out, bytes.len());
    out.extend_from_slice(bytes);
}

/// Everything here is far below 2^30, where another form would begin.
fn compact(out: &mut Vec<u8>, length: usize) {
    let [a, b, c, d] = (u32::try_from(length).unwrap_or(u32::MAX) << 2).to_le_bytes();
    match length {
        0..0x40 => out.push(a),
        0x40..0x4000 => out.extend([a | 1, b]),
        _ => out.extend([a | 2, b, c, d]),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_documented_one() {
        let firmware =
            Event { imr: 1, event_type: 7, digest: [9; 48], event: String::new(), event_payload: vec![] };
        let runtime = Event::runtime("ab", &[1, 2]).unwrap();
        let blob = encode(&[5; 64], &[firmware, runtime.clone()], &[3; 64], "{}");
        let expected = [
            &[0, 0, 0x01, 0x01][..],
            &[5; 64],
            &[2 << 2],
            &[1, 0, 0, 0, 7, 0, 0, 0, 48 << 2],
            &[9; 48],
            &[0, 0],
            &[3, 0, 0, 0, 1, 0, 0, 8, 48 << 2],
            &runtime.digest,
            &[2 << 2, b'a', b'b', 2 << 2, 1, 2],
            &[1 << 2, 2 << 2, b'a', b'b', 2 << 2, 1, 2],
            &[3; 64],
            &[2 << 2, b'{', b'}'],
        ];
        assert_eq!(blob, expected.concat());
    }
}
