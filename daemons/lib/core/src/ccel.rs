// SPDX-License-Identifier: Apache-2.0
//! The firmware's event log, which the kernel shows as `/sys/firmware/acpi/tables/data/CCEL`.
//!
//! It is a TCG "crypto agile" log (PC Client Platform Firmware Profile, section 10): one event in the old form that
//! names the digests used, then events with one SHA-384 digest each. Measurement register 0 is MRTD, 1 to 4 are RTMR0
//! to RTMR3. Numbers are little-endian. What is behind the last event is filled with 0xff or zeros.

use crate::event_log::{Digest, EVENTS_MAX, Event, LOG_MAX};

/// Largest table, bytes.
pub const CCEL_MAX: usize = LOG_MAX;
/// Largest data of one event, bytes.
pub const DATA_MAX: usize = 256 * 1024;
/// Informational: nothing was extended.
const EV_NO_ACTION: u32 = 3;
const SHA384: u16 = 0x000c;
const SIGNATURE: &[u8; 16] = b"Spec ID Event03\0";

/// Why a table is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CcelError {
    /// Over [`CCEL_MAX`], or more than [`EVENTS_MAX`] events, or an event over [`DATA_MAX`].
    #[error("the firmware's event log is over its limits")]
    TooLarge,
    /// It ends within an event.
    #[error("the firmware's event log ends within event {0}")]
    Short(usize),
    /// It does not begin as such a log must.
    #[error("the firmware's event log does not begin with a TCG specification event")]
    Header,
    /// Its events have other digests than one SHA-384.
    #[error("event {0} of the firmware's event log has not exactly one SHA-384 digest")]
    Digest(usize),
    /// A register that a TD does not have.
    #[error("event {index} of the firmware's event log is for register {register}")]
    Register {
        /// Position among the events.
        index: usize,
        /// The register, 1 being RTMR0.
        register: u32,
    },
}

/// Takes parts off the front; `None` when there are not enough bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    /// Bytes behind their length.
    fn data(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        self.take(length)
    }

    /// Whether only filling is left.
    fn is_at_end(&self) -> bool {
        let filled_by = |byte: u8| self.0.iter().take(8).all(|b| *b == byte);
        filled_by(0xff) || filled_by(0)
    }
}

/// The events that were extended, in their order, without names; `imr` is 0 for RTMR0.
///
/// # Errors
/// [`CcelError`] names the first event that is not as it should be.
pub fn parse(table: &[u8]) -> Result<Vec<Event>, CcelError> {
    if table.len() > CCEL_MAX {
        return Err(CcelError::TooLarge);
    }
    let mut reader = Reader(table);
    header(&mut reader)?;
    let mut events = Vec::new();
    let mut index = 1;
    while !reader.is_at_end() {
        if index > EVENTS_MAX {
            return Err(CcelError::TooLarge);
        }
        events.extend(event(&mut reader, index)?);
        index += 1;
    }
    Ok(events)
}

/// The first event: register, type, a SHA-1 digest, and data that names the digests of all others.
fn header(reader: &mut Reader<'_>) -> Result<(), CcelError> {
    let register = reader.u32().ok_or(CcelError::Short(0))?;
    let kind = reader.u32().ok_or(CcelError::Short(0))?;
    reader.take(20).ok_or(CcelError::Short(0))?;
    let mut data = Reader(reader.data().ok_or(CcelError::Short(0))?);
    if register > 4 || kind != EV_NO_ACTION || data.take(16) != Some(SIGNATURE) {
        return Err(CcelError::Header);
    }
    // Platform class, version, errata, size of a native integer.
    data.take(8).ok_or(CcelError::Header)?;
    match (data.u32(), data.u16(), data.u16()) {
        (Some(1), Some(SHA384), Some(48)) => Ok(()),
        _ => Err(CcelError::Digest(0)),
    }
}

/// One event; `None` when it was not extended.
fn event(reader: &mut Reader<'_>, index: usize) -> Result<Option<Event>, CcelError> {
    let short = CcelError::Short(index);
    let register = reader.u32().ok_or(short)?;
    let event_type = reader.u32().ok_or(short)?;
    let (count, algorithm) = (reader.u32().ok_or(short)?, reader.u16().ok_or(short)?);
    if (count, algorithm) != (1, SHA384) {
        return Err(CcelError::Digest(index));
    }
    let digest: Digest = reader.array().ok_or(short)?;
    let data = reader.data().ok_or(short)?;
    if data.len() > DATA_MAX {
        return Err(CcelError::TooLarge);
    }
    if event_type == EV_NO_ACTION {
        return Ok(None);
    }
    let imr = register.checked_sub(1).filter(|imr| *imr <= 3);
    let imr = imr.ok_or(CcelError::Register { index, register })?;
    Ok(Some(Event { imr, event_type, digest, event: String::new(), event_payload: data.to_vec() }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn start() -> Vec<u8> {
        let data = [&SIGNATURE[..], &[0; 8], &1_u32.to_le_bytes(), &[0x0c, 0, 48, 0], &[0]].concat();
        let length = u32::try_from(data.len()).unwrap().to_le_bytes();
        [&1_u32.to_le_bytes()[..], &3_u32.to_le_bytes(), &[0; 20], &length, &data].concat()
    }

    fn add(register: u32, kind: u32, digest: u8, data: &[u8]) -> Vec<u8> {
        let length = u32::try_from(data.len()).unwrap().to_le_bytes();
        let head = [register.to_le_bytes(), kind.to_le_bytes(), 1_u32.to_le_bytes()].concat();
        [&head[..], &[0x0c, 0], &[digest; 48], &length, data].concat()
    }

    #[test]
    fn registers_count_from_rtmr0_and_filling_ends_the_log() {
        let log =
            [start(), add(1, 0x8000_000b, 1, b"hob"), add(0, 3, 0, b"info"), add(3, 6, 2, b"")].concat();
        for filling in [&[][..], &[0xff; 64], &[0; 9], &[0xff; 3]] {
            let events = parse(&[&log, filling].concat()).unwrap();
            let found: Vec<_> =
                events.iter().map(|e| (e.imr, e.digest[0], e.event_payload.as_slice())).collect();
            assert_eq!(found, [(0, 1, &b"hob"[..]), (2, 2, b"")]);
        }
    }

    #[test]
    fn p15_whatever_is_out_of_form_is_named() {
        let good = add(1, 1, 1, b"data");
        let with = |event: &[u8]| parse(&[&start(), event].concat());
        let changed = |at: usize, byte: u8| {
            let mut event = good.clone();
            event[at] = byte;
            with(&event)
        };
        assert_eq!(changed(0, 5), Err(CcelError::Register { index: 1, register: 5 }));
        assert_eq!(changed(0, 0), Err(CcelError::Register { index: 1, register: 0 }));
        assert_eq!(changed(8, 2), Err(CcelError::Digest(1)));
        assert_eq!(changed(12, 0x0b), Err(CcelError::Digest(1)));
        assert_eq!(changed(65, 0xff), Err(CcelError::Short(1)));
        for end in 8..good.len() {
            assert_eq!(with(&good[..end]), Err(CcelError::Short(1)), "{end}");
        }
        assert_eq!(parse(b""), Err(CcelError::Short(0)));
        assert_eq!(parse(&[0; 60]), Err(CcelError::Header));
        assert_eq!(parse(&vec![0; CCEL_MAX + 1]), Err(CcelError::TooLarge));
        assert_eq!(with(&good.repeat(EVENTS_MAX + 1)), Err(CcelError::TooLarge));
        assert_eq!(with(&add(1, 1, 1, &vec![0; DATA_MAX + 1])), Err(CcelError::TooLarge));
    }
}
