//! S7: every span of a layer, decoded alone from its own bytes, equals what a plain decoder gives.

use bytes::Bytes;
use clip_archive::{SeekTable, SpanDigest, SpanKind};
use clip_seek::{Compression, DecodeError, SpanDecoder, SpanIndexer, SpanLimits};
use flate2::write::GzEncoder;
use proptest::prelude::*;
use std::io::Write;

/// Small limits make many spans out of little data.
const LIMITS: SpanLimits = SpanLimits {
    tar: 128 << 10,
    blob: 64 << 10,
};

#[test]
fn every_span_of_a_gzip_layer_decodes_alone_whatever_the_level() {
    let tar = text_like(3 << 20, 1);
    for level in [1, 4, 6, 9] {
        let blob = gzip(&tar, level);
        let table = index(Compression::Gzip, &blob, LIMITS, 10_007).unwrap();
        assert!(
            table.spans.len() >= 10,
            "level {level}: {} spans",
            table.spans.len()
        );
        check_every_span(&table, &blob, &tar);
    }
}

#[test]
fn windows_hold_a_small_part_of_the_32_kib_before_them() {
    let tar = text_like(8 << 20, 2);
    let blob = gzip(&tar, 6);
    let table = index(Compression::Gzip, &blob, LIMITS, 1 << 16).unwrap();
    let kept: usize = table.windows.iter().map(|window| window.bytes.len()).sum();
    assert!(
        kept < table.windows.len() * (32 << 10) / 2,
        "{kept} bytes in {} windows",
        table.windows.len()
    );
    assert!(
        table
            .windows
            .iter()
            .all(clip_archive::Window::is_well_formed)
    );
}

#[test]
fn members_of_a_gzip_layer_need_no_window() {
    let parts: Vec<Vec<u8>> = (0..12).map(|seed| text_like(100 << 10, seed)).collect();
    let blob: Vec<u8> = parts.iter().flat_map(|part| gzip(part, 6)).collect();
    let table = index(Compression::Gzip, &blob, LIMITS, 4096).unwrap();
    check_every_span(&table, &blob, &parts.concat());
    assert!(
        table
            .spans
            .iter()
            .any(|span| span.kind == SpanKind::GzipMember && span.blob_offset > 0)
    );
}

#[test]
fn a_span_may_run_across_the_end_of_a_member() {
    let parts: Vec<Vec<u8>> = (0..40).map(|seed| text_like(30 << 10, seed)).collect();
    let blob: Vec<u8> = parts.iter().flat_map(|part| gzip(part, 1)).collect();
    let table = index(Compression::Gzip, &blob, LIMITS, 999).unwrap();
    check_every_span(&table, &blob, &parts.concat());
}

#[test]
fn zero_padding_behind_the_last_member_is_accepted_and_garbage_is_not() {
    let tar = text_like(50 << 10, 3);
    let mut blob = gzip(&tar, 6);
    blob.extend_from_slice(&[0; 700]);
    assert_eq!(
        index(Compression::Gzip, &blob, LIMITS, 512)
            .unwrap()
            .tar_size,
        tar.len() as u64
    );
    blob.push(7);
    assert!(matches!(
        index(Compression::Gzip, &blob, LIMITS, 512),
        Err(DecodeError::Damaged { .. })
    ));
}

#[test]
fn a_truncated_or_flipped_gzip_layer_is_an_error_and_no_panic() {
    let blob = gzip(&text_like(300 << 10, 4), 6);
    assert!(matches!(
        index(Compression::Gzip, &blob[..blob.len() - 9], LIMITS, 4096),
        Err(DecodeError::Truncated { .. })
    ));
    assert!(matches!(
        index(Compression::Gzip, &[], LIMITS, 1),
        Err(DecodeError::Truncated { .. })
    ));
    for at in (10..blob.len()).step_by(blob.len() / 50) {
        let mut flipped = blob.clone();
        flipped[at] ^= 0x10;
        assert!(
            index(Compression::Gzip, &flipped, LIMITS, 4096).is_err(),
            "flip at {at} went unnoticed"
        );
    }
}

#[test]
fn frames_of_a_zstd_layer_are_spans() {
    let parts: Vec<Vec<u8>> = (0..10).map(|seed| text_like(150 << 10, seed)).collect();
    let blob: Vec<u8> = parts
        .iter()
        .flat_map(|part| zstd::bulk::compress(part, 3).unwrap())
        .collect();
    let table = index(Compression::Zstd, &blob, LIMITS, 5000).unwrap();
    assert_eq!(table.spans.len(), 10);
    check_every_span(&table, &blob, &parts.concat());
    assert!(matches!(
        index(Compression::Zstd, &blob[..blob.len() - 1], LIMITS, 5000),
        Err(DecodeError::Truncated { .. })
    ));
}

#[test]
fn a_single_zstd_frame_is_one_span() {
    let tar = text_like(1 << 20, 5);
    let blob = zstd::bulk::compress(&tar, 3).unwrap();
    let table = index(Compression::Zstd, &blob, LIMITS, 100_000).unwrap();
    assert_eq!(table.spans.len(), 1);
    check_every_span(&table, &blob, &tar);
}

#[test]
fn an_uncompressed_layer_is_cut_to_size() {
    let tar = text_like(200_000, 6);
    let table = index(Compression::Plain, &tar, LIMITS, 777).unwrap();
    assert_eq!(table.spans.len(), 200_000_usize.div_ceil(64 << 10));
    check_every_span(&table, &tar, &tar);
}

/// docs/semantics.md: "How a tar is compressed is told from its first bytes".
#[test]
fn compression_is_told_from_the_first_bytes() {
    assert_eq!(Compression::sniff(&gzip(b"x", 6)), Compression::Gzip);
    assert_eq!(
        Compression::sniff(&zstd::bulk::compress(b"x", 1).unwrap()),
        Compression::Zstd
    );
    assert_eq!(Compression::sniff(b"./usr"), Compression::Plain);
    assert_eq!(Compression::sniff(b""), Compression::Plain);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_content_in_any_pieces_comes_back(
        pieces in prop::collection::vec((any::<u64>(), 1usize..60_000, 0u32..10), 1..8),
        chunk in 1usize..70_000,
        span in 8u64..200,
    ) {
        let parts: Vec<Vec<u8>> = pieces.iter().map(|&(seed, len, _)| if seed % 3 == 0 { noise(len, seed) } else { text_like(len, seed) }).collect();
        let blob: Vec<u8> = parts.iter().zip(&pieces).flat_map(|(part, &(_, _, level))| gzip(part, level)).collect();
        let limits = SpanLimits { tar: span << 10, blob: span << 9 };
        let table = index(Compression::Gzip, &blob, limits, chunk).unwrap();
        check_every_span(&table, &blob, &parts.concat());
    }
}

fn index(
    compression: Compression,
    blob: &[u8],
    limits: SpanLimits,
    chunk: usize,
) -> Result<SeekTable, DecodeError> {
    let mut indexer = SpanIndexer::new(compression, limits);
    for chunk in blob.chunks(chunk) {
        indexer.push(&Bytes::copy_from_slice(chunk), &mut drop)?;
    }
    indexer.finish(&mut drop)
}

fn check_every_span(table: &SeekTable, blob: &[u8], tar: &[u8]) {
    table
        .check_spans(blob.len() as u64, Some(table.windows.len()))
        .unwrap();
    assert_eq!(table.tar_size, tar.len() as u64);
    let mut at = 0;
    for (index, span) in table.spans.iter().enumerate() {
        let window = match span.kind {
            SpanKind::GzipBlock { window, .. } => Some(&table.windows[window as usize]),
            _ => None,
        };
        let bytes = &blob[span.blob_offset as usize..][..span.blob_len as usize];
        let expected = &tar[at..at + span.tar_len as usize];
        for pieces in [bytes.len(), 1009] {
            let mut decoder = SpanDecoder::new(span, window);
            let mut decoded = Vec::new();
            for piece in bytes.chunks(pieces) {
                decoder
                    .push(piece, &mut |data| decoded.extend_from_slice(data))
                    .unwrap();
            }
            decoder.finish().unwrap();
            assert!(
                decoded == expected,
                "span {index} ({:?}) decodes wrongly",
                span.kind
            );
        }
        assert_eq!(span.digest, SpanDigest::of(expected));
        at += span.tar_len as usize;
    }
}

fn gzip(data: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// Words of a small vocabulary: compresses about as well as source code.
fn text_like(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut out = Vec::with_capacity(len + 16);
    while out.len() < len {
        let word = next(&mut state);
        out.extend_from_slice(format!("{:x} ", word % 3000 * 7919).as_bytes());
    }
    out.truncate(len);
    out
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len).map(|_| next(&mut state) as u8).collect()
}

/// xorshift64.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
