//! Our decoder and zlib-rs say the same about every stream: valid, mutated, cut short, invalid by
//! hand; in pieces of any size. `CLIP_MUTATIONS=20000` makes the mutation test a long one.

mod deflate_streams;

use clip_seek::{
    SpanLimits,
    differential::{Verdict, check_deflate, check_gzip},
};
use deflate_streams::{BitWriter, Random, Recipe, compress, contents};
use proptest::prelude::*;

#[test]
fn every_level_strategy_and_flush_decodes_to_what_was_compressed() {
    for content in contents(150_000) {
        let levels = (0..10).map(Recipe::level);
        let strategies = (1..5).map(|strategy| Recipe {
            strategy,
            ..Recipe::level(6)
        });
        let flushes = [1, 2, 3, 5].map(|flush| Recipe {
            flush,
            flush_every: 7001,
            ..Recipe::level(6)
        });
        let small_blocks = Recipe {
            memory: 1,
            ..Recipe::level(9)
        };
        for recipe in levels
            .chain(strategies)
            .chain(flushes)
            .chain([small_blocks])
        {
            let stream = compress(&content, recipe);
            for piece in [stream.len(), 4096, 100] {
                let decoded = check_deflate(&stream, piece);
                assert!(decoded.bytes == content, "{recipe:?}");
                assert_eq!(decoded.verdict, Verdict::Complete(stream.len()));
            }
        }
    }
}

#[test]
fn pieces_of_one_byte_are_enough() {
    for content in contents(20_000) {
        for level in [0, 1, 6, 9] {
            let stream = compress(&content, Recipe::level(level));
            for piece in 1..9 {
                assert!(check_deflate(&stream, piece).bytes == content);
            }
        }
    }
}

#[test]
fn a_stream_cut_anywhere_is_truncated_and_gives_what_zlib_gives() {
    for content in contents(3000) {
        for recipe in [
            Recipe::level(0),
            Recipe::level(6),
            Recipe {
                strategy: 4,
                ..Recipe::level(6)
            },
        ] {
            let stream = compress(&content, recipe);
            for len in 0..stream.len() {
                let decoded = check_deflate(&stream[..len], usize::MAX >> 8);
                assert_eq!(decoded.verdict, Verdict::Truncated);
            }
        }
    }
}

#[test]
fn mutated_streams_get_zlibs_verdict() {
    let mutations = std::env::var("CLIP_MUTATIONS").map_or(3000, |count| count.parse().unwrap());
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let contents = contents(70_000);
    let originals: Vec<Vec<u8>> = (0..60)
        .map(|_| {
            let content = &contents[random.below(contents.len())];
            let start = random.below(content.len() / 2);
            let len = 200 + random.below(content.len() / 2 - 200);
            let recipe = Recipe {
                level: random.below(10) as i32,
                strategy: random.below(5) as i32,
                memory: 1 + random.below(9) as i32,
                flush_every: 500 + random.below(60_000),
                flush: [0, 1, 2, 3, 5][random.below(5)],
                gzip: false,
            };
            compress(&content[start..start + len], recipe)
        })
        .collect();
    let (mut complete, mut truncated, mut corrupt) = (0, 0, 0);
    for _ in 0..mutations {
        let mut stream = originals[random.below(originals.len())].clone();
        mutate(&mut stream, &mut random);
        let piece = [usize::MAX >> 8, 1 + random.below(5000)][random.below(2)];
        match check_deflate(&stream, piece).verdict {
            Verdict::Complete(_) => complete += 1,
            Verdict::Truncated => truncated += 1,
            Verdict::Corrupt => corrupt += 1,
        }
    }
    // Mutations that one verdict swallows would prove little.
    for count in [complete, truncated, corrupt] {
        assert!(
            count > mutations / 50,
            "{complete} complete, {truncated} truncated, {corrupt} corrupt"
        );
    }
}

#[test]
fn mutated_members_get_zlibs_verdict() {
    let mut random = Random(42);
    let text = random.text(40_000);
    let limits = SpanLimits {
        tar: 16 << 10,
        blob: 8 << 10,
    };
    let recipe = Recipe {
        gzip: true,
        memory: 2,
        ..Recipe::level(6)
    };
    let member = compress(&text, recipe);
    assert_eq!(
        check_gzip(&member, limits, 100),
        Verdict::Complete(member.len())
    );
    for round in 0..600 {
        let mut blob = [&member[..], &member].concat();
        match round % 3 {
            // Header and trailer of either member.
            0 => {
                let around = [0, member.len() - 8, member.len() + 10][random.below(3)];
                let at = (around + random.below(10)).min(blob.len() - 1);
                blob[at] = random.next() as u8;
            }
            1 => blob.truncate(1 + random.below(blob.len() - 1)),
            _ => mutate(&mut blob, &mut random),
        }
        if !blob.is_empty() {
            check_gzip(&blob, limits, 1 + random.below(3000));
        }
    }
}

#[test]
fn every_header_field_is_read_or_refused_as_zlib_does() {
    let limits = SpanLimits::default();
    let body = compress(b"hello", Recipe::level(6));
    let trailer = [
        &crc32fast::hash(b"hello").to_le_bytes()[..],
        &5u32.to_le_bytes(),
    ]
    .concat();
    for flags in 0..=255u8 {
        let mut header = vec![0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 0, 255];
        if flags & 4 != 0 {
            header.extend([3, 0, b'a', b'b', 0]);
        }
        if flags & 8 != 0 {
            header.extend(b"name\0");
        }
        if flags & 16 != 0 {
            header.extend(b"\0");
        }
        if flags & 2 != 0 {
            let checksum = crc32fast::hash(&header) as u16;
            header.extend(checksum.to_le_bytes());
        }
        let blob = [&header[..], &body, &trailer].concat();
        let expected = match flags & 0xe0 {
            0 => Verdict::Complete(blob.len()),
            _ => Verdict::Corrupt,
        };
        for piece in [1, 2, 7, blob.len()] {
            assert_eq!(
                check_gzip(&blob, limits, piece),
                expected,
                "flags {flags:#x}"
            );
        }
        // Each byte of it wrong, and each cut.
        for at in 0..blob.len() {
            let mut wrong = blob.clone();
            wrong[at] ^= 0x41;
            check_gzip(&wrong, limits, 5);
            if at > 0 {
                check_gzip(&blob[..at], limits, 3);
            }
        }
    }
}

#[test]
fn what_the_standard_forbids_is_refused_by_both() {
    let fixed = || BitWriter::default().bits(0b011, 3);
    let dynamic = |hlit, hdist| {
        let counts = BitWriter::default().bits(0b101, 3).bits(hlit, 5);
        counts.bits(hdist, 5)
    };
    // The lengths' code: symbols in the standard's order 16 17 18 0 8 7 9 6 10 5 11 4 12 3 13 2 14 1.
    let lens = |writer: BitWriter, lens: &[u32]| {
        let writer = writer.bits(lens.len() as u32 - 4, 4);
        lens.iter().fold(writer, |writer, &len| writer.bits(len, 3))
    };
    // 18 → 0, 1 → 1: 256 zeros, then literals and distances of one bit each.
    let zeros_and_ones = |writer| {
        let mut code = [0; 18];
        (code[2], code[17]) = (1, 1);
        lens(writer, &code)
            .code("1")
            .bits(138 - 11, 7)
            .code("1")
            .bits(118 - 11, 7)
    };
    let cases: Vec<(&str, BitWriter)> = vec![
        ("block type 3", BitWriter::default().bits(0b111, 3)),
        (
            "stored length",
            BitWriter::default().bits(1, 8).bits(0x0001_0001, 32),
        ),
        ("287 literals", dynamic(30, 0).bits(0, 4)),
        ("31 distances", dynamic(0, 30).bits(0, 4)),
        (
            "over-subscribed lengths' code",
            lens(dynamic(0, 0), &[1, 1, 1, 0]),
        ),
        (
            "incomplete lengths' code",
            lens(dynamic(0, 0), &[1, 0, 0, 0]),
        ),
        (
            "empty lengths' code",
            lens(dynamic(0, 0), &[0, 0, 0, 0]).bits(0, 258),
        ),
        (
            "repetition of nothing",
            lens(dynamic(0, 0), &[1, 1, 0, 0]).code("0").bits(0, 2),
        ),
        (
            "repetition past the end",
            lens(dynamic(0, 0), &[0, 1, 1, 0])
                .code("1")
                .bits(127, 7)
                .code("1")
                .bits(127, 7),
        ),
        (
            "no end of block",
            lens(dynamic(0, 0), &[0, 1, 1, 0])
                .code("1")
                .bits(127, 7)
                .code("1")
                .bits(120 - 11, 7),
        ),
        (
            "over-subscribed literals",
            zeros_and_ones(dynamic(2, 0)).code("0000"),
        ),
        ("literal 286", fixed().code("11000110")),
        ("literal 287", fixed().code("11000111")),
        (
            "distance 30",
            fixed().code("00110000").code("0000001").code("11110"),
        ),
        (
            "distance 31",
            fixed().code("00110000").code("0000001").code("11111"),
        ),
        (
            "distance before the start",
            fixed().code("00110000").code("0000001").code("00001"),
        ),
        (
            "the other bit of a lone literal",
            zeros_and_ones(dynamic(0, 0)).code("00").code("1"),
        ),
        (
            "a distance of an empty code",
            lens(dynamic(1, 0), &{
                let mut code = [0; 18];
                (code[2], code[3], code[17]) = (1, 2, 2);
                code
            })
            .code("0")
            .bits(138 - 11, 7)
            .code("0")
            .bits(118 - 11, 7)
            .code("11")
            .code("11")
            .code("10")
            .code("1")
            .code("0"),
        ),
        (
            "the other bit of a lone distance",
            zeros_and_ones(dynamic(1, 0))
                .code("000")
                .code("1")
                .code("1"),
        ),
    ];
    for (what, writer) in cases {
        let stream = writer.finish();
        for padding in [0, 1, 40] {
            let padded = [&stream[..], &vec![0xff; padding]].concat();
            let verdict = check_deflate(&padded, 3).verdict;
            assert_eq!(verdict, Verdict::Corrupt, "{what}, {padding} bytes more");
            assert_eq!(
                check_deflate(&padded, 1 << 20).verdict,
                Verdict::Corrupt,
                "{what}"
            );
        }
    }
}

#[test]
fn a_lone_symbol_of_one_bit_is_a_code() {
    // 256 zeros, then end-of-block and distance 0 with one bit each; the block is empty.
    let mut code = [0; 18];
    (code[2], code[17]) = (1, 1);
    let writer = BitWriter::default().bits(0b101, 3).bits(0, 10).bits(14, 4);
    let writer = code
        .iter()
        .fold(writer, |writer, &len| writer.bits(len, 3))
        .code("1")
        .bits(138 - 11, 7)
        .code("1")
        .bits(118 - 11, 7);
    let stream = writer.code("00").code("0").finish();
    let decoded = check_deflate(&stream, 1);
    assert_eq!(decoded.verdict, Verdict::Complete(stream.len()));
    assert!(decoded.bytes.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_are_judged_alike(bytes in prop::collection::vec(any::<u8>(), 0..600), piece in 1usize..700) {
        check_deflate(&bytes, piece);
    }

    #[test]
    fn any_layer_in_any_pieces_decodes_from_its_spans(
        seed in 1u64..,
        len in 1usize..400_000,
        kind in 0usize..5,
        level in 0i32..10,
        strategy in 0i32..5,
        memory in 1i32..10,
        flush in prop::sample::select(vec![0, 2, 3, 5]),
        flush_every in 100usize..100_000,
        piece in 1usize..100_000,
        span in 4u64..200,
    ) {
        let mut random = Random(seed);
        let content = match kind {
            0 => random.bytes(len),
            _ => contents(len).swap_remove(kind),
        };
        let recipe = Recipe { level, strategy, memory, flush_every, flush, gzip: true };
        let blob = compress(&content, recipe);
        let limits = SpanLimits { tar: span << 10, blob: span << 9 };
        prop_assert_eq!(check_gzip(&blob, limits, piece), Verdict::Complete(blob.len()));
    }
}

/// Cuts, flips bits, overwrites bytes; most often where block headers are.
fn mutate(stream: &mut Vec<u8>, random: &mut Random) {
    let len = stream.len();
    match random.below(6) {
        0 => {}
        1 => stream.truncate(random.below(len)),
        2 => {
            for _ in 0..=random.below(3) {
                stream[random.below(len)] ^= 1 << random.below(8);
            }
        }
        3 => {
            for _ in 0..=random.below(4) {
                stream[random.below(len.min(120))] = random.next() as u8;
            }
        }
        4 => {
            stream.truncate(2000);
            for byte in stream.iter_mut().take(60) {
                if random.below(4) == 0 {
                    *byte = random.next() as u8;
                }
            }
        }
        _ => {
            let from = random.below(len);
            let some = stream[from..len.min(from + 64)].to_vec();
            let to = random.below(len);
            stream.splice(to..to, some);
        }
    }
}
