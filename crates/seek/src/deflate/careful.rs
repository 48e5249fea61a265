//! Symbols near the end of the input: one at a time, and never a bit that is not there.

use super::{
    Corrupt, Interrupt, Symbols,
    bits::Bits,
    output::Output,
    tables::{Codes, END, LITERAL, SPECIAL, SUBTABLE, drop_len, number},
};

/// Longest code (RFC 1951, section 3.2.7).
const CODE_LEN_MAX: u32 = 15;

/// Decodes symbols until the block ends, the output is full, or the next symbol is incomplete.
pub fn decode(codes: &Codes, bits: &mut Bits<'_>, output: &mut Output) -> Result<Symbols, Corrupt> {
    while !output.is_full() {
        let start = *bits;
        match decode_symbol(codes, bits, output) {
            Ok(Step::Decoded) => {}
            Ok(Step::EndOfBlock) => return Ok(Symbols::EndOfBlock),
            Err(Interrupt::Corrupt(corrupt)) => return Err(corrupt),
            Err(Interrupt::NeedInput) => {
                *bits = start;
                return Ok(Symbols::InputShort);
            }
        }
    }
    Ok(Symbols::OutputFull)
}

enum Step {
    Decoded,
    EndOfBlock,
}

/// A literal, a length with its distance, or the end of the block.
fn decode_symbol(
    codes: &Codes,
    bits: &mut Bits<'_>,
    output: &mut Output,
) -> Result<Step, Interrupt> {
    let literal = look_up(
        bits,
        |bits| codes.literal(bits),
        |subtable, bits| codes.literal_in(subtable, bits),
    )?;
    if literal & LITERAL != 0 {
        bits.skip(drop_len(literal));
        output.push((literal >> 16) as u8);
        return Ok(Step::Decoded);
    }
    if literal & END != 0 {
        bits.skip(drop_len(literal));
        return Ok(Step::EndOfBlock);
    }
    let len = take_number(bits, literal)?;
    let distance = look_up(
        bits,
        |bits| codes.distance(bits),
        |subtable, bits| codes.distance_in(subtable, bits),
    )?;
    let distance = take_number(bits, distance)?;
    output.repeat(distance, len)?;
    Ok(Step::Decoded)
}

/// The entry for the bits at hand; loads code and extra bits, and drops the code's first part
/// when there is a second.
fn look_up(
    bits: &mut Bits<'_>,
    first: impl Fn(u64) -> u32,
    second: impl Fn(u32, u64) -> u32,
) -> Result<u32, Interrupt> {
    // With zeros in place of missing bits an entry may be wrong. Then its code is longer than what
    // is there, and `need` fails.
    bits.load(CODE_LEN_MAX);
    let mut entry = first(bits.peek());
    bits.need(drop_len(entry))?;
    if entry & SUBTABLE != 0 {
        bits.skip(drop_len(entry));
        entry = second(entry, bits.peek());
        bits.need(drop_len(entry))?;
    }
    match entry & (SPECIAL | END) {
        SPECIAL => Err(Corrupt::Symbol.into()),
        _ => Ok(entry),
    }
}

fn take_number(bits: &mut Bits<'_>, entry: u32) -> Result<usize, Interrupt> {
    let number = number(entry, bits.peek());
    bits.skip(drop_len(entry));
    Ok(number)
}
