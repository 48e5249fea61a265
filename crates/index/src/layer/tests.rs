//! With threads and without, whatever the blob and however it comes in pieces: the same section or
//! the same error.

use super::*;
use clip_testkit::{
    guard::wait_until,
    kinds::{Format, KINDS, Kind, sample_tar},
};
use std::time::Duration;

const SIZES: [usize; 2] = [4_093, 300_000];

fn info(blob: &[u8], tar: &[u8]) -> LayerInfo {
    LayerInfo {
        digest: Digest::of(blob),
        diff_id: Some(Digest::of(tar)),
        size: blob.len() as u64,
        media_type: Format::Plain.media_type().to_owned(),
        content: LayerContent::Tar { top: None },
    }
}

fn both(threads: bool) -> Threads {
    Threads {
        blob: threads,
        content: threads,
    }
}

fn index(
    info: &LayerInfo,
    blob: &[u8],
    size: usize,
    threads: bool,
) -> Result<IndexedLayer, LayerError> {
    let mut indexer =
        LayerIndexer::with_threads(info.clone(), SpanLimits::default(), both(threads));
    for piece in blob.chunks(size) {
        indexer.push(Bytes::copy_from_slice(piece))?;
    }
    indexer.finish()
}

/// What indexing `blob` gives with threads and without, in pieces of two sizes. (A decoder may place
/// its error at the piece's start, so errors are compared size by size.)
fn agreed(case: &str, info: &LayerInfo, blob: &[u8]) -> [Result<LayerSection, String>; 2] {
    SIZES.map(|size| {
        let [here, beside] = [false, true].map(|threads| {
            let indexed = index(info, blob, size, threads);
            indexed
                .map(|done| done.section)
                .map_err(|error| error.to_string())
        });
        assert!(
            here == beside,
            "{case}: pieces of {size} bytes: {:?}, with threads {:?}",
            here.err(),
            beside.err()
        );
        here
    })
}

/// One of each decoder, with one stream and with several.
fn blobs_of(tar: &[u8]) -> impl Iterator<Item = (&'static Kind, Vec<u8>)> {
    let names = ["gnu-gzip-6", "bgzip", "zstd", "zstd-frames", "plain"];
    let wanted = KINDS.iter().filter(move |kind| names.contains(&kind.name));
    wanted.map(|kind| (kind, kind.compress(tar).unwrap()))
}

/// The first byte of the last third that is not zero, so that a flipped bit of a tar is in a file.
fn flip_late(bytes: &mut [u8]) {
    let from = bytes.len() / 3 * 2;
    let byte = bytes[from..].iter_mut().find(|byte| **byte != 0);
    *byte.expect("something other than zeros") ^= 0x10;
}

#[test]
fn threads_change_nothing_about_any_kind_of_layer() {
    let tar = sample_tar("top", 12);
    for (kind, blob) in blobs_of(&tar) {
        let [section, other] = agreed(kind.name, &info(&blob, &tar), &blob).map(Result::unwrap);
        assert!(section == other, "{}: the pieces' size matters", kind.name);
        assert_eq!(section.seek.tar_size, tar.len() as u64, "{}", kind.name);
        assert!(section.entries.len() > 10, "{}", kind.name);
    }
}

#[test]
fn threads_change_no_error() {
    let tar = sample_tar("top", 12);
    for (kind, blob) in blobs_of(&tar) {
        let case = |name: &str| format!("{name}, {}", kind.name);
        let info = info(&blob, &tar);
        let refused = |name: &str, info: &LayerInfo, blob: &[u8], expected: &[&str]| {
            for error in agreed(&case(name), info, blob).map(Result::unwrap_err) {
                let fits = expected.iter().any(|part| error.contains(part));
                assert!(fits, "{}: {error}", case(name));
            }
        };

        let mut flipped = blob.clone();
        flip_late(&mut flipped);
        refused(
            "a bit flipped",
            &info,
            &flipped,
            &["is damaged", "the blob's digest is"],
        );
        let cut = &blob[..blob.len() / 2];
        refused("cut off", &info, cut, &["the blob's digest is"]);
        let short = LayerInfo {
            digest: Digest::of(cut),
            size: cut.len() as u64,
            ..info.clone()
        };
        refused(
            "truncated",
            &short,
            cut,
            &["ends in the middle", "has diffID"],
        );
        let other = LayerInfo {
            diff_id: Some(Digest::of(b"other")),
            ..info.clone()
        };
        refused("another tar", &other, &blob, &["has diffID"]);
        refused("nothing", &info, &[], &["the blob's digest is"]);
        refused("one byte", &info, &blob[..1], &["the blob's digest is"]);
    }
}

#[test]
fn of_two_errors_the_one_is_told_that_comes_first_in_the_stream() {
    let mut tar = sample_tar("top", 12);
    tar[..512].fill(b'x');
    for (kind, mut blob) in blobs_of(&tar) {
        let info = info(&blob, &tar);
        flip_late(&mut blob);
        for error in agreed(kind.name, &info, &blob).map(Result::unwrap_err) {
            assert!(
                error.contains("the tar stream is damaged at byte 0"),
                "{}: {error}",
                kind.name
            );
        }
    }
}

#[test]
fn an_indexer_that_is_given_up_ends_its_threads() {
    let tar = sample_tar("top", 12);
    let mut indexer =
        LayerIndexer::with_threads(info(&tar, &tar), SpanLimits::default(), both(true));
    let lent = Bytes::from(tar);
    indexer.push(lent.clone()).unwrap();
    drop(indexer);
    let limit = Duration::from_secs(60);
    wait_until("nobody reads the layer any more", limit, || {
        lent.is_unique()
    })
    .unwrap();
}
