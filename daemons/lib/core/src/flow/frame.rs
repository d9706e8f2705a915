// SPDX-License-Identifier: Apache-2.0
//! Frames: length and JSON.

use super::{
    BASE_DOMAINS_MAX, CERTIFICATE_NAMES_MAX, CERTIFICATES_MAX, Certificate, Config, FRAME_MAX, FromFlow,
    INSTANCES_MAX, Instance, NAME_MAX, PEM_MAX, PORTS_MAX, ToFlow,
};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use zeroize::{Zeroize, Zeroizing};

/// Bytes of a frame's length.
const HEADER: usize = 4;

/// Why a frame is not one.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`FRAME_MAX`].
    #[error("frame of {0} bytes is larger than {FRAME_MAX}")]
    TooLarge(usize),
    /// Not the JSON it should be.
    #[error("frame is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// More of something than is allowed, or a name or port that cannot be.
    #[error("frame has {0}")]
    Limit(&'static str),
}

/// What a frame says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed<T> {
    /// A message of this version.
    Known(T),
    /// A kind of a newer version, to be skipped.
    Unknown(String),
}

/// A kind of messages: [`ToFlow`] or [`FromFlow`].
pub trait Message: Serialize + DeserializeOwned {
    /// The kinds it has.
    const KINDS: &'static [&'static str];

    /// Compares with the limits.
    ///
    /// # Errors
    /// [`FrameError::Limit`] naming what is too much.
    fn check(&self) -> Result<(), FrameError>;
}

impl Message for ToFlow {
    const KINDS: &'static [&'static str] =
        &["config", "certificates", "routes", "route-delta", "name-answer", "drain"];

    fn check(&self) -> Result<(), FrameError> {
        match self {
            Self::Config(config) => config.check(),
            Self::Certificates(all) => {
                limit(all.len() <= CERTIFICATES_MAX, "too many certificates")?;
                all.iter().try_for_each(Certificate::check)
            }
            Self::Routes { instances } | Self::RouteDelta { upsert: instances, .. } => {
                limit(instances.len() <= INSTANCES_MAX, "too many instances")?;
                instances.iter().try_for_each(Instance::check)
            }
            Self::NameAnswer { name, target, .. } => {
                limit(name.len() <= NAME_MAX, "too long a name")?;
                limit(target.is_none_or(|target| target.port != 0), "port 0")
            }
            Self::Drain { .. } => Ok(()),
        }
    }
}

impl Message for FromFlow {
    const KINDS: &'static [&'static str] = &["hello", "name", "stats", "drained"];

    fn check(&self) -> Result<(), FrameError> {
        match self {
            Self::Name { name } => limit(name.len() <= NAME_MAX, "too long a name"),
            Self::Stats(stats) => limit(stats.instances.len() <= INSTANCES_MAX, "too many instances"),
            Self::Hello { .. } | Self::Drained {} => Ok(()),
        }
    }
}

impl Config {
    fn check(&self) -> Result<(), FrameError> {
        limit(self.base_domains.len() <= BASE_DOMAINS_MAX, "too many base domains")?;
        let fits = |name: &String| !name.is_empty() && name.len() <= NAME_MAX;
        limit(self.base_domains.iter().all(fits), "a base domain that is empty or too long")?;
        limit(self.tappd_port != 0, "port 0")
    }
}

impl Certificate {
    fn check(&self) -> Result<(), FrameError> {
        limit(self.names.len() <= CERTIFICATE_NAMES_MAX, "too many names of a certificate")?;
        limit(self.names.iter().all(|name| name.len() <= NAME_MAX), "too long a name")?;
        let size = self.chain.len().max(self.key.expose().len());
        limit(size <= PEM_MAX, "too large a certificate or key")
    }
}

impl Instance {
    fn check(&self) -> Result<(), FrameError> {
        let policy = self.port_policy.as_ref().map_or(0, std::collections::BTreeSet::len);
        limit(policy.max(self.proxy_protocol.len()) <= PORTS_MAX, "too many ports of an instance")
    }
}

fn limit(holds: bool, otherwise: &'static str) -> Result<(), FrameError> {
    if holds { Ok(()) } else { Err(FrameError::Limit(otherwise)) }
}

/// Parses the JSON of one frame, without its length.
///
/// # Errors
/// [`FrameError`] when it is too large, not valid, or beyond a limit.
pub fn parse<T: Message>(body: &[u8]) -> Result<Parsed<T>, FrameError> {
    if body.len() > FRAME_MAX {
        return Err(FrameError::TooLarge(body.len()));
    }
    match serde_json::from_slice::<T>(body) {
        Ok(message) => message.check().map(|()| Parsed::Known(message)),
        Err(error) => match unknown_kind(body, T::KINDS) {
            Some(kind) => Ok(Parsed::Unknown(kind)),
            None => Err(error.into()),
        },
    }
}

/// The kind of a well-formed frame, when it is none of these.
fn unknown_kind(body: &[u8], known: &[&str]) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Shape {
        Object(BTreeMap<String, IgnoredAny>),
        Word(String),
    }
    let kind = match serde_json::from_slice(body).ok()? {
        Shape::Object(object) if object.len() == 1 => object.into_keys().next()?,
        Shape::Object(_) => return None,
        Shape::Word(word) => word,
    };
    (!known.contains(&kind.as_str())).then(|| kind.chars().take(64).collect())
}

/// Formats one frame, with its length. The buffer never moved while it was filled, so that a key leaves no copies.
///
/// # Errors
/// [`FrameError`] when it would be too large or beyond a limit.
pub fn format<T: Message>(message: &T) -> Result<Zeroizing<Vec<u8>>, FrameError> {
    message.check()?;
    let mut size = Size(0);
    serde_json::to_writer(&mut size, message)?;
    let length = u32::try_from(size.0).ok().filter(|_| size.0 <= FRAME_MAX);
    let length = length.ok_or(FrameError::TooLarge(size.0))?;
    let mut frame = Zeroizing::new(Vec::with_capacity(HEADER + size.0));
    frame.extend_from_slice(&length.to_be_bytes());
    serde_json::to_writer(&mut *frame, message)?;
    Ok(frame)
}

/// Counts what is written.
struct Size(usize);

impl io::Write for Size {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Cuts a stream into frames.
#[derive(Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes of the buffer that were given out.
    taken: usize,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Decoder({} bytes)", self.buffer.len() - self.taken)
    }
}

impl Decoder {
    /// Takes bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        let rest = self.buffer.get(self.taken..).unwrap_or_default();
        if self.taken > 0 || self.buffer.capacity() < rest.len() + bytes.len() {
            // Moved by hand, so that a key is erased where it was.
            let mut buffer = Vec::with_capacity((rest.len() + bytes.len()) * 2);
            buffer.extend_from_slice(rest);
            self.buffer.as_mut_slice().zeroize();
            (self.buffer, self.taken) = (buffer, 0);
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The JSON of the next frame, once it is whole.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`]; the stream is of no use then.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameError> {
        let Some(length) = self.length() else { return Ok(None) };
        if length > FRAME_MAX {
            return Err(FrameError::TooLarge(length));
        }
        let start = self.taken + HEADER;
        let Some(body) = self.buffer.get(start..start + length) else { return Ok(None) };
        self.taken = start + length;
        Ok(Some(body))
    }

    /// Length of the next frame, when it is there.
    fn length(&self) -> Option<usize> {
        let header = self.buffer.get(self.taken..)?.first_chunk::<HEADER>()?;
        usize::try_from(u32::from_be_bytes(*header)).ok()
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        self.buffer.as_mut_slice().zeroize();
    }
}
