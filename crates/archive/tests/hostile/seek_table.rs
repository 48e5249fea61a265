//! Span tables and windows that lie.

use crate::{framing::RawLayer, open, refusal};
use clip_archive::{Span, SpanDigest, SpanKind, Window, columns, section::WINDOW_LEN};

const BLOCK: SpanKind = SpanKind::GzipBlock {
    skip_bits: 7,
    window: 0,
};

fn span(tar_len: u64, blob_offset: u64, blob_len: u64, kind: SpanKind) -> Span {
    let digest = SpanDigest::of(b"");
    Span {
        tar_len,
        blob_offset,
        blob_len,
        kind,
        digest,
    }
}

/// What opening says to these spans of a blob of 1,000 bytes.
fn says(spans: Vec<Span>) -> String {
    let tar_size = spans
        .iter()
        .fold(0u64, |sum, span| sum.wrapping_add(span.tar_len));
    let layer = RawLayer {
        size: 1000,
        tar_size: tar_size.min(1 << 40),
        spans: columns::encode_spans(&spans),
        ..RawLayer::default()
    };
    match open(&[layer]).unwrap().seek_table(0) {
        Ok(_) => "accepted".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn spans_that_lie_are_refused_by_number() {
    let member = SpanKind::GzipMember;
    assert_eq!(
        says(vec![span(9, 0, 10, member), span(9, 9, 10, BLOCK)]),
        "accepted"
    );
    for (spans, refusal) in [
        (
            vec![span(9, 0, 10, member), span(9, 8, 10, BLOCK)],
            "span 1 overlaps",
        ),
        (
            vec![span(9, 0, 500, member), span(9, 0, 500, member)],
            "span 1 overlaps",
        ),
        (
            vec![span(0, 0, 10, member)],
            "span 0 lies outside the layer's blob or is empty",
        ),
        (
            vec![span(9, 0, 0, member)],
            "span 0 lies outside the layer's blob or is empty",
        ),
        (vec![span(9, 991, 10, member)], "span 0 lies outside"),
        (vec![span(9, u64::MAX, 2, member)], "span 0 lies outside"),
        (
            vec![span(1 << 63, 0, 10, member)],
            "span 0 promises more bytes",
        ),
        (
            vec![span(11, 0, 10, SpanKind::Plain)],
            "span 0 promises more bytes",
        ),
        (
            vec![span(10 * 1032 + 1, 0, 10, BLOCK)],
            "span 0 promises more bytes",
        ),
        (
            vec![span(10 << 16, 0, 10, SpanKind::ZstdFrame)],
            "span 0 promises more bytes",
        ),
    ] {
        let said = says(spans);
        assert!(said.contains(refusal), "{said}");
    }
}

#[test]
fn windows_outside_32_kib_too_many_or_missing_are_refused() {
    let window = |runs: &[(u16, u16)], len: usize| Window {
        runs: runs.to_vec(),
        bytes: vec![1; len],
    };
    let says = |windows: Vec<Window>| {
        let layer = RawLayer {
            size: 1000,
            tar_size: 9,
            spans: columns::encode_spans(&[span(9, 0, 10, BLOCK)]),
            windows: columns::encode_windows(&windows),
            ..RawLayer::default()
        };
        refusal(open(&[layer]).unwrap().verify())
    };
    for bad in [
        window(&[(32_767, 2)], 2),
        window(&[(65_535, 65_535)], 65_535),
        window(&[(0, 4)], 3),
        window(&[(0, 4)], 5),
        window(&[(4, 4), (6, 1)], 5),
        window(&[(0, 0)], 0),
    ] {
        let said = says(vec![bad.clone()]);
        assert!(said.contains("window 0 is malformed"), "{said}");
        bad.expand(&mut [0; WINDOW_LEN]); // whoever forgets to ask reads nothing outside either
    }
    assert!(says(vec![]).contains("span 0 cannot be started"));
    let many = says(vec![Window::default(); 1000]);
    assert!(
        many.contains("1000 items, more than the limit of 1"),
        "{many}"
    );
}
