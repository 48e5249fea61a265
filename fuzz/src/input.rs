//! Reads decisions from a fuzzer's bytes. When they are used up every number is 0: no input is too short.

/// The bytes that are left.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((&first, rest)) => {
                self.0 = rest;
                first
            }
            None => 0,
        }
    }

    /// The next two bytes, little endian.
    pub fn short(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// A number of up to 64 bits. The first byte chooses how many bytes follow, or one of the numbers at which
    /// arithmetic goes wrong.
    pub fn number(&mut self) -> u64 {
        match self.byte() {
            small @ 0..0x80 => u64::from(small),
            0x80..0xa0 => u64::from(self.short()),
            0xa0..0xb0 => u64::from(self.short()) << 9,
            bits @ 0xb0..0xf0 => {
                (1u64 << (bits - 0xb0)).wrapping_add_signed(i64::from(self.byte() as i8))
            }
            _ => u64::MAX.wrapping_sub(u64::from(self.byte())) >> (self.byte() % 4),
        }
    }

    /// The next `len` bytes, or what there is.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A piece whose length stands before it in two bytes.
    pub fn piece(&mut self) -> &'a [u8] {
        let len = self.short().into();
        self.take(len)
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}
