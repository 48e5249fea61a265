//! Every kind of layer that is met in the wild decodes span by span to what the reference decoders give.

use bytes::Bytes;
use clip_archive::{SeekTable, SpanDigest, SpanKind};
use clip_seek::{Compression, DecodeError, SpanDecoder, SpanIndexer, SpanLimits};
use clip_testkit::kinds::{Format, KINDS, Kind, pipe, sample_tar, skippable_frame};

/// Small limits make many spans out of little data.
const LIMITS: SpanLimits = SpanLimits {
    tar: 256 << 10,
    blob: 64 << 10,
};

#[test]
fn every_kind_of_gzip_layer_decodes_span_by_span() {
    check_all(Format::Gzip);
}

#[test]
fn every_kind_of_zstd_layer_decodes_span_by_span() {
    check_all(Format::Zstd);
}

#[test]
fn an_uncompressed_layer_decodes_span_by_span() {
    check_all(Format::Plain);
}

fn check_all(format: Format) {
    let tar = sample_tar("top", 7);
    for kind in KINDS.iter().filter(|kind| kind.format == format) {
        let blob = kind.compress(&tar).unwrap();
        let expected = kind.format.decode(&blob).unwrap();
        check(kind, &blob, &expected);
    }
}

fn check(kind: &Kind, blob: &[u8], expected: &[u8]) {
    let compression = Compression::sniff(&blob[..4]);
    let recognised = match compression {
        Compression::Gzip => Format::Gzip,
        Compression::Zstd => Format::Zstd,
        Compression::Plain => Format::Plain,
    };
    assert_eq!(recognised, kind.format, "{}", kind.name);
    let table = index(compression, blob).unwrap_or_else(|error| panic!("{}: {error}", kind.name));
    table
        .check_spans(blob.len() as u64, Some(table.windows.len()))
        .unwrap();
    assert_eq!(table.tar_size, expected.len() as u64, "{}", kind.name);
    let at_least = if kind.has_seek_points { 8 } else { 1 };
    assert!(
        table.spans.len() >= at_least,
        "{}: {} spans",
        kind.name,
        table.spans.len()
    );
    let mut at = 0;
    for (number, span) in table.spans.iter().enumerate() {
        let wanted = &expected[at..at + span.tar_len as usize];
        assert!(
            decode(&table, number, blob) == wanted,
            "{}: span {number} ({:?}) decodes wrongly",
            kind.name,
            span.kind
        );
        assert_eq!(
            span.digest,
            SpanDigest::of(wanted),
            "{}: span {number}",
            kind.name
        );
        at += span.tar_len as usize;
    }
}

#[test]
fn empty_layers_of_every_format_have_no_spans() {
    let empty_gzip = pipe(&["gzip", "-nc"], b"").unwrap();
    let empty_zstd = pipe(&["zstd", "-cq"], b"").unwrap();
    for blob in [
        empty_gzip,
        empty_zstd,
        skippable_frame(b"only this"),
        vec![],
    ] {
        let table = index(Compression::sniff(&blob), &blob).unwrap();
        assert_eq!((table.tar_size, table.spans.len()), (0, 0));
    }
}

#[test]
fn the_table_of_contents_behind_a_zstd_chunked_layer_belongs_to_no_span() {
    let tar = sample_tar("top", 7);
    let kind = KINDS
        .iter()
        .find(|kind| kind.name == "zstd-chunked")
        .unwrap();
    let blob = kind.compress(&tar).unwrap();
    let table = index(Compression::Zstd, &blob).unwrap();
    let end = table
        .spans
        .iter()
        .map(|span| span.blob_offset + span.blob_len)
        .max();
    let frames_end = blob.len() - skippable_tail(&blob);
    assert_eq!(end, Some(frames_end as u64));
}

/// Length of the skippable frames at a blob's end: the table of contents, whose magic number stands 48 bytes before the
/// end's own frame of 56 bytes (containers/storage, `pkg/chunked/internal/minimal/compression.go`).
fn skippable_tail(blob: &[u8]) -> usize {
    let magic = [0x50, 0x2A, 0x4D, 0x18];
    let first = blob.windows(4).position(|bytes| bytes == magic).unwrap();
    blob.len() - first
}

#[test]
fn a_zstd_window_of_128_mib_is_accepted_and_a_larger_one_refused_by_its_size() {
    let blob = pipe(&["zstd", "-cq", "--long=27"], &sample_tar("top", 7)).unwrap();
    assert_eq!(blob[4] & 0x20, 0, "the frame has a window descriptor");
    for (log, accepted) in [(27, true), (28, false), (31, false)] {
        let mut blob = blob.clone();
        blob[5] = (log - 10) << 3;
        match index(Compression::Zstd, &blob) {
            Ok(_) => assert!(accepted, "a window of 2^{log} bytes"),
            Err(error) => {
                assert!(!accepted, "2^{log}: {error}");
                assert_eq!(
                    error,
                    DecodeError::Window {
                        bytes: 1 << log,
                        at: 0
                    }
                );
                assert!(error.to_string().contains("--long=27"), "{error}");
            }
        }
    }
}

#[test]
fn what_follows_the_last_gzip_member_must_be_zeros() {
    let tar = sample_tar("top", 7);
    let member = pipe(&["gzip", "-nc"], &tar).unwrap();
    for tail in [&b"garbage"[..], &[0x1f], &[0x1f, 0x8b, 8], &[0, 0, 7]] {
        let blob = [&member, tail].concat();
        assert!(
            index(Compression::Gzip, &blob).is_err(),
            "{tail:?} went unnoticed"
        );
    }
}

fn index(compression: Compression, blob: &[u8]) -> Result<SeekTable, DecodeError> {
    let mut indexer = SpanIndexer::new(compression, LIMITS);
    for chunk in blob.chunks(31_337) {
        indexer.push(&Bytes::copy_from_slice(chunk), &mut drop)?;
    }
    indexer.finish(&mut drop)
}

/// One span, from nothing but its own bytes.
fn decode(table: &SeekTable, number: usize, blob: &[u8]) -> Vec<u8> {
    let span = &table.spans[number];
    let window = match span.kind {
        SpanKind::GzipBlock { window, .. } => Some(&table.windows[window as usize]),
        _ => None,
    };
    let mut decoder = SpanDecoder::new(span, window);
    let mut decoded = Vec::new();
    for piece in blob[span.blob_offset as usize..][..span.blob_len as usize].chunks(10_007) {
        decoder
            .push(piece, &mut |data| decoded.extend_from_slice(data))
            .unwrap();
    }
    decoder.finish().unwrap();
    decoded
}
