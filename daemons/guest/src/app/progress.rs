// SPDX-License-Identifier: Apache-2.0
//! Reads the plain output of `docker compose up`. Pure.
//!
//! Compose prints ` web Pulling ` and ` web Pulled ` for each service, lines for layers between them, and then
//! ` Container dstack-web-1  Creating ` and the like.

use dstack_core::boot::Failure;
use std::collections::BTreeMap;

/// What has been seen so far.
#[derive(Debug, Default)]
pub struct Up {
    pulled: BTreeMap<String, bool>,
    creating: bool,
}

/// What a line means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Pulling began.
    Pull,
    /// That many images are there.
    Pulled {
        /// Images that are there.
        done: u32,
        /// Images that are pulled in all.
        total: u32,
    },
    /// The first network, volume or container is made.
    Create,
    /// A layer's progress: not worth a line of the journal.
    Layer,
}

impl Up {
    /// Takes one line; several events at the first pull.
    pub fn line(&mut self, line: &str) -> Vec<Event> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [service, "Pulling"] => self.pull(service, false),
            [service, "Pulled" | "Skipped"] => self.pull(service, true),
            ["Network" | "Volume" | "Container", _, _, ..] if !self.creating => {
                self.creating = true;
                vec![Event::Create]
            }
            [layer, _, ..] if is_layer(layer) => vec![Event::Layer],
            _ => Vec::new(),
        }
    }

    /// What it means when compose ends badly now.
    #[must_use]
    pub fn failure(&self) -> Failure {
        let missing = self.pulled.values().any(|done| !done);
        if missing && !self.creating { Failure::PullFailed } else { Failure::ComposeFailed }
    }

    fn pull(&mut self, service: &str, done: bool) -> Vec<Event> {
        let first = self.pulled.is_empty();
        if self.pulled.insert(service.to_owned(), done) == Some(done) {
            return Vec::new();
        }
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let done = number(self.pulled.values().filter(|d| **d).count());
        let count = Event::Pulled { done, total: number(self.pulled.len()) };
        if first { vec![Event::Pull, count] } else { vec![count] }
    }
}

/// Layers go by the first 12 hex digits of their digest.
fn is_layer(word: &str) -> bool {
    word.len() == 12 && word.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PULLS: [(&str, &[Event]); 11] = [
        ("time=\"...\" level=warning msg=\"the attribute `version` is obsolete\"", &[]),
        (" web Pulling ", &[Event::Pull, Event::Pulled { done: 0, total: 1 }]),
        (" counter Pulling ", &[Event::Pulled { done: 0, total: 2 }]),
        (" 0a1b2c3d4e5f Pulling fs layer ", &[Event::Layer]),
        (" 0a1b2c3d4e5f Downloading [=> ]  1.2MB/9MB", &[Event::Layer]),
        (" 0a1b2c3d4e5f Pull complete ", &[Event::Layer]),
        (" web Pulled ", &[Event::Pulled { done: 1, total: 2 }]),
        (" web Pulled ", &[]),
        ("", &[]),
        ("Error response from daemon: manifest unknown", &[]),
        (" counter Pulled ", &[Event::Pulled { done: 2, total: 2 }]),
    ];

    #[test]
    fn services_are_counted_and_layers_are_not() {
        let mut up = Up::default();
        for (line, expected) in PULLS {
            assert_eq!(up.line(line), expected, "{line}");
        }
        assert_eq!(up.line(" Network dstack_default  Creating"), [Event::Create]);
        assert_eq!(up.line(" Container dstack-web-1  Creating"), []);
    }

    #[test]
    fn what_failed_is_told_from_how_far_it_came() {
        for (lines, expected) in [
            (&[][..], Failure::ComposeFailed),
            (&["validating docker-compose.yaml: services.web Additional property x"], Failure::ComposeFailed),
            (&[" web Pulling ", " web Error "], Failure::PullFailed),
            (&[" web Pulling ", " web Pulled ", " Container a-web-1  Creating"], Failure::ComposeFailed),
            (&[" web Pulling ", " web Pulled "], Failure::ComposeFailed),
        ] {
            let mut up = Up::default();
            lines.iter().for_each(|line| drop(up.line(line)));
            assert_eq!(up.failure(), expected, "{lines:?}");
        }
    }
}
