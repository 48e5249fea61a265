//! What goes into columns comes out again, whatever it is.

use clip_archive::{
    Entry, EntryKind, Segment, Span, SpanDigest, SpanKind, Window, Xattr,
    codec::DecodeError,
    columns::{
        Entries, decode_spans, decode_windows, encode_entries, encode_spans, encode_windows,
    },
};
use proptest::{collection::vec, prelude::*};

/// Bytes without NUL, from few, so that neighbours share beginnings.
fn text(len: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    vec(prop_oneof![Just(b'a'), Just(b'/'), 1..=255u8], len)
}

/// Small numbers and extreme ones.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..3u64, 0..100_000u64, any::<u64>()]
}

fn kind() -> impl Strategy<Value = EntryKind> {
    let piece = (number(), number(), number()).prop_map(|(logical, length, tar_offset)| Segment {
        logical,
        length,
        tar_offset,
    });
    let ordinary = (number(), number()).prop_map(|(size, tar_offset)| EntryKind::File {
        size,
        segments: vec![Segment {
            logical: 0,
            length: size,
            tar_offset,
        }],
    });
    let device = || (any::<u32>(), any::<u32>());
    prop_oneof![
        ordinary,
        (number(), vec(piece, 0..4))
            .prop_map(|(size, segments)| EntryKind::File { size, segments }),
        Just(EntryKind::Directory),
        text(0..9).prop_map(|target| EntryKind::Symlink { target }),
        text(0..9).prop_map(|target| EntryKind::Hardlink { target }),
        device().prop_map(|(major, minor)| EntryKind::CharDevice { major, minor }),
        device().prop_map(|(major, minor)| EntryKind::BlockDevice { major, minor }),
        Just(EntryKind::Fifo),
        Just(EntryKind::Whiteout),
        Just(EntryKind::Opaque),
    ]
}

prop_compose! {
    fn entry()(
        path in text(0..9),
        kind in kind(),
        mode in prop_oneof![Just(0o644), Just(0o755), any::<u16>()],
        (uid, gid) in prop_oneof![Just((0, 0)), any::<(u32, u32)>()],
        mtime in prop_oneof![Just(0), Just(1_600_000_000), any::<i64>()],
        mtime_nsec in prop_oneof![Just(0), any::<u32>()],
        xattrs in vec((text(0..5), vec(any::<u8>(), 0..5)), 0..3),
    ) -> Entry {
        let xattr = |(name, value)| Xattr { name, value };
        let xattrs = xattrs.into_iter().map(xattr).collect();
        Entry { path, kind, mode, uid, gid, mtime, mtime_nsec, xattrs }
    }
}

fn span() -> impl Strategy<Value = Span> {
    let block = (0..8u8, any::<u32>())
        .prop_map(|(skip_bits, window)| SpanKind::GzipBlock { skip_bits, window });
    let kind = prop_oneof![
        Just(SpanKind::Plain),
        Just(SpanKind::GzipMember),
        Just(SpanKind::ZstdFrame),
        block
    ];
    (number(), number(), number(), kind, any::<[u8; 32]>()).prop_map(
        |(tar_len, blob_offset, blob_len, kind, digest)| Span {
            tar_len,
            blob_offset,
            blob_len,
            kind,
            digest: SpanDigest::from_bytes(digest),
        },
    )
}

fn window() -> impl Strategy<Value = Window> {
    let parts = (vec(any::<(u16, u16)>(), 0..5), vec(any::<u8>(), 0..20));
    parts.prop_map(|(runs, bytes)| Window { runs, bytes })
}

fn decode_entries(raw: &[u8]) -> Result<Vec<Entry>, DecodeError> {
    let mut decoder = Entries::new(raw)?;
    let mut entries = Vec::new();
    while let Some(entry) = decoder.next_entry()? {
        entries.push(entry.clone());
    }
    Ok(entries)
}

proptest! {
    #[test]
    fn entries_survive(entries in vec(entry(), 0..20)) {
        let raw = encode_entries(&entries);
        prop_assert_eq!(decode_entries(&raw).unwrap(), entries);
    }

    #[test]
    fn spans_and_windows_survive(spans in vec(span(), 0..9), windows in vec(window(), 0..9)) {
        prop_assert_eq!(decode_spans(&encode_spans(&spans)).unwrap(), spans);
        prop_assert_eq!(decode_windows(&encode_windows(&windows), 9).unwrap(), windows);
    }

    #[test]
    fn what_is_cut_off_or_longer_is_refused(entries in vec(entry(), 1..5), cut in any::<prop::sample::Index>()) {
        let raw = encode_entries(&entries);
        prop_assert!(decode_entries(&raw[..cut.index(raw.len())]).is_err());
        prop_assert!(decode_entries(&[&raw[..], &[0]].concat()).is_err());
    }
}
