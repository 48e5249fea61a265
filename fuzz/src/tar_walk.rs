//! The tar walk: whatever the stream holds, its pieces' sizes must not matter, and what it accepts must merge or be
//! refused with a reason.
//!
//! The first byte: bit 0, give every header its right checksum (else nothing gets past them). Then the sizes of the
//! pieces, then the stream.

use crate::{erofs_walk, framing, input::Input};
use clip_archive::{Archive, Entry, RuntimeDirs, columns, erofs};
use clip_index::{TarError, TarWalker};

/// The target.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let with_checksums = input.byte() & 1 != 0;
    let sizes: Vec<usize> = (0..input.byte() % 8)
        .map(|_| usize::from(input.short()) % 2000 + 1)
        .collect();
    let mut stream = input.rest().to_vec();
    if with_checksums {
        right_checksums(&mut stream);
    }
    let whole = walk(std::iter::once(&stream[..]));
    let pieces = walk(pieces(&stream, &sizes).into_iter());
    let text = |result: &Result<_, TarError>| match result {
        Ok(walked) => format!("{walked:?}"),
        Err(error) => error.to_string(),
    };
    assert_eq!(text(&whole), text(&pieces), "pieces of {sizes:?}");
    if let Ok((entries, _)) = whole {
        expand(&entries, stream.len() as u64);
    }
}

type Walked = (Vec<Entry>, Vec<Vec<u8>>);

fn walk<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<Walked, TarError> {
    let mut walker = TarWalker::new();
    for piece in pieces {
        walker.push(piece)?;
    }
    let walked = walker.finish()?;
    Ok((walked.entries, walked.runtime_paths))
}

fn pieces<'a>(stream: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let mut sizes = sizes.iter().cycle();
    let mut rest = stream;
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        let size = sizes.next().copied().unwrap_or(1).min(rest.len());
        let (piece, tail) = rest.split_at(size);
        pieces.push(piece);
        rest = tail;
    }
    pieces
}

/// What the indexer accepts, an archive can hold, and a node can open: entries are refused by the walk, not later.
fn expand(entries: &[Entry], tar_size: u64) {
    let layer = framing::RawLayer {
        tar_size,
        entries: columns::encode_entries(entries),
        ..Default::default()
    };
    let file = framing::archive(&[layer], RuntimeDirs::Omit, |_| {});
    let archive = Archive::open(file).expect("a sound head");
    archive
        .entries(0)
        .expect("the walk lets nothing through that opening refuses");
    if let Ok(tree) = archive.merge()
        && let Ok(image) = erofs::write(&tree)
    {
        erofs_walk::assert_shows(&image, &tree);
    }
}

/// Walks header by header, as a simple reader would, and sets each checksum (POSIX.1-1988, ustar).
fn right_checksums(stream: &mut [u8]) {
    const BLOCK: usize = 512;
    let mut at = 0;
    while let Some(header) = stream.get_mut(at..at + BLOCK) {
        at += BLOCK;
        if header.iter().all(|&byte| byte == 0) {
            continue;
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().copied().map(u32::from).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let has_content = !matches!(header[156], b'1'..=b'6');
        let digits = header[124..136].iter().skip_while(|byte| **byte == b' ');
        let size = digits
            .take_while(|byte| (b'0'..=b'7').contains(*byte))
            .fold(0usize, |size, digit| {
                size.saturating_mul(8) | usize::from(digit - b'0')
            });
        if has_content && size < stream.len() {
            at = at.saturating_add(size.next_multiple_of(BLOCK));
        }
    }
}
