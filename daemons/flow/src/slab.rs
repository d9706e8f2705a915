// SPDX-License-Identifier: Apache-2.0
//! Connections by number. A number is used again, so each use has a generation: an event or timer of an ended
//! connection never reaches the next one.

/// Names one connection of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token {
    /// Place in the slab.
    pub slot: u32,
    /// Use of the place; 24 bits.
    pub generation: u32,
}

/// Which of a connection's sockets an event is about: 0 the client, others the attempts to reach an instance.
pub type Side = u8;

const GENERATION_BITS: u32 = 24;

impl Token {
    /// The token and a side in the 64 bits that an event carries.
    #[must_use]
    pub fn pack(self, side: Side) -> u64 {
        u64::from(self.slot) << 32 | u64::from(self.generation) << 8 | u64::from(side)
    }

    /// The token and side of an event.
    #[must_use]
    pub fn unpack(data: u64) -> (Self, Side) {
        let [s3, s2, s1, s0, g2, g1, g0, side] = data.to_be_bytes();
        let slot = u32::from_be_bytes([s3, s2, s1, s0]);
        (Self { slot, generation: u32::from_be_bytes([0, g2, g1, g0]) }, side)
    }
}

/// Values by token.
#[derive(Debug)]
pub struct Slab<T> {
    entries: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Reserves a place; fill it by [`Self::put`], or give it back by [`Self::free`]. `None` after 2^32 places.
    pub fn reserve(&mut self) -> Option<Token> {
        if let Some(slot) = self.free.pop() {
            let generation = self.entries.get(slot as usize)?.0;
            return Some(Token { slot, generation });
        }
        let slot = u32::try_from(self.entries.len()).ok()?;
        self.entries.push((0, None));
        Some(Token { slot, generation: 0 })
    }

    /// Takes a value out; its place stays reserved.
    pub fn take(&mut self, token: Token) -> Option<T> {
        let entry = self.entries.get_mut(token.slot as usize)?;
        if entry.0 == token.generation { entry.1.take() } else { None }
    }

    /// Looks at a value.
    #[must_use]
    pub fn get(&self, token: Token) -> Option<&T> {
        let entry = self.entries.get(token.slot as usize)?;
        if entry.0 == token.generation { entry.1.as_ref() } else { None }
    }

    /// Puts a value into its reserved place.
    pub fn put(&mut self, token: Token, value: T) {
        if let Some(entry) = self.entries.get_mut(token.slot as usize) {
            entry.1 = Some(value);
        }
    }

    /// Gives a reserved place back.
    pub fn free(&mut self, token: Token) {
        if let Some(entry) = self.entries.get_mut(token.slot as usize) {
            *entry = ((token.generation + 1) % (1 << GENERATION_BITS), None);
            self.free.push(token.slot);
        }
    }

    /// How many places are in use.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Whether no place is in use.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_old_token_finds_nothing() {
        let mut slab = Slab::default();
        let first = slab.reserve().unwrap();
        slab.put(first, 'a');
        assert_eq!((slab.len(), slab.get(first)), (1, Some(&'a')));
        assert_eq!(slab.take(first), Some('a'));
        slab.free(first);
        let second = slab.reserve().unwrap();
        slab.put(second, 'b');
        assert_eq!(second.slot, first.slot);
        assert_eq!((slab.take(first), slab.get(first), slab.get(second)), (None, None, Some(&'b')));
    }

    #[test]
    fn tokens_survive_events() {
        for (slot, generation, side) in [(0, 0, 0), (7, 9, 1), (u32::MAX - 1, (1 << 24) - 1, 255)] {
            let token = Token { slot, generation };
            assert_eq!(Token::unpack(token.pack(side)), (token, side));
        }
    }
}
