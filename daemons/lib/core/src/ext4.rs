// SPDX-License-Identifier: Apache-2.0
//! What the boot reads of an ext4 superblock: how large the file system is, and when it was last written.

/// Where the superblock begins, bytes from the start of the device.
pub const OFFSET: u64 = 1024;
/// Its size, bytes.
pub const SIZE: usize = 1024;

/// Feature `64bit`: the block count has a high half.
const INCOMPAT_64BIT: u32 = 0x80;

/// A superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Blocks in all.
    pub blocks: u64,
    /// Size of one, bytes.
    pub block_size: u64,
    /// The newest of its times (made, mounted, written), seconds since 1970.
    pub newest: u64,
}

impl Superblock {
    /// Reads the fields; `None` when the bytes are not a superblock.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        let time = |low: usize, high: usize| Some(u64::from(word(low)?) | u64::from(*bytes.get(high)?) << 32);
        if bytes.len() < SIZE || bytes.get(0x38..0x3a)? != [0x53, 0xef] {
            return None;
        }
        let shift = word(0x18).filter(|shift| *shift <= 6)?;
        let high = if word(0x60)? & INCOMPAT_64BIT == 0 { 0 } else { word(0x150)? };
        let times = [time(0x2c, 0x275)?, time(0x30, 0x274)?, time(0x108, 0x276)?];
        Some(Self {
            blocks: u64::from(word(4)?) | u64::from(high) << 32,
            block_size: 1024 << shift,
            newest: times.into_iter().max()?,
        })
    }

    /// Whether a device of this size has room for at least one more block.
    #[must_use]
    pub const fn can_grow(&self, device: u64) -> bool {
        device / self.block_size > self.blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut bytes = vec![0; SIZE];
        let mut put = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        put(4, 5_242_368);
        put(0x18, 2);
        put(0x2c, 1_764_000_000);
        put(0x30, 1_764_000_009);
        put(0x38, 0xef53);
        put(0x60, 0x2c2);
        put(0x108, 1_763_000_000);
        put(0x150, 1);
        bytes
    }

    #[test]
    fn fields_are_read() {
        let block = Superblock::parse(&sample()).unwrap();
        assert_eq!(block.blocks, (1 << 32) + 5_242_368);
        assert_eq!((block.block_size, block.newest), (4096, 1_764_000_009));
        assert!(!block.can_grow(block.blocks * 4096 + 4095) && block.can_grow(block.blocks * 4096 + 4096));
        let mut later = sample();
        later[0x275] = 1;
        assert_eq!(Superblock::parse(&later).unwrap().newest, (1 << 32) + 1_764_000_000);
        let mut small = sample();
        small[0x60] = 0x42;
        assert_eq!(Superblock::parse(&small).unwrap().blocks, 5_242_368);
    }

    #[test]
    fn other_bytes_are_none() {
        let (good, mut magic, mut shift) = (sample(), sample(), sample());
        magic[0x38] = 0;
        shift[0x18] = 32;
        for bad in [&good[..SIZE - 1], &magic, &shift, &[], &[0xff; SIZE]] {
            assert_eq!(Superblock::parse(bad), None);
        }
    }
}
