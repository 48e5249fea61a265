//! The format, byte for byte, as `golden/format.txt` shows it to people: a change there is a new format version.

use clip_archive::{
    Archive, ArchiveWriter, Digest, Entry, EntryKind, LayerSection, RuntimeDirs, SeekTable,
    Segment, Span, SpanDigest, SpanKind, Window, Xattr, codec, columns, head::Indexer,
    header::HEADER_LEN, write::ImageInfo,
};
use expect_test::expect_file;
use std::fmt::Write as _;

fn entry(path: &str, kind: EntryKind) -> Entry {
    Entry {
        path: path.into(),
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: 1_600_000_000,
        mtime_nsec: 0,
        xattrs: vec![],
    }
}

fn file(path: &str, size: u64, pieces: &[(u64, u64, u64)]) -> Entry {
    let segment = |&(logical, length, tar_offset)| Segment {
        logical,
        length,
        tar_offset,
    };
    let segments = pieces.iter().map(segment).collect();
    entry(path, EntryKind::File { size, segments })
}

fn every_kind_of_entry() -> Vec<Entry> {
    let target = || b"usr/bin/tool".to_vec();
    let (major, minor) = (8, 17);
    vec![
        entry("usr", EntryKind::Directory),
        entry("usr/bin", EntryKind::Directory),
        file("usr/bin/tool", 700, &[(0, 700, 1536)]),
        Entry {
            mode: 0o4711,
            uid: 1000,
            mtime: 1_600_000_060,
            mtime_nsec: 5,
            xattrs: vec![Xattr {
                name: b"user.note".to_vec(),
                value: b"\0a".to_vec(),
            }],
            ..file("usr/bin/empty", 0, &[])
        },
        file("usr/sparse", 8192, &[(512, 512, 4608), (8000, 192, 5120)]),
        entry("usr/link", EntryKind::Symlink { target: target() }),
        entry("usr/name", EntryKind::Hardlink { target: target() }),
        entry("usr/char", EntryKind::CharDevice { major, minor }),
        entry("usr/block", EntryKind::BlockDevice { major, minor }),
        entry("usr/fifo", EntryKind::Fifo),
        entry("usr/gone", EntryKind::Whiteout),
        entry("usr", EntryKind::Opaque),
    ]
}

fn every_kind_of_span() -> Vec<Span> {
    let span = |tar_len, blob_offset, blob_len, kind| Span {
        tar_len,
        blob_offset,
        blob_len,
        kind,
        digest: SpanDigest::of(b""),
    };
    let block = |skip_bits, window| SpanKind::GzipBlock { skip_bits, window };
    vec![
        span(1000, 0, 90, SpanKind::GzipMember),
        span(2000, 89, 30, block(3, 0)),
        span(3000, 119, 300, block(0, 1)),
        span(4000, 419, 400, SpanKind::ZstdFrame),
        span(96, 819, 96, SpanKind::Plain),
    ]
}

fn windows() -> Vec<Window> {
    vec![
        Window {
            runs: vec![(10, 3), (32_000, 1)],
            bytes: b"abcd".to_vec(),
        },
        Window::default(),
    ]
}

/// The number of items, then a line for each column.
fn dump(text: &mut String, name: &str, raw: &[u8], columns: usize) {
    let number = |bytes: &mut &[u8]| {
        let (value, rest) = postcard::take_from_bytes::<u64>(bytes).unwrap();
        *bytes = rest;
        value as usize
    };
    let mut rest = raw;
    writeln!(text, "\n{name}: {} items", number(&mut rest)).unwrap();
    let lengths: Vec<usize> = (0..columns).map(|_| number(&mut rest)).collect();
    for (index, length) in lengths.into_iter().enumerate() {
        let (column, tail) = rest.split_at(length);
        let line = format!("{index:2}  {}", column.escape_ascii());
        writeln!(text, "{}", line.trim_end()).unwrap();
        rest = tail;
    }
    assert!(rest.is_empty());
}

#[test]
fn the_format_is_the_one_that_is_documented() {
    let section = LayerSection {
        digest: Digest::of(b"blob"),
        diff_id: Digest::of(b"tar"),
        size: 915,
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
        entries: every_kind_of_entry(),
        seek: SeekTable {
            tar_size: 10_096,
            spans: every_kind_of_span(),
            windows: windows(),
        },
    };
    let mut writer = ArchiveWriter::new();
    writer.add_layer(&section);
    let file = writer.finish(ImageInfo {
        registry: "docker.io".into(),
        repository: "library/demo".into(),
        tag: Some("1".into()),
        manifest_digest: Digest::of(b"manifest"),
        platform: "linux/amd64".into(),
        config: b"{}".to_vec(),
        runtime_dirs: RuntimeDirs::Omit,
        indexer: Indexer::default(),
    });
    let archive = Archive::open(file).unwrap();
    assert_eq!(archive.entries(0).unwrap(), section.entries);
    assert_eq!(archive.seek_table(0).unwrap().spans, section.seek.spans);
    assert_eq!(archive.windows(0).unwrap(), section.seek.windows);

    let mut text = format!("header\n{}\n", archive.bytes()[..HEADER_LEN].escape_ascii());
    let head = codec::encode(archive.head());
    writeln!(text, "\nhead\n{}", head.escape_ascii()).unwrap();
    let raw = columns::encode_entries(&section.entries);
    dump(&mut text, "entries", &raw, 15);
    let raw = columns::encode_spans(&section.seek.spans);
    dump(&mut text, "spans", &raw, 6);
    let raw = columns::encode_windows(&section.seek.windows);
    dump(&mut text, "windows", &raw, 5);
    expect_file!["golden/format.txt"].assert_eq(&text);
}
