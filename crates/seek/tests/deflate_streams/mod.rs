//! Deflate streams of every kind, made by zlib-rs and by hand.
#![allow(unsafe_code, dead_code)] // zlib's strategies are behind its C interface; each test uses a part

use libz_rs_sys::{
    Z_DEFLATED, Z_FINISH, Z_OK, Z_STREAM_END, deflate, deflateBound, deflateEnd, deflateInit2_,
    z_stream, zlibVersion,
};

/// How to compress.
#[derive(Debug, Clone, Copy)]
pub struct Recipe {
    /// 0 to 9.
    pub level: i32,
    /// `Z_DEFAULT_STRATEGY` (0) to `Z_FIXED` (4).
    pub strategy: i32,
    /// 1 to 9: how many symbols a block may have.
    pub memory: i32,
    /// After every so many bytes, flush with `flush`.
    pub flush_every: usize,
    /// `Z_NO_FLUSH` (0) to `Z_FULL_FLUSH` (3), or `Z_BLOCK` (5).
    pub flush: i32,
    /// With gzip header and trailer.
    pub gzip: bool,
}

impl Recipe {
    /// Raw deflate of this level.
    pub fn level(level: i32) -> Self {
        Self {
            level,
            strategy: 0,
            memory: 8,
            flush_every: usize::MAX,
            flush: 0,
            gzip: false,
        }
    }
}

/// Compresses `data`.
pub fn compress(data: &[u8], recipe: Recipe) -> Vec<u8> {
    let mut stream = z_stream::default();
    let window_bits = if recipe.gzip { 15 + 16 } else { -15 };
    // SAFETY: a default stream, and the version and size of the library that is linked.
    let status = unsafe {
        deflateInit2_(
            &mut stream,
            recipe.level,
            Z_DEFLATED,
            window_bits,
            recipe.memory,
            recipe.strategy,
            zlibVersion(),
            size_of::<z_stream>() as i32,
        )
    };
    assert_eq!(status, Z_OK, "{recipe:?}");
    let pieces: Vec<&[u8]> = data.chunks(recipe.flush_every).collect();
    // SAFETY: the stream was initialised.
    let bound = unsafe { deflateBound(&mut stream, data.len() as u64) } as usize;
    let mut out = vec![0; bound + 64 * (pieces.len() + 1)];
    stream.next_out = out.as_mut_ptr();
    stream.avail_out = out.len() as u32;
    for piece in &pieces {
        stream.next_in = piece.as_ptr().cast_mut();
        stream.avail_in = piece.len() as u32;
        // SAFETY: an initialised stream; next_in and next_out describe `piece` and `out`.
        let status = unsafe { deflate(&mut stream, recipe.flush) };
        assert_eq!((status, stream.avail_in), (Z_OK, 0), "{recipe:?}");
    }
    // SAFETY: as above; the input is used up.
    let status = unsafe { deflate(&mut stream, Z_FINISH) };
    assert_eq!(status, Z_STREAM_END, "{recipe:?}");
    let len = out.len() - stream.avail_out as usize;
    // SAFETY: ended once.
    unsafe { deflateEnd(&mut stream) };
    out.truncate(len);
    out
}

/// Content of several kinds, `len` bytes of each: text, machine code, noise, zeros, short periods.
pub fn contents(len: usize) -> Vec<Vec<u8>> {
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let middle = program.len() / 3;
    let mut random = Random(7);
    let mut periods = Vec::new();
    while periods.len() < len {
        let (period_len, times) = (1 + random.below(40), 1 + random.below(60));
        let period = random.bytes(period_len);
        periods.extend(period.iter().cycle().take(period.len() * times));
    }
    periods.truncate(len);
    vec![
        random.text(len),
        program[middle..][..len].to_vec(),
        random.bytes(len),
        vec![0; len],
        periods,
    ]
}

/// xorshift64: the same on every run.
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// The next number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end
    }

    /// Bytes that do not compress.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| (self.next() >> 24) as u8).collect()
    }

    /// Words of a small vocabulary: compresses about as well as source code.
    pub fn text(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 16);
        while out.len() < len {
            out.extend_from_slice(format!("{:x} ", self.below(3000) * 7919).as_bytes());
        }
        out.truncate(len);
        out
    }
}

/// Writes a stream bit by bit.
#[derive(Debug, Default, Clone)]
pub struct BitWriter {
    bytes: Vec<u8>,
    count: usize,
}

impl BitWriter {
    /// Appends the low `count` bits of `value`, lowest first.
    pub fn bits(mut self, value: u32, count: usize) -> Self {
        for bit in 0..count {
            if self.count.is_multiple_of(8) {
                self.bytes.push(0);
            }
            let byte = self.bytes.last_mut().unwrap();
            *byte |= ((u64::from(value) >> bit.min(63) & 1) as u8) << (self.count % 8);
            self.count += 1;
        }
        self
    }

    /// Appends a Huffman code, first bit first.
    pub fn code(self, code: &str) -> Self {
        code.bytes()
            .fold(self, |writer, bit| writer.bits(u32::from(bit == b'1'), 1))
    }

    /// What was written.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}
