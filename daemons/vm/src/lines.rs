// SPDX-License-Identifier: Apache-2.0
//! Splits a stream into lines of bounded length.

/// Collects bytes until a line is whole.
#[derive(Debug)]
pub struct Lines {
    max: usize,
    buffer: Vec<u8>,
    /// The rest of a line that was too long is being skipped.
    skipping: bool,
    /// Lines that were too long and were dropped.
    pub dropped: u64,
}

impl Lines {
    /// Lines of at most `max` bytes, without their line end; longer ones are dropped and counted.
    #[must_use]
    pub const fn new(max: usize) -> Self {
        Self { max, buffer: Vec::new(), skipping: false, dropped: 0 }
    }

    /// Adds bytes and takes the lines that are whole, without `\n` or `\r\n`.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut whole = Vec::new();
        for byte in bytes {
            match byte {
                b'\n' if self.skipping => self.skipping = false,
                b'\n' => whole.push(self.take()),
                _ if self.skipping => {}
                // One byte more than `max`: the `\r` of the line end.
                _ if self.buffer.len() > self.max => self.drop_line(),
                _ => self.buffer.push(*byte),
            }
        }
        whole
    }

    fn take(&mut self) -> Vec<u8> {
        let mut line = std::mem::take(&mut self.buffer);
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        line
    }

    fn drop_line(&mut self) {
        self.buffer.clear();
        self.skipping = true;
        self.dropped += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_and_bounds() {
        let mut lines = Lines::new(5);
        assert_eq!(lines.push(b"ab"), Vec::<Vec<u8>>::new());
        assert_eq!(lines.push(b"c\r\n\nhello\nx"), vec![b"abc".to_vec(), b"".to_vec(), b"hello".to_vec()]);
        assert_eq!(lines.push(b"234567890\nok\n"), vec![b"ok".to_vec()]);
        assert_eq!(lines.dropped, 1);
    }
}
