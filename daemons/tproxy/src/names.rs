// SPDX-License-Identifier: Apache-2.0
//! Custom domains: their owners say by TXT records where they lead.
//!
//! For `www.example.org` these are asked in this order, and the first that has a usable value counts:
//!
//! ```text
//! <prefix>.www.example.org            prefix: _dstack-app-address
//! _tapp-address.www.example.org
//! <prefix>-wildcard.example.org
//! ```
//!
//! A value is `<app or instance id>:<port>` (`core::sni::parse_txt`). It chooses among registered instances and can name
//! no address (known attack P29).

use dstack_core::flow::Target;
use dstack_core::sni::parse_txt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// The prefix of earlier versions.
const OLD_PREFIX: &str = "_tapp-address";
/// Longest name that is asked for, bytes.
const NAME_MAX: usize = 253;
/// Shortest and longest time that an answer is kept, seconds.
const TTL: (u32, u32) = (5, 3600);
/// Time that a missing answer is kept, seconds.
pub const NEGATIVE_TTL: u32 = 30;
/// Time that a failed lookup is kept, seconds.
pub const FAILED_TTL: u32 = 5;
/// Names that are looked up at a time.
const LOOKUPS: usize = 64;
/// Names that are looked up or wait for it.
const WAITING: usize = 4096;

/// A future behind a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// TXT records of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Txt {
    /// The first string of each record, in the order of the answer.
    pub values: Vec<String>,
    /// How long they hold, seconds.
    pub ttl: u32,
}

/// Who looks up TXT records.
pub trait Lookup: Send + Sync + std::fmt::Debug {
    /// The records of a name; none is an empty list.
    ///
    /// The error says why it is not known.
    fn txt<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Txt, String>>;
}

/// Where a name leads, and how long that may be believed, seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Where.
    pub target: Option<Target>,
    /// How long.
    pub ttl: u32,
}

/// The names to ask for, in their order.
#[must_use]
pub fn questions(name: &str, prefix: &str) -> Vec<String> {
    let mut questions = vec![format!("{prefix}.{name}")];
    if prefix != OLD_PREFIX {
        questions.push(format!("{OLD_PREFIX}.{name}"));
    }
    if let Some((_, parent)) = name.split_once('.').filter(|(_, parent)| parent.contains('.')) {
        questions.push(format!("{prefix}-wildcard.{parent}"));
    }
    questions.retain(|question| question.len() <= NAME_MAX);
    questions
}

/// Whether a name can be asked for: labels of `[a-z0-9_-]`, at least two.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(known);
    name.len() <= NAME_MAX && name.contains('.') && name.split('.').all(label)
}

/// Looks names up.
#[derive(Debug, Clone)]
pub struct Names {
    lookup: Arc<dyn Lookup>,
    /// For names under way, and for those with the ones that wait.
    slots: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

impl Names {
    /// Asks this.
    #[must_use]
    pub fn new(lookup: Arc<dyn Lookup>) -> Self {
        Self { lookup, slots: Arc::new(Semaphore::new(LOOKUPS)), places: Arc::new(Semaphore::new(WAITING)) }
    }

    /// Where a name leads. Too many at a time are answered by a short "nowhere".
    pub async fn resolve(&self, name: &str, prefix: &str) -> Answer {
        let nowhere = Answer { target: None, ttl: NEGATIVE_TTL };
        if !is_name(name) {
            return nowhere;
        }
        let Ok(_place) = self.places.try_acquire() else { return Answer { target: None, ttl: 1 } };
        // The semaphore is never closed.
        let Ok(_slot) = self.slots.acquire().await else { return nowhere };
        let mut failed = false;
        for question in questions(name, prefix) {
            match self.lookup.txt(&question).await {
                Ok(txt) => {
                    if let Some(target) = txt.values.iter().find_map(|value| target(value)) {
                        return Answer { target: Some(target), ttl: txt.ttl.clamp(TTL.0, TTL.1) };
                    }
                }
                Err(error) => {
                    tracing::debug!("{question} cannot be looked up: {error}");
                    failed = true;
                }
            }
        }
        if failed { Answer { target: None, ttl: FAILED_TTL } } else { nowhere }
    }
}

fn target(value: &str) -> Option<Target> {
    parse_txt(value).ok().map(|(id, port)| Target { id, port })
}

#[cfg(test)]
#[path = "names_tests.rs"]
mod tests;
