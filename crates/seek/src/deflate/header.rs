//! A block's header (RFC 1951, sections 3.2.3, 3.2.4 and 3.2.7).

use super::{
    Corrupt, Interrupt,
    bits::Bits,
    tables::{Codes, LengthsCode},
};

/// What a block's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockHeader {
    /// No block follows.
    pub is_last: bool,
    pub body: Body,
}

/// What follows a block's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// So many bytes as they are.
    Stored(u16),
    /// Symbols of the codes that the header set.
    Coded,
}

/// Reads a block's header. For want of input it fails with [`Interrupt::NeedInput`] as soon as zlib
/// would wait, and is called again with more, from the header's beginning.
pub fn read(bits: &mut Bits<'_>, codes: &mut Codes) -> Result<BlockHeader, Interrupt> {
    let first = bits.take(3)?;
    let body = match first >> 1 {
        0 => read_stored(bits)?,
        1 => {
            codes.set_fixed();
            Body::Coded
        }
        2 => {
            read_codes(bits, codes)?;
            Body::Coded
        }
        _ => return Err(Corrupt::BlockType.into()),
    };
    Ok(BlockHeader {
        is_last: first & 1 == 1,
        body,
    })
}

fn read_stored(bits: &mut Bits<'_>) -> Result<Body, Interrupt> {
    bits.align();
    let both = bits.take(32)?;
    let (len, inverted) = (both as u16, (both >> 16) as u16);
    match len == !inverted {
        true => Ok(Body::Stored(len)),
        false => Err(Corrupt::StoredLen.into()),
    }
}

fn read_codes(bits: &mut Bits<'_>, codes: &mut Codes) -> Result<(), Interrupt> {
    // All three counts at once, as zlib has it.
    bits.need(14)?;
    let literals = bits.take(5)? as usize + 257;
    let distances = bits.take(5)? as usize + 1;
    let lengths = bits.take(4)? as usize + 4;
    if literals > 286 || distances > 30 {
        return Err(Corrupt::SymbolCount.into());
    }
    let mut code = [0; 19];
    for &symbol in &LENGTHS_ORDER[..lengths] {
        code[symbol] = bits.take(3)? as u8;
    }
    let code = LengthsCode::new(&code)?;
    let mut lens = [0; 286 + 30];
    let lens = &mut lens[..literals + distances];
    read_lens(bits, &code, lens)?;
    if lens[END_OF_BLOCK] == 0 {
        return Err(Corrupt::NoEndOfBlock.into());
    }
    let (literals, distances) = lens.split_at(literals);
    Ok(codes.set_dynamic(literals, distances)?)
}

fn read_lens(bits: &mut Bits<'_>, code: &LengthsCode, lens: &mut [u8]) -> Result<(), Interrupt> {
    let mut at = 0;
    while at < lens.len() {
        bits.load(LENGTH_BITS_MAX);
        let (symbol, code_len) = code.look_up(bits.peek());
        let (extra, shortest) = match symbol {
            0..16 => (0, 1),
            16 => (2, 3),
            17 => (3, 3),
            _ => (7, 11),
        };
        bits.need(code_len + extra)?;
        bits.skip(code_len);
        let len = match symbol {
            0..16 => symbol,
            16 if at == 0 => return Err(Corrupt::Repetition.into()),
            16 => lens[at - 1],
            _ => 0,
        };
        let count = shortest + bits.take(extra)? as usize;
        match lens.get_mut(at..at + count) {
            Some(run) => run.fill(len),
            None => return Err(Corrupt::Repetition.into()),
        }
        at += count;
    }
    Ok(())
}

/// Symbol that ends a block; every block needs a code for it.
const END_OF_BLOCK: usize = 256;
/// A code of 7 bits and 7 extra bits.
const LENGTH_BITS_MAX: u32 = 14;
/// The order in which the lengths of the lengths' code are written.
const LENGTHS_ORDER: [usize; 19] = [
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
];
