// SPDX-License-Identifier: Apache-2.0
//! Counts images in the plain output of `docker compose pull`. Pure.
//!
//! Compose prints ` web Pulling ` and ` web Pulled ` for each service, and longer lines for layers.

use std::collections::BTreeMap;

/// Images seen so far.
#[derive(Debug, Default)]
pub struct Pulls {
    done: BTreeMap<String, bool>,
}

impl Pulls {
    /// Takes one line; the new count as (done, total) if it changed.
    pub fn line(&mut self, line: &str) -> Option<(u32, u32)> {
        let mut words = line.split_whitespace();
        let (Some(service), Some(word), None) = (words.next(), words.next(), words.next()) else {
            return None;
        };
        let done = match word {
            "Pulling" => false,
            "Pulled" | "Skipped" => true,
            _ => return None,
        };
        let before = self.done.insert(service.to_owned(), done);
        (before != Some(done)).then(|| self.count())
    }

    fn count(&self) -> (u32, u32) {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        (number(self.done.values().filter(|d| **d).count()), number(self.done.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_counted_and_layers_are_not() {
        let mut pulls = Pulls::default();
        for (line, expected) in [
            (" web Pulling ", Some((0, 1))),
            (" counter Pulling ", Some((0, 2))),
            (" 0a1b2c3d4e5f Pulling fs layer ", None),
            (" 0a1b2c3d4e5f Downloading [=> ]  1.2MB/9MB", None),
            (" 0a1b2c3d4e5f Pull complete ", None),
            (" web Pulled ", Some((1, 2))),
            (" web Pulled ", None),
            ("", None),
            ("Error response from daemon", None),
            (" counter Pulled ", Some((2, 2))),
        ] {
            assert_eq!(pulls.line(line), expected, "{line}");
        }
    }
}
