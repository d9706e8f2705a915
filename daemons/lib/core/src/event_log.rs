// SPDX-License-Identifier: Apache-2.0
//! The runtime event log behind RTMR3: digests, replay, and the grammar of its trusted prefix.
//!
//! A digest is `sha384(type ‖ ":" ‖ name ‖ ":" ‖ payload)` with the type as four little-endian bytes; a register becomes
//! `sha384(register ‖ digest)`. A log is a JSON array of objects `{imr, event_type, digest, event, event_payload}`, with
//! digest and payload in hex. The framing is ambiguous when a name contains `:`, so such a name is refused on both sides.

use crate::ids::{AppId, ComposeHash, InstanceId, OsImageHash};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha384};

/// A SHA-384 digest or register value.
pub type Digest = [u8; 48];

/// Type of every event that dstack itself makes.
pub const EVENT_TYPE: u32 = 0x0800_0001;
/// The register that runtime events go to.
pub const RUNTIME_IMR: u32 = 3;
/// Most events of one log.
pub const EVENTS_MAX: usize = 1024;
/// Largest log as JSON, bytes.
pub const LOG_MAX: usize = 4 * 1024 * 1024;
/// Longest event name, bytes.
pub const NAME_MAX: usize = 64;
/// Largest payload of a runtime event, bytes.
pub const PAYLOAD_MAX: usize = 4096;

/// One event as it stands in a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Register 0 to 3.
    pub imr: u32,
    /// Type; [`EVENT_TYPE`] for runtime events.
    pub event_type: u32,
    /// What was extended.
    #[serde(with = "hex::serde")]
    pub digest: Digest,
    /// Name; empty for events of the firmware.
    #[serde(default)]
    pub event: String,
    /// Payload.
    #[serde(default, with = "hex::serde")]
    pub event_payload: Vec<u8>,
}

/// Why a log or an event is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// The log is larger than [`LOG_MAX`] or has more than [`EVENTS_MAX`] events.
    #[error("event log is larger than {EVENTS_MAX} events or {LOG_MAX} bytes")]
    TooLarge,
    /// Not the JSON it should be.
    #[error("event log is not valid JSON of events: {0}")]
    Json(String),
    /// A register that does not exist.
    #[error("event {index} extends register {imr}; there are 0 to 3")]
    Register {
        /// Position in the log.
        index: usize,
        /// The register.
        imr: u32,
    },
    /// A name that is empty, too long, or contains `:` or a control character.
    #[error("event name {0:?} is not allowed: use 1 to {NAME_MAX} printable ASCII characters without ':'")]
    Name(String),
    /// A payload larger than [`PAYLOAD_MAX`].
    #[error("event {0:?} has a payload over {PAYLOAD_MAX} bytes")]
    Payload(String),
    /// The digest is not that of the name and payload.
    #[error("event {index} ({name:?}) has a digest that its name and payload do not give")]
    Digest {
        /// Position in the log.
        index: usize,
        /// Name of the event.
        name: String,
    },
    /// The trusted prefix is not the sequence it must be.
    #[error("event {index} is {found:?} where {expected:?} belongs")]
    Order {
        /// Position among the runtime events.
        index: usize,
        /// What stands there, empty at the end of the log.
        found: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// A payload of the trusted prefix has another form than its event's.
    #[error("event {0:?} has a payload of a wrong form")]
    Form(&'static str),
}

impl Event {
    /// A runtime event of this name and payload.
    ///
    /// # Errors
    /// [`EventError::Name`] or [`EventError::Payload`].
    pub fn runtime(name: &str, payload: &[u8]) -> Result<Self, EventError> {
        check_name(name)?;
        if payload.len() > PAYLOAD_MAX {
            return Err(EventError::Payload(name.to_owned()));
        }
        Ok(Self {
            imr: RUNTIME_IMR,
            event_type: EVENT_TYPE,
            digest: digest(EVENT_TYPE, name, payload),
            event: name.to_owned(),
            event_payload: payload.to_vec(),
        })
    }
}

/// The digest of an event.
#[must_use]
pub fn digest(event_type: u32, name: &str, payload: &[u8]) -> Digest {
    let mut hash = Sha384::new();
    hash.update(event_type.to_le_bytes());
    hash.update(b":");
    hash.update(name.as_bytes());
    hash.update(b":");
    hash.update(payload);
    hash.finalize().into()
}

/// The register after extending it by a digest.
#[must_use]
pub fn extend(register: &Digest, digest: &Digest) -> Digest {
    let mut hash = Sha384::new();
    hash.update(register);
    hash.update(digest);
    hash.finalize().into()
}

/// The values of all four registers after a log, each starting from zero.
///
/// # Errors
/// [`EventError::Register`] for an event of another register.
pub fn replay(events: &[Event]) -> Result<[Digest; 4], EventError> {
    let mut registers = [[0; 48]; 4];
    for (index, event) in events.iter().enumerate() {
        let slot = usize::try_from(event.imr).ok().and_then(|imr| registers.get_mut(imr));
        let register = slot.ok_or(EventError::Register { index, imr: event.imr })?;
        *register = extend(register, &event.digest);
    }
    Ok(registers)
}

/// Parses a log, and recomputes the digest of every runtime event from its name and payload.
///
/// # Errors
/// [`EventError`] names the first event that is not as it should be.
pub fn parse(json: &[u8]) -> Result<Vec<Event>, EventError> {
    if json.len() > LOG_MAX {
        return Err(EventError::TooLarge);
    }
    let events: Vec<Event> = serde_json::from_slice(json).map_err(|e| EventError::Json(e.to_string()))?;
    if events.len() > EVENTS_MAX {
        return Err(EventError::TooLarge);
    }
    for (index, event) in events.iter().enumerate() {
        check(index, event)?;
    }
    Ok(events)
}

fn check(index: usize, event: &Event) -> Result<(), EventError> {
    if event.imr > RUNTIME_IMR {
        return Err(EventError::Register { index, imr: event.imr });
    }
    if event.imr != RUNTIME_IMR {
        return Ok(());
    }
    check_name(&event.event)?;
    if event.event_payload.len() > PAYLOAD_MAX {
        return Err(EventError::Payload(event.event.clone()));
    }
    if event.digest == digest(event.event_type, &event.event, &event.event_payload) {
        Ok(())
    } else {
        Err(EventError::Digest { index, name: event.event.clone() })
    }
}

fn check_name(name: &str) -> Result<(), EventError> {
    let allowed = |b: u8| (b.is_ascii_graphic() || b == b' ') && b != b':';
    if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(allowed) {
        return Err(EventError::Name(name.chars().take(NAME_MAX).collect()));
    }
    Ok(())
}

/// Names of the trusted prefix, in their only order (trust rule T7).
pub const TRUSTED: [&str; 10] = [
    "system-preparing",
    "app-id",
    "compose-hash",
    "instance-id",
    "boot-mr-done",
    "os-image-hash",
    "host-inputs",
    "key-provider",
    "storage-fs",
    "system-ready",
];

/// How far a boot had come when the log was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Milestone {
    /// The log ends at `host-inputs`: the only moment at which app keys may be asked for.
    KeysWanted,
    /// The log contains `system-ready`.
    Ready,
}

/// What the trusted prefix says. Every field is a claim until RTMR3 and the quote are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trusted {
    /// How far the boot had come.
    pub milestone: Milestone,
    /// `app-id`.
    pub app_id: AppId,
    /// `compose-hash`.
    pub compose_hash: ComposeHash,
    /// `instance-id`; `None` for an app whose instances share everything.
    pub instance_id: Option<InstanceId>,
    /// `os-image-hash`.
    pub os_image_hash: OsImageHash,
    /// `host-inputs`: SHA-256 over the sorted (name, length, sha256) of the host's files.
    pub host_inputs: [u8; 32],
    /// `key-provider` as JSON text, once ready.
    pub key_provider: Option<Vec<u8>>,
}

impl Trusted {
    /// Reads the trusted prefix of a parsed log. What an app adds after `system-ready` is never looked at, and a name of
    /// the prefix inside it twice is out of order.
    ///
    /// # Errors
    /// [`EventError::Order`] or [`EventError::Form`].
    pub fn of(events: &[Event]) -> Result<Self, EventError> {
        let runtime: Vec<&Event> = events.iter().filter(|e| e.imr == RUNTIME_IMR).collect();
        let milestone = if runtime.len() == 7 { Milestone::KeysWanted } else { Milestone::Ready };
        let length = if milestone == Milestone::KeysWanted { 7 } else { TRUSTED.len() };
        for (index, expected) in TRUSTED.into_iter().take(length).enumerate() {
            let found = runtime.get(index);
            if !found.is_some_and(|e| e.event == expected && e.event_type == EVENT_TYPE) {
                let found = found.map(|e| e.event.clone()).unwrap_or_default();
                return Err(EventError::Order { index, found, expected });
            }
        }
        let payload =
            |index: usize| runtime.get(index).map(|e| e.event_payload.as_slice()).unwrap_or_default();
        Ok(Self {
            milestone,
            app_id: exact::<20>("app-id", payload(1))?.into(),
            compose_hash: ComposeHash::from(exact::<32>("compose-hash", payload(2))?),
            instance_id: instance(payload(3))?,
            os_image_hash: OsImageHash::from(exact::<32>("os-image-hash", payload(5))?),
            host_inputs: exact::<32>("host-inputs", payload(6))?,
            key_provider: (milestone == Milestone::Ready).then(|| payload(7).to_vec()),
        })
    }
}

fn exact<const N: usize>(name: &'static str, payload: &[u8]) -> Result<[u8; N], EventError> {
    payload.try_into().map_err(|_| EventError::Form(name))
}

fn instance(payload: &[u8]) -> Result<Option<InstanceId>, EventError> {
    if payload.is_empty() {
        return Ok(None);
    }
    Ok(Some(exact::<20>("instance-id", payload)?.into()))
}

#[cfg(test)]
#[path = "event_log_tests.rs"]
mod tests;
