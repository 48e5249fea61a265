//! Symbols where input and output have room to spare.
//!
//! Each round of the loop begins with [`INPUT_MARGIN`] bytes of input and [`MARGIN`] bytes of room
//! checked at once. Within it nothing is checked again: literals are written, and matches copied
//! in pieces of 16 bytes that may overshoot.
#![allow(unsafe_code)]

use super::{
    Corrupt, Symbols,
    bits::Bits,
    output::{MARGIN, Output},
    tables::{Codes, END, LITERAL, SPECIAL, SUBTABLE, drop_len, number},
};

/// A round loads 8 bytes at most twice, and goes on by at most 7 in between.
const INPUT_MARGIN: usize = 16;

/// Longest match (RFC 1951, section 3.2.5).
const MATCH_LEN_MAX: usize = 258;

/// Decodes symbols until the block ends, the output is full, or the input's last bytes are near.
pub fn decode(codes: &Codes, bits: &mut Bits<'_>, output: &mut Output) -> Result<Symbols, Corrupt> {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("bmi2") && std::is_x86_feature_detected!("avx") {
        // SAFETY: the processor has what the function asks for.
        return unsafe { decode_with_bmi2(codes, bits, output) };
    }
    decode_anywhere(codes, bits, output)
}

/// With shifts by any register and without flags (SHRX, BZHI), a tenth faster.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "bmi1,bmi2,avx")]
fn decode_with_bmi2(
    codes: &Codes,
    bits: &mut Bits<'_>,
    output: &mut Output,
) -> Result<Symbols, Corrupt> {
    decode_anywhere(codes, bits, output)
}

#[inline(always)]
fn decode_anywhere(
    codes: &Codes,
    bits: &mut Bits<'_>,
    output: &mut Output,
) -> Result<Symbols, Corrupt> {
    let limit = output.limit();
    // Checked here for every round that begins before `limit`.
    assert!(limit + MARGIN <= output.buffer.len() && output.floor <= output.at);
    let Some(input_limit) = bits.input.len().checked_sub(INPUT_MARGIN) else {
        return Ok(Symbols::InputShort);
    };
    let mut reader = Reader {
        input: bits.input,
        at: bits.at,
        bits: bits.buffer,
        count: bits.count,
    };
    let buffer = &mut *output.buffer;
    let floor = output.floor;
    let mut at = output.at;
    let mut references = output.references.cursor();

    let end = 'block: {
        if at >= limit || reader.at > input_limit {
            break 'block Ok(());
        }
        // SAFETY: `reader.at` is at most `input_limit`; what follows begins with its own check.
        unsafe { reader.refill() };
        if reader.at > input_limit {
            break 'block Ok(());
        }
        let mut entry = codes.literal(reader.bits);
        loop {
            // Here and at every `continue`: `at < limit`, `reader.at <= input_limit`, at least 56
            // bits are loaded, and `entry` is the first look at them.
            let mut before = reader.consume(entry);
            if entry & LITERAL != 0 {
                // SAFETY: the first byte of this round's `MARGIN`.
                unsafe { put(buffer, at, entry) };
                at += 1;
                entry = codes.literal(reader.bits);
                before = reader.consume(entry);
                if entry & LITERAL != 0 {
                    // SAFETY: the second byte of this round's `MARGIN`.
                    unsafe { put(buffer, at, entry) };
                    at += 1;
                    entry = codes.literal(reader.bits);
                    before = reader.consume(entry);
                    if entry & LITERAL != 0 {
                        // SAFETY: the third byte of this round's `MARGIN`.
                        unsafe { put(buffer, at, entry) };
                        at += 1;
                        // SAFETY: this round's first refill.
                        unsafe { reader.refill() };
                        entry = codes.literal(reader.bits);
                        if at >= limit || reader.at > input_limit {
                            break 'block Ok(());
                        }
                        continue;
                    }
                }
            }
            if entry & SPECIAL != 0 {
                if entry & SUBTABLE != 0 {
                    entry = codes.literal_in(entry, reader.bits);
                    before = reader.consume(entry);
                }
                if entry & LITERAL != 0 {
                    // SAFETY: at most the third byte of this round's `MARGIN`.
                    unsafe { put(buffer, at, entry) };
                    at += 1;
                    // SAFETY: this round's first refill.
                    unsafe { reader.refill() };
                    entry = codes.literal(reader.bits);
                    if at >= limit || reader.at > input_limit {
                        break 'block Ok(());
                    }
                    continue;
                }
                if entry & END != 0 {
                    break 'block Err(None);
                }
                if entry & SPECIAL != 0 {
                    break 'block Err(Some(Corrupt::Symbol));
                }
            }
            let len = number(entry, before);
            // SAFETY: this round's first refill.
            unsafe { reader.refill() };
            let mut entry_of_distance = codes.distance(reader.bits);
            let mut before = reader.consume(entry_of_distance);
            if entry_of_distance & SPECIAL != 0 {
                if entry_of_distance & SUBTABLE != 0 {
                    entry_of_distance = codes.distance_in(entry_of_distance, reader.bits);
                    before = reader.consume(entry_of_distance);
                }
                if entry_of_distance & SPECIAL != 0 {
                    break 'block Err(Some(Corrupt::Symbol));
                }
            }
            let distance = number(entry_of_distance, before);
            if distance > at - floor {
                break 'block Err(Some(Corrupt::Distance));
            }
            // The next look before the copy, so that the two overlap. Of 56 bits at most 28 are
            // gone, and a first look needs 11.
            entry = codes.literal(reader.bits);
            // SAFETY: this round's second refill.
            unsafe { reader.refill() };
            references.note(at - distance, len);
            // SAFETY: at most two bytes of this round's `MARGIN` are used; a length is at most 258
            // by the symbol table; `distance` is at least 1 by the symbol table, and at most `at`.
            unsafe { copy_match(buffer, at, distance, len) };
            at += len;
            if at >= limit || reader.at > input_limit {
                break 'block Ok(());
            }
        }
    };

    bits.at = reader.at;
    bits.buffer = reader.bits;
    bits.count = reader.count & 0xff;
    output.at = at;
    let noted = references.len();
    output.references.set_len(noted);
    match end {
        Err(None) => Ok(Symbols::EndOfBlock),
        Err(Some(corrupt)) => Err(corrupt),
        Ok(()) if at >= limit => Ok(Symbols::OutputFull),
        Ok(()) => Ok(Symbols::InputShort),
    }
}

/// [`Bits`] without checks.
struct Reader<'a> {
    input: &'a [u8],
    at: usize,
    bits: u64,
    /// Only the low 8 bits count: so a whole entry can be subtracted.
    count: u32,
}

impl Reader<'_> {
    /// Loads as many whole bytes as fit: there are at least 56 bits then.
    ///
    /// # Safety
    /// 8 bytes lie behind `self.at`: called at most twice for each time that `self.at` was found to
    /// be [`INPUT_MARGIN`] before the input's end, as it moves by 7 at most.
    #[inline(always)]
    unsafe fn refill(&mut self) {
        debug_assert!(self.count & 0xff < 64 && self.at + 8 <= self.input.len());
        // SAFETY: the caller's promise; the read asks for no alignment.
        let word = unsafe {
            self.input
                .as_ptr()
                .add(self.at)
                .cast::<u64>()
                .read_unaligned()
        };
        self.bits |= u64::from_le(word) << (self.count & 63);
        self.at += 7;
        self.at -= ((self.count >> 3) & 7) as usize;
        self.count |= 56;
    }

    /// Drops what `entry` takes; gives the bits from before.
    #[inline(always)]
    fn consume(&mut self, entry: u32) -> u64 {
        debug_assert!(drop_len(entry) <= self.count & 0xff);
        let before = self.bits;
        self.bits >>= entry & 63;
        self.count = self.count.wrapping_sub(entry);
        before
    }
}

/// Writes a literal.
///
/// # Safety
/// `at` lies inside the buffer.
#[inline(always)]
unsafe fn put(buffer: &mut [u8], at: usize, literal: u32) {
    debug_assert!(at < buffer.len());
    // SAFETY: the caller's promise.
    unsafe { *buffer.get_unchecked_mut(at) = (literal >> 16) as u8 };
}

/// Copies `len` bytes from `distance` before `at` to `at`, and some more.
///
/// # Safety
/// `distance` is 1 to `at`, `len` at most [`MATCH_LEN_MAX`], and `MATCH_LEN_MAX + 32` bytes lie
/// behind `at`.
#[inline(always)]
unsafe fn copy_match(buffer: &mut [u8], at: usize, distance: usize, len: usize) {
    debug_assert!((1..=at).contains(&distance) && len <= MATCH_LEN_MAX);
    debug_assert!(at + MATCH_LEN_MAX + 32 <= buffer.len());
    if distance < 16 {
        // SAFETY: the caller's promise.
        return unsafe { copy_short(buffer, at, distance, len) };
    }
    // SAFETY: each step begins less than `len` behind `at` and writes 32 bytes, so the last ends
    // before `at + len + 32`; it reads `distance` before where it writes.
    unsafe {
        let mut to = buffer.as_mut_ptr().add(at);
        let end = to.add(len);
        loop {
            let from = to.sub(distance).cast_const();
            copy_16(from, to);
            copy_16(from.add(16), to.add(16));
            to = to.add(32);
            if to >= end {
                return;
            }
        }
    }
}

/// The same for a `distance` below 16, where 16 bytes overlap what they are copied to: they are
/// made in a register. Rare, and not inlined: it would take the loop's registers.
///
/// # Safety
/// As for [`copy_match`].
#[inline(never)]
unsafe fn copy_short(buffer: &mut [u8], at: usize, distance: usize, len: usize) {
    // SAFETY: 16 bytes lie behind `at - distance`; each step begins less than `len` behind `at` and
    // writes 16 bytes, so the last ends before `at + len + 16`.
    unsafe {
        let mut to = buffer.as_mut_ptr().add(at);
        let end = to.add(len);
        let (pattern, period) = repeat(to.sub(distance).cast::<u128>().read_unaligned(), distance);
        loop {
            to.cast::<u128>().write_unaligned(pattern);
            to = to.add(period);
            if to >= end {
                return;
            }
        }
    }
}

/// # Safety
/// 16 bytes can be read at `from` and written at `to`.
#[inline(always)]
unsafe fn copy_16(from: *const u8, to: *mut u8) {
    // SAFETY: the caller's promise; neither access asks for alignment.
    unsafe {
        let bytes = from.cast::<[u8; 16]>().read();
        to.cast::<[u8; 16]>().write(bytes);
    }
}

/// The first `distance` (less than 16) bytes of `bytes`, in memory order, over and over; and how
/// many bytes of that are whole repetitions.
#[inline(always)]
fn repeat(bytes: u128, distance: usize) -> (u128, usize) {
    let bytes = u128::from_le(bytes);
    if distance == 1 {
        return (u128::from_ne_bytes([bytes as u8; 16]), 16);
    }
    let mut filled = 8 * distance as u32;
    let mut pattern = bytes & ((1 << filled) - 1);
    while filled < 128 {
        pattern |= pattern << filled;
        filled *= 2;
    }
    (pattern.to_le(), PERIODS[distance])
}

/// The largest multiple of the index that is at most 16.
const PERIODS: [usize; 16] = [0, 16, 16, 15, 16, 15, 12, 14, 16, 9, 10, 11, 12, 13, 14, 15];
