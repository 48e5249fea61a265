//! Decoding deflate (RFC 1951) for an index: stops at every block's border, says at which bit it
//! lies, and notes which earlier output the bytes behind it refer to.
//!
//! The way is libdeflate's: 64 bits at a time, tables whose entries hold everything about a symbol,
//! runs of literals, wide copies ([`fast`]). Where too little input is at hand for that, a careful
//! loop takes over ([`careful`]). Input comes in pieces of any size. What cannot be decoded yet (a
//! block's header, a symbol) is left to the caller, who brings it again with more behind it, so
//! there is no state for half a symbol.
//!
//! ```text
//!             ┌──────────► header ───────────┐
//!             │           (again with more)  │
//!        Stop::Border        ┌───────────────┴──────────────┐
//!             │              ▼                              ▼
//!             ├─────────  stored bytes          symbols: fast ⇄ careful
//!             └─────────────────────────────────────────────┘
//!                                  Stop::End behind the last block
//! ```
//!
//! What is invalid here is exactly what is invalid to zlib, and is told at the same byte: the node
//! resumes with zlib-rs. `crate::differential` compares the two.

mod bits;
mod careful;
mod fast;
mod header;
mod output;
mod tables;

pub use output::{BUFFER_LEN, Output, Reference};

use bits::{Bits, SplitByte};
use header::{BlockHeader, Body};
use tables::Codes;

/// A decoder of one deflate stream after another.
pub struct Inflater {
    codes: Box<Codes>,
    mode: Mode,
    in_last_block: bool,
    rest: SplitByte,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Header,
    Stored { left: usize },
    Coded,
    Ended,
}

/// Where [`Inflater::run`] stopped, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Input bytes used. With [`Stop::NeedInput`] the rest, less than [`UNIT_LEN_MAX`] bytes, must
    /// come again with more behind it.
    pub consumed: usize,
    /// Top bits of the last byte used that belong to what follows; 0 to 7.
    pub unused_bits: u8,
    pub stop: Stop,
}

/// Why [`Inflater::run`] stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    NeedInput,
    /// The output has no room for more symbols.
    OutputFull,
    /// Behind a block that is not the last.
    Border,
    /// Behind the last block.
    End,
}

/// Why a stream is not deflate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    #[error("a deflate block has an unknown type")]
    BlockType,
    #[error("the two lengths of a stored deflate block contradict each other")]
    StoredLen,
    #[error("a deflate block has too many length or distance symbols")]
    SymbolCount,
    #[error("the code lengths of a deflate block are no prefix code")]
    LengthsCode,
    #[error("a deflate block repeats a code length that it does not have, or too often")]
    Repetition,
    #[error("a deflate block has no code for its end")]
    NoEndOfBlock,
    #[error("the literals of a deflate block are no prefix code")]
    LiteralCode,
    #[error("the distances of a deflate block are no prefix code")]
    DistanceCode,
    #[error("a deflate block holds a symbol that does not exist")]
    Symbol,
    #[error("a deflate block refers back to before the stream's start")]
    Distance,
}

/// More than the input that a block's header takes, the longest unit that is decoded in one go:
/// 17 bits, 19 lengths of 3 bits, 316 code lengths of at most 14 bits.
pub const UNIT_LEN_MAX: usize = 1024;

/// The unit at hand is not complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct NeedInput;

/// Why a unit could not be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interrupt {
    NeedInput,
    Corrupt(Corrupt),
}

/// How decoding a block's symbols ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Symbols {
    EndOfBlock,
    OutputFull,
    /// Too little input to go on in this way.
    InputShort,
}

impl Inflater {
    /// A decoder at the start of a stream.
    pub fn new() -> Self {
        Self {
            codes: Box::new(Codes::new()),
            mode: Mode::Header,
            in_last_block: false,
            rest: SplitByte::default(),
        }
    }

    /// Forgets the stream and starts another.
    pub fn reset(&mut self) {
        self.mode = Mode::Header;
        self.in_last_block = false;
        self.rest = SplitByte::default();
    }

    /// Decodes `input` to `output` until a block ends, the output is full, or what is left of the
    /// input is no complete unit.
    pub fn run(&mut self, input: &[u8], output: &mut Output) -> Result<Progress, Corrupt> {
        let mut bits = Bits::new(input, self.rest);
        let stop = self.run_bits(&mut bits, output)?;
        self.rest = bits.put_back();
        Ok(Progress {
            consumed: bits.at,
            unused_bits: self.rest.count,
            stop,
        })
    }

    fn run_bits(&mut self, bits: &mut Bits<'_>, output: &mut Output) -> Result<Stop, Corrupt> {
        loop {
            match self.mode {
                Mode::Header => {
                    let start = *bits;
                    match header::read(bits, &mut self.codes) {
                        Ok(header) => self.begin_block(header),
                        Err(Interrupt::Corrupt(corrupt)) => return Err(corrupt),
                        Err(Interrupt::NeedInput) => {
                            *bits = start;
                            return Ok(Stop::NeedInput);
                        }
                    }
                }
                Mode::Stored { left: 0 } => return Ok(self.end_block()),
                Mode::Stored { left } => {
                    // The header ended with whole bytes: put those back that were loaded with it.
                    bits.put_back();
                    let copied = output.append(&bits.input[bits.at..], left);
                    bits.at += copied;
                    self.mode = Mode::Stored {
                        left: left - copied,
                    };
                    match left - copied {
                        0 => {}
                        _ if output.is_full() => return Ok(Stop::OutputFull),
                        _ => return Ok(Stop::NeedInput),
                    }
                }
                Mode::Coded => {
                    let symbols = match fast::decode(&self.codes, bits, output)? {
                        Symbols::InputShort => careful::decode(&self.codes, bits, output)?,
                        other => other,
                    };
                    match symbols {
                        Symbols::EndOfBlock => return Ok(self.end_block()),
                        Symbols::OutputFull => return Ok(Stop::OutputFull),
                        Symbols::InputShort => return Ok(Stop::NeedInput),
                    }
                }
                Mode::Ended => return Ok(Stop::End),
            }
        }
    }

    fn begin_block(&mut self, header: BlockHeader) {
        self.in_last_block = header.is_last;
        self.mode = match header.body {
            Body::Stored(len) => Mode::Stored {
                left: usize::from(len),
            },
            Body::Coded => Mode::Coded,
        };
    }

    fn end_block(&mut self) -> Stop {
        match self.in_last_block {
            true => {
                self.mode = Mode::Ended;
                Stop::End
            }
            false => {
                self.mode = Mode::Header;
                Stop::Border
            }
        }
    }
}

impl std::fmt::Debug for Inflater {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inflater")
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

impl From<NeedInput> for Interrupt {
    fn from(NeedInput: NeedInput) -> Self {
        Self::NeedInput
    }
}

impl From<Corrupt> for Interrupt {
    fn from(corrupt: Corrupt) -> Self {
        Self::Corrupt(corrupt)
    }
}
