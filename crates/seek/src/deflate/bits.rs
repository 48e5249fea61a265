//! Bits from bytes, lowest bit first (RFC 1951, section 3.1.1).

use super::NeedInput;

/// Takes bits from `input`, and can take them back.
#[derive(Debug, Clone, Copy)]
pub struct Bits<'a> {
    pub input: &'a [u8],
    /// The next byte of `input` to load.
    pub at: usize,
    /// Loaded bits, the next one lowest. Those from `count` on are zero, or equal to the bits that
    /// `input[at..]` would give.
    pub buffer: u64,
    /// How many bits of `buffer` are loaded.
    pub count: u32,
}

impl<'a> Bits<'a> {
    /// Continues behind `rest`, which is what [`Self::put_back`] left.
    pub fn new(input: &'a [u8], rest: SplitByte) -> Self {
        Self {
            input,
            at: 0,
            buffer: u64::from(rest.bits),
            count: u32::from(rest.count),
        }
    }

    /// Makes sure that `count` (at most 48) bits are loaded.
    #[inline]
    pub fn need(&mut self, count: u32) -> Result<(), NeedInput> {
        match self.load(count) {
            true => Ok(()),
            false => Err(NeedInput),
        }
    }

    /// Loads bits until there are `count` (at most 48) or the input is used up; whether there are.
    #[inline]
    pub fn load(&mut self, count: u32) -> bool {
        while self.count < count {
            let Some(&byte) = self.input.get(self.at) else {
                return false;
            };
            self.buffer |= u64::from(byte) << self.count;
            self.count += 8;
            self.at += 1;
        }
        true
    }

    /// The loaded bits, zeros above them.
    #[inline]
    pub fn peek(&self) -> u64 {
        self.buffer & ((1 << self.count) - 1)
    }

    /// Drops `count` loaded bits.
    #[inline]
    pub fn skip(&mut self, count: u32) {
        debug_assert!(count <= self.count);
        self.buffer >>= count;
        self.count -= count;
    }

    /// Loads and takes `count` (at most 32) bits.
    #[inline]
    pub fn take(&mut self, count: u32) -> Result<u32, NeedInput> {
        self.need(count)?;
        let bits = self.peek() & ((1 << count) - 1);
        self.skip(count);
        Ok(bits as u32)
    }

    /// Drops what is left of a byte that was begun.
    pub fn align(&mut self) {
        self.skip(self.count % 8);
    }

    /// Gives whole bytes back to the input.
    pub fn put_back(&mut self) -> SplitByte {
        self.at -= (self.count / 8) as usize;
        self.count %= 8;
        self.buffer = self.peek();
        SplitByte {
            bits: self.buffer as u8,
            count: self.count as u8,
        }
    }
}

/// What is left of a byte of which lower bits were taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SplitByte {
    bits: u8,
    /// 0 to 7.
    pub count: u8,
}
