//! Huffman codes as tables: the next bits of the stream, taken as an index, give the symbol.
//!
//! A code of up to `root` bits is found with one look. Longer ones are found with two: the first
//! look gives where their subtable begins. A table entry has 32 bits:
//!
//! ```text
//!            31        30..16          15         14        13      12..8       7..0
//! literal  [ 1 │ the byte           │   0     │   0      │  0  │ code length │ bits to drop ]
//! length   [ 0 │ shortest length    │   0     │   0      │  0  │ code length │ bits to drop ]
//! distance [ 0 │ shortest distance  │   0     │   0      │  0  │ code length │ bits to drop ]
//! end      [ 0 │ 0                  │ SPECIAL │   0      │ END │ code length │ bits to drop ]
//! subtable [ 0 │ where it begins    │ SPECIAL │ SUBTABLE │  0  │ index bits  │ root bits    ]
//! invalid  [ 0 │ 0                  │ SPECIAL │   0      │  0  │ code length │ bits to drop ]
//! ```
//!
//! "Bits to drop" are the code and the extra bits behind it, so one shift consumes both.

use super::Corrupt;

/// The entry is a literal byte.
pub const LITERAL: u32 = 1 << 31;
/// The entry is neither literal nor length nor distance.
pub const SPECIAL: u32 = 1 << 15;
/// The entry leads to a subtable.
pub const SUBTABLE: u32 = 1 << 14;
/// The entry ends the block.
pub const END: u32 = 1 << 13;

/// Longest code of literals, lengths and distances (RFC 1951, section 3.2.7).
const CODE_LEN_MAX: usize = 15;
/// First-look bits of the literal and length code: most codes in real streams are shorter, and the
/// table stays within a quarter of a first-level cache.
const LITERAL_ROOT: u32 = 11;
/// First-look bits of the distance code.
const DISTANCE_ROOT: u32 = 8;
/// First-look bits of the code of code lengths, which are 7 bits at most: never a subtable.
const LENGTHS_ROOT: u32 = 7;

/// A power of two, so that a masked index is known to be inside. zlib's `enough` program gives 2,342
/// as the most entries that 288 symbols of 15 bits can take behind 11 first-look bits.
const LITERAL_TABLE_LEN: usize = 4096;
/// As above: 402 entries for 32 symbols behind 8 first-look bits.
const DISTANCE_TABLE_LEN: usize = 512;

/// The two codes of a block.
pub struct Codes {
    literals: [u32; LITERAL_TABLE_LEN],
    distances: [u32; DISTANCE_TABLE_LEN],
    are_fixed: bool,
}

impl Codes {
    pub fn new() -> Self {
        Self {
            literals: [0; LITERAL_TABLE_LEN],
            distances: [0; DISTANCE_TABLE_LEN],
            are_fixed: false,
        }
    }

    /// The codes that RFC 1951, section 3.2.6 fixes.
    pub fn set_fixed(&mut self) {
        if self.are_fixed {
            return;
        }
        let mut lens = [8; 288];
        lens[144..256].fill(9);
        lens[256..280].fill(7);
        let fixed = build(&mut self.literals, LITERAL_ROOT, &lens, &LITERALS)
            .and_then(|()| build(&mut self.distances, DISTANCE_ROOT, &[5; 32], &DISTANCES));
        debug_assert_eq!(fixed, Ok(()), "both codes are complete");
        self.are_fixed = true;
    }

    /// Codes given by the length of each symbol's code; 0 for symbols that do not occur.
    pub fn set_dynamic(&mut self, literals: &[u8], distances: &[u8]) -> Result<(), Corrupt> {
        self.are_fixed = false;
        build(&mut self.literals, LITERAL_ROOT, literals, &LITERALS)
            .map_err(|BadCode| Corrupt::LiteralCode)?;
        build(&mut self.distances, DISTANCE_ROOT, distances, &DISTANCES)
            .map_err(|BadCode| Corrupt::DistanceCode)
    }

    /// First look for the literal or length that `bits` begin with.
    #[inline(always)]
    pub fn literal(&self, bits: u64) -> u32 {
        self.literals[(bits & low_bits(LITERAL_ROOT)) as usize]
    }

    /// Second look, with `bits` behind those of the first.
    #[inline(always)]
    pub fn literal_in(&self, subtable: u32, bits: u64) -> u32 {
        self.literals[index_in(subtable, bits) & (LITERAL_TABLE_LEN - 1)]
    }

    /// First look for the distance that `bits` begin with.
    #[inline(always)]
    pub fn distance(&self, bits: u64) -> u32 {
        self.distances[(bits & low_bits(DISTANCE_ROOT)) as usize]
    }

    /// Second look, with `bits` behind those of the first.
    #[inline(always)]
    pub fn distance_in(&self, subtable: u32, bits: u64) -> u32 {
        self.distances[index_in(subtable, bits) & (DISTANCE_TABLE_LEN - 1)]
    }
}

/// The code in which a dynamic block's header writes code lengths.
pub struct LengthsCode([u32; 1 << LENGTHS_ROOT]);

impl LengthsCode {
    pub fn new(lens: &[u8; 19]) -> Result<Self, Corrupt> {
        let mut table = [0; 1 << LENGTHS_ROOT];
        match build(&mut table, LENGTHS_ROOT, lens, &LENGTHS) {
            // zlib takes a code without symbols for "each bit is a zero", and complains later.
            Ok(()) if table[0] & SPECIAL != 0 => table.fill(entry(LENGTHS[0], 1)),
            // Unlike the other two, this code may not consist of a single symbol.
            Ok(()) if table[1] & SPECIAL != 0 => return Err(Corrupt::LengthsCode),
            Ok(()) => {}
            Err(BadCode) => return Err(Corrupt::LengthsCode),
        }
        Ok(Self(table))
    }

    /// The symbol that `bits` begin with, and the length of its code.
    pub fn look_up(&self, bits: u64) -> (u8, u32) {
        let entry = self.0[(bits & low_bits(LENGTHS_ROOT)) as usize];
        ((entry >> 16) as u8, drop_len(entry))
    }
}

/// How many bits an entry takes from the stream, extra bits included.
#[inline(always)]
pub fn drop_len(entry: u32) -> u32 {
    entry & 0xff
}

/// The number that an entry stands for, given the `bits` that it was looked up with: the shortest
/// length or distance of the symbol plus the extra bits behind the code.
#[inline(always)]
pub fn number(entry: u32, bits: u64) -> usize {
    let extra = (bits & low_bits(drop_len(entry))) >> code_len(entry);
    (entry >> 16) as usize + extra as usize
}

/// The length of the code, or how many bits index the subtable. Bit 13 is not set where this is
/// asked; with it the mask is the one that shifts apply by themselves.
#[inline(always)]
fn code_len(entry: u32) -> u32 {
    (entry >> 8) & 0x3f
}

#[inline(always)]
fn index_in(subtable: u32, bits: u64) -> usize {
    (subtable >> 16) as usize + (bits & low_bits(code_len(subtable))) as usize
}

#[inline(always)]
fn low_bits(count: u32) -> u64 {
    (1 << count) - 1
}

/// The lengths describe no prefix code: over-subscribed, or incomplete.
#[derive(Debug, PartialEq, Eq)]
struct BadCode;

/// Fills `table` for the canonical code (RFC 1951, section 3.2.2) with these code lengths.
/// `symbols` holds each symbol's entry without its code length.
///
/// As zlib has it, a code may be incomplete only if it has one symbol of one bit, or none.
fn build(table: &mut [u32], root: u32, lens: &[u8], symbols: &[u32]) -> Result<(), BadCode> {
    let mut counts = [0u32; CODE_LEN_MAX + 1];
    for &len in lens {
        counts[usize::from(len)] += 1;
    }
    let used: u32 = (1..=CODE_LEN_MAX)
        .map(|len| counts[len] << (CODE_LEN_MAX - len))
        .sum();
    let lone_symbol = counts[1] == 1 && used == 1 << (CODE_LEN_MAX - 1);
    match used {
        FULL => {}
        0 => {
            table[..1 << root].fill(entry(SPECIAL, 1));
            return Ok(());
        }
        _ if lone_symbol => {
            let symbol = lens.iter().position(|&len| len == 1).unwrap_or_default();
            let pair = [entry(symbols[symbol], 1), entry(SPECIAL, 1)];
            for slots in table[..1 << root].chunks_exact_mut(2) {
                slots.copy_from_slice(&pair);
            }
            return Ok(());
        }
        _ => return Err(BadCode),
    }
    let mut sorted = [0u16; 288];
    sort_by_len(lens, &counts, &mut sorted);
    fill(table, root, &sorted, &counts, symbols);
    Ok(())
}

/// What the codes of a complete prefix code add up to, in units of the longest code.
const FULL: u32 = 1 << CODE_LEN_MAX;

fn sort_by_len(lens: &[u8], counts: &[u32; CODE_LEN_MAX + 1], sorted: &mut [u16; 288]) {
    let mut next = [0usize; CODE_LEN_MAX + 1];
    for len in 2..=CODE_LEN_MAX {
        next[len] = next[len - 1] + counts[len - 1] as usize;
    }
    for (symbol, &len) in lens.iter().enumerate() {
        if len > 0 {
            let slot = &mut next[usize::from(len)];
            sorted[*slot] = symbol as u16;
            *slot += 1;
        }
    }
}

/// Walks the codes of a complete code from the shortest. deflate sends a code's first bit first,
/// so in an index the code stands mirrored.
fn fill(
    table: &mut [u32],
    root: u32,
    sorted: &[u16],
    counts: &[u32; CODE_LEN_MAX + 1],
    symbols: &[u32],
) {
    let mut sorted = sorted.iter().map(|&symbol| symbols[usize::from(symbol)]);
    let mut mirrored = 0usize;
    // Up to `root` bits: `table[..1 << len]` is the table for codes of up to `len` bits; each
    // further bit doubles it.
    let mut len = 0u32;
    while len < root {
        table.copy_within(..1 << len, 1 << len);
        len += 1;
        for symbol in sorted.by_ref().take(counts[len as usize] as usize) {
            table[mirrored] = entry(symbol, len);
            mirrored = next_mirrored(mirrored, len);
        }
    }
    // Longer codes: those with the same first `root` bits share a subtable.
    let mut end = 1usize << root;
    let mut subtable: Option<(usize, usize)> = None;
    for len in root + 1..=CODE_LEN_MAX as u32 {
        let count = counts[len as usize];
        for (nth, symbol) in sorted.by_ref().take(count as usize).enumerate() {
            let prefix = mirrored & ((1 << root) - 1);
            let start = match subtable {
                Some((known, start)) if known == prefix => start,
                _ => {
                    let bits = subtable_bits(root, len, count - nth as u32, counts);
                    let start = end;
                    end += 1 << bits;
                    table[prefix] = (start as u32) << 16 | SPECIAL | SUBTABLE | bits << 8 | root;
                    subtable = Some((prefix, start));
                    start
                }
            };
            let beyond_root = len - root;
            let mut slot = start + (mirrored >> root);
            while slot < end {
                table[slot] = entry(symbol, beyond_root);
                slot += 1 << beyond_root;
            }
            mirrored = next_mirrored(mirrored, len);
        }
    }
}

/// The code behind `mirrored` in canonical order: plus one, carries running towards bit 0.
fn next_mirrored(mirrored: usize, len: u32) -> usize {
    let zeros = mirrored ^ ((1 << len) - 1);
    match zeros.checked_ilog2() {
        Some(highest) => mirrored & ((1 << highest) - 1) | 1 << highest,
        None => 0,
    }
}

/// How many bits the subtable needs whose first code has `len` bits, with `left` codes of that
/// length still to come: the fewest for which its codes fill it.
fn subtable_bits(root: u32, len: u32, left: u32, counts: &[u32; CODE_LEN_MAX + 1]) -> u32 {
    let mut bits = len - root;
    let mut filled = left;
    while filled < 1 << bits && ((root + bits) as usize) < CODE_LEN_MAX {
        bits += 1;
        filled = (filled << 1) + counts[(root + bits) as usize];
    }
    bits
}

/// A symbol's entry with its code length filled in.
const fn entry(symbol: u32, code_len: u32) -> u32 {
    symbol + (code_len << 8 | code_len)
}

/// Literals, the end of the block, and lengths (RFC 1951, section 3.2.5).
const LITERALS: [u32; 288] = {
    let mut symbols = [SPECIAL; 288];
    let mut byte = 0;
    while byte < 256 {
        symbols[byte] = LITERAL | (byte as u32) << 16;
        byte += 1;
    }
    symbols[256] = SPECIAL | END;
    let mut shortest = 3;
    let mut code = 0;
    while code < 28 {
        let extra = if code < 8 { 0 } else { code as u32 / 4 - 1 };
        symbols[257 + code] = shortest << 16 | extra;
        shortest += 1 << extra;
        code += 1;
    }
    symbols[285] = 258 << 16;
    symbols
};

/// Distances (RFC 1951, section 3.2.5).
const DISTANCES: [u32; 32] = {
    let mut symbols = [SPECIAL; 32];
    let mut shortest = 1;
    let mut code = 0;
    while code < 30 {
        let extra = if code < 4 { 0 } else { code as u32 / 2 - 1 };
        symbols[code] = shortest << 16 | extra;
        shortest += 1 << extra;
        code += 1;
    }
    symbols
};

/// Code lengths and repetitions (RFC 1951, section 3.2.7).
const LENGTHS: [u32; 19] = {
    let mut symbols = [0; 19];
    let mut symbol = 0;
    while symbol < 19 {
        symbols[symbol] = (symbol as u32) << 16;
        symbol += 1;
    }
    symbols
};
