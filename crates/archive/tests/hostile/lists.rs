//! Lists that claim to be long, frames that claim to hold much, parts that are not where they should be.

use crate::{
    MIB, empty_file,
    framing::{self, RawLayer},
    hardlink, open, open_with, peak, refusal,
};
use clip_archive::{Archive, Digest, RuntimeDirs, codec, columns, limits};

/// The number that an encoded list begins with.
fn length(count: u64) -> Vec<u8> {
    codec::encode(&count)
}

#[test]
fn a_list_that_claims_more_items_than_it_has_costs_nothing() {
    for claimed in [1000, limits::ENTRIES_MAX as u64, 1 << 40, u64::MAX] {
        let bomb = RawLayer {
            entries: length(claimed),
            spans: length(claimed),
            windows: length(claimed),
            ..RawLayer::default()
        };
        let archive = open(&[bomb]).unwrap();
        let (_, peak) = peak::of(|| {
            assert!(archive.entries(0).is_err());
            assert!(archive.seek_table(0).is_err());
            assert!(archive.windows(0).is_err());
            assert!(archive.verify().is_err());
        });
        assert!(peak < 2 * MIB, "{claimed} items: {peak} bytes");
    }
}

#[test]
fn more_entries_than_an_image_may_have_are_refused_before_memory_is_taken() {
    let mut entries = length(limits::ENTRIES_MAX as u64 + 1);
    entries.resize(MIB, 0);
    let archive = open(&[RawLayer {
        entries,
        ..RawLayer::default()
    }])
    .unwrap();
    let (refusal, peak) = peak::of(|| refusal(archive.entries(0)));
    assert!(
        refusal.contains("more than the limit of 2097152"),
        "{refusal}"
    );
    assert!(peak < 3 * MIB, "{peak} bytes");
}

/// The columns of one entry, an empty file, with `kind` as its kind and `content` in column `index`.
fn entry_with(kind: u8, index: usize, content: Vec<u8>) -> Vec<u8> {
    let plain = columns::encode_entries(&[empty_file("f")]);
    // The number of entries, the columns' lengths, all in a byte each; then the columns.
    let (lengths, mut rest) = plain[1..].split_at(15);
    let mut columns = Vec::new();
    for &length in lengths {
        let (column, tail) = rest.split_at(length.into());
        columns.push(column.to_vec());
        rest = tail;
    }
    columns[0] = vec![kind];
    columns[index] = content;
    let lengths = columns.iter().map(|column| length(column.len() as u64));
    [
        length(1),
        lengths.collect::<Vec<_>>().concat(),
        columns.concat(),
    ]
    .concat()
}

/// The most memory that is taken while these entries are refused.
fn peak_of_refusing(entries: Vec<u8>) -> usize {
    let layer = RawLayer {
        entries,
        ..RawLayer::default()
    };
    let archive = open(&[layer]).unwrap();
    let (result, peak) = peak::of(|| archive.entries(0));
    assert!(result.is_err());
    peak
}

/// An empty file with extended attributes, and the column of those.
const ATTRIBUTES: (u8, usize) = (0x80, 13);
/// A file in pieces, and their column.
const PIECES: (u8, usize) = (9, 10);

#[test]
fn an_entry_that_claims_a_billion_attributes_or_pieces_costs_nothing() {
    for (kind, index) in [ATTRIBUTES, PIECES] {
        let peak = peak_of_refusing(entry_with(kind, index, length(1_000_000_000)));
        assert!(peak < 2 * MIB, "{peak} bytes");
    }
}

#[test]
fn attributes_beyond_the_limit_are_refused_while_they_are_read() {
    let many = 4_000_000u64;
    let mut attributes = length(many);
    attributes.resize(attributes.len() + 2 * many as usize, 0); // an empty name and an empty value each
    let (kind, index) = ATTRIBUTES;
    let peak = peak_of_refusing(entry_with(kind, index, attributes));
    // The decoded part itself has 8 MB; a list of all of them would have taken 200.
    assert!(peak < 16 * MIB, "{peak} bytes");
}

#[test]
fn paths_that_grow_with_each_entry_are_refused() {
    let long = |n: usize| empty_file(vec![b'x'; n]);
    let entries: Vec<_> = (1..20_000).map(long).collect();
    let raw = columns::encode_entries(&entries);
    assert!(
        raw.len() < 10 * 20_000,
        "each path is the one before and a byte"
    );
    let peak = peak_of_refusing(raw);
    assert!(peak < 16 * MIB, "{peak} bytes");
}

#[test]
fn a_frame_that_claims_more_than_it_can_hold_reserves_nothing() {
    let layer = RawLayer {
        entries: vec![0],
        ..RawLayer::default()
    };
    let archive = open_with(&[layer], |head| {
        head.layers[0].entries.raw_len = limits::TREE_BYTES_MAX as u64;
    })
    .unwrap();
    let (refusal, peak) = peak::of(|| refusal(archive.entries(0)));
    assert!(
        refusal.contains("does not decompress to the 268435456 bytes"),
        "{refusal}"
    );
    assert!(peak < MIB, "{peak} bytes");
}

#[test]
fn a_frame_of_zeros_a_thousand_times_smaller_than_its_content_is_decoded_within_the_limit() {
    let bomb = vec![0; 64 * MIB];
    let layer = RawLayer {
        entries: bomb.clone(),
        ..RawLayer::default()
    };
    let file = framing::archive_with(codec::compress, &[layer], RuntimeDirs::Omit, |_| {});
    assert!(file.len() < MIB);
    let archive = Archive::open(file).unwrap();
    let (result, peak) = peak::of(|| archive.entries(0));
    assert!(result.is_err(), "an empty list, and bytes behind it");
    assert!(peak < 80 * MIB, "{peak} bytes");
}

#[test]
fn layers_that_share_one_bomb_are_counted_each() {
    let layers = vec![RawLayer::default(); 4096];
    let refusal = refusal(open_with(&layers, |head| {
        for layer in &mut head.layers {
            layer.entries.raw_len = MIB as u64;
        }
    }));
    assert!(
        refusal.contains("4294967296 bytes of entries, more than the limit of 268435456"),
        "{refusal}"
    );
}

#[test]
fn more_layers_than_erofs_has_devices_are_refused() {
    let refusal = refusal(open(&vec![RawLayer::default(); 4097]));
    assert!(
        refusal.contains("4097 layers, more than the limit of 4096"),
        "{refusal}"
    );
}

#[test]
fn sizes_that_would_overflow_a_sum_are_refused_by_name() {
    for (size, tar_size, named) in [
        (u64::MAX, 0, "compressed layer"),
        (0, u64::MAX, "bytes of layer"),
    ] {
        let layer = RawLayer {
            size,
            tar_size,
            ..RawLayer::default()
        };
        let refusal = refusal(open(&[layer.clone(), layer]));
        assert!(refusal.contains(named), "{refusal}");
    }
}

#[test]
fn parts_outside_the_file_and_wrong_digests_are_refused() {
    let layer = || RawLayer {
        entries: vec![0],
        ..RawLayer::default()
    };
    for (offset, len) in [
        (u64::MAX, 1),
        (0, u64::MAX),
        (u64::MAX, u64::MAX),
        (1 << 20, 0),
    ] {
        let refusal = refusal(open_with(&[layer()], |head| {
            head.layers[0].entries.offset = offset;
            head.layers[0].entries.len = len;
        }));
        assert!(
            refusal.contains("layer 0 points outside the file"),
            "{refusal}"
        );
    }
    let archive = open_with(&[layer()], |head| {
        head.layers[0].entries.digest = Digest::of(b"x")
    });
    let refusal = refusal(archive.unwrap().entries(0));
    assert!(refusal.contains("digest sha256:"), "{refusal}");
}

#[test]
fn a_list_with_a_wrong_digest_is_no_tree_whatever_else_is_wrong_with_it() {
    // The longer one is checked by a second thread, beside the merge.
    for entries in [10, 100_000] {
        let sound: Vec<_> = (0..entries).map(|n| empty_file(format!("{n}"))).collect();
        let unsound = [&sound[..], &[hardlink("l", "missing")]].concat();
        for entries in [sound, unsound] {
            let layer = RawLayer {
                entries: columns::encode_entries(&entries),
                ..RawLayer::default()
            };
            let archive = open_with(&[layer], |head| {
                head.layers[0].entries.digest = Digest::of(b"x")
            });
            let refusal = refusal(archive.unwrap().merge());
            assert!(refusal.contains("digest sha256:"), "{refusal}");
        }
    }
}

#[test]
fn a_head_that_claims_a_million_layers_costs_nothing() {
    let mut raw_head = vec![0; 200];
    raw_head.extend(length(1_000_000));
    let file = framing::with_raw_head(&raw_head, &[]);
    let (result, peak) = peak::of(|| Archive::open(file).map(drop));
    assert!(result.is_err());
    assert!(peak < 2 * MIB, "{peak} bytes");
}
