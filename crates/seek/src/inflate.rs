//! The one place that talks to zlib-rs through its C interface. The safe Rust interface cannot
//! stop at block borders, start in the middle of a byte, or be given a dictionary for raw deflate.
//! zlib.h documents every call used here.
#![allow(unsafe_code)]

use libz_rs_sys::{
    Z_BLOCK, Z_BUF_ERROR, Z_NO_FLUSH, Z_OK, Z_STREAM_END, inflate, inflateEnd, inflateInit2_,
    inflatePrime, inflateReset2, inflateSetDictionary, z_stream, zlibVersion,
};

/// What surrounds the deflate stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrapper {
    /// Nothing: raw deflate (RFC 1951).
    Raw,
    /// A gzip member with header and trailer (RFC 1952); the CRC is checked.
    Gzip,
}

/// Where a [`Inflate::step`] stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Input used up or output full.
    Buffers,
    /// At the border between two deflate blocks (or behind the gzip header); so many bits of the
    /// last consumed byte belong to what follows.
    Border {
        /// 0 to 7.
        unused_bits: u8,
    },
    /// The stream, trailer included, is complete.
    End,
}

/// The result of one step.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Input bytes used.
    pub consumed: usize,
    /// Output bytes written.
    pub produced: usize,
    /// Why it stopped.
    pub stop: Stop,
}

/// The stream is not deflate, or its checksum is wrong.
#[derive(Debug, Clone, Copy)]
pub struct Corrupt;

/// A zlib-rs decoder.
pub struct Inflate {
    // Boxed: zlib-rs keeps no pointer back to the stream, but zlib's contract forbids moving it.
    stream: Box<z_stream>,
}

// SAFETY: the decoder's state is owned by `stream` alone and reached only through `&mut self`;
// the input and output pointers in it are set anew by every `step`.
unsafe impl Send for Inflate {}

impl std::fmt::Debug for Inflate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inflate")
            .field("total_out", &self.stream.total_out)
            .finish()
    }
}

impl Inflate {
    /// A decoder at the start of a stream.
    pub fn new(wrapper: Wrapper) -> Self {
        let mut stream = Box::new(z_stream::default());
        // SAFETY: `stream` is a valid, default-initialised stream (null allocators select the
        // built-in ones); version and size are those of the library that we link.
        let status = unsafe {
            inflateInit2_(
                &mut *stream,
                window_bits(wrapper),
                zlibVersion(),
                size_of::<z_stream>() as i32,
            )
        };
        assert_eq!(
            status, Z_OK,
            "inflateInit2 fails only without memory or for a wrong version"
        );
        Self { stream }
    }

    /// Forgets everything and starts a new stream.
    pub fn reset(&mut self, wrapper: Wrapper) {
        // SAFETY: the stream was initialised by `new`.
        let status = unsafe { inflateReset2(&mut *self.stream, window_bits(wrapper)) };
        assert_eq!(
            status, Z_OK,
            "inflateReset2 fails only for a broken stream state"
        );
    }

    /// Raw only, before the first step: begins with the top `8 - skip_bits` bits of `first_byte`.
    pub fn prime(&mut self, first_byte: u8, skip_bits: u8) {
        debug_assert!((1..8).contains(&skip_bits));
        // SAFETY: initialised stream; at most 7 bits, as inflatePrime allows up to 16.
        let status = unsafe {
            inflatePrime(
                &mut *self.stream,
                i32::from(8 - skip_bits),
                i32::from(first_byte >> skip_bits),
            )
        };
        assert_eq!(
            status, Z_OK,
            "inflatePrime fails only for more than 16 bits"
        );
    }

    /// Raw only: the output that went before.
    pub fn set_dictionary(&mut self, window: &[u8]) {
        // SAFETY: initialised raw stream; zlib copies `window.len()` bytes from the pointer.
        let status = unsafe {
            inflateSetDictionary(&mut *self.stream, window.as_ptr(), window.len() as u32)
        };
        assert_eq!(
            status, Z_OK,
            "inflateSetDictionary on a raw stream fails only without memory"
        );
    }

    /// Decodes from `input` into `output` until a buffer is used up, a block border is met (when
    /// `stop_at_borders`), or the stream ends.
    pub fn step(
        &mut self,
        input: &[u8],
        output: &mut [u8],
        stop_at_borders: bool,
    ) -> Result<Step, Corrupt> {
        let (input, room) = (
            &input[..input.len().min(CHUNK_MAX)],
            output.len().min(CHUNK_MAX),
        );
        self.stream.next_in = input.as_ptr().cast_mut();
        self.stream.avail_in = input.len() as u32;
        self.stream.next_out = output.as_mut_ptr();
        self.stream.avail_out = room as u32;
        let flush = if stop_at_borders { Z_BLOCK } else { Z_NO_FLUSH };
        // SAFETY: initialised stream; next_in/avail_in and next_out/avail_out describe `input` and
        // `output`, both alive and unaliased for the call, and are not used after it.
        let status = unsafe { inflate(&mut *self.stream, flush) };
        let consumed = input.len() - self.stream.avail_in as usize;
        let produced = room - self.stream.avail_out as usize;
        let at_border = self.stream.data_type & 128 != 0 && self.stream.data_type & 64 == 0;
        let stop = match status {
            Z_STREAM_END => Stop::End,
            Z_OK if stop_at_borders && at_border => Stop::Border {
                unused_bits: (self.stream.data_type & 7) as u8,
            },
            Z_OK | Z_BUF_ERROR => Stop::Buffers,
            _ => return Err(Corrupt),
        };
        Ok(Step {
            consumed,
            produced,
            stop,
        })
    }
}

/// zlib counts buffers in 32 bits.
const CHUNK_MAX: usize = 1 << 30;

fn window_bits(wrapper: Wrapper) -> i32 {
    match wrapper {
        Wrapper::Raw => -15,
        Wrapper::Gzip => 15 + 16,
    }
}

impl Drop for Inflate {
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, ended once.
        unsafe { inflateEnd(&mut *self.stream) };
    }
}
