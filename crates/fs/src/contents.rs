//! Where the content of an image's files lies in its layers.

use crate::{
    foresight::{Candidate, Foresight},
    mapped::Mapped,
};
use clip_archive::erofs::{Extent, FileType, Image, Nid, Place, ReadError};
use clip_cache::LayerReader;
use std::ops::Range;
use tokio::runtime::Handle;

/// What the files of one layer are.
#[derive(Debug, Default, Clone)]
struct Contents {
    /// The bytes that a file consists of, a range for each piece.
    files: Vec<Range<u64>>,
    candidates: Vec<Candidate>,
}

/// Tells each of `layers` where the files of `tree` lie in it, and `foresight` which of them may name others, to be
/// fetched on `runtime`. Looks at the whole tree: some milliseconds for 100,000 files. Of a damaged tree
/// nothing is told; who reads it is.
pub fn tell(tree: &Image<Mapped>, layers: &[LayerReader], foresight: &Foresight, runtime: Handle) {
    match by_layer(tree, layers.len()) {
        Ok(contents) => {
            let mut candidates = Vec::new();
            for (layer, contents) in layers.iter().zip(contents) {
                layer.know_files(contents.files);
                candidates.push(contents.candidates);
            }
            foresight.know(candidates, runtime);
        }
        Err(error) => tracing::debug!(%error, "cannot tell where files lie"),
    }
}

fn by_layer(tree: &Image<Mapped>, layers: usize) -> Result<Vec<Contents>, ReadError> {
    let mut contents = vec![Contents::default(); layers];
    let mut to_visit = vec![tree.root()];
    while let Some(dir) = to_visit.pop() {
        for entry in tree.read_dir(dir, 0)? {
            let entry = entry?;
            match entry.kind {
                FileType::Directory if !matches!(entry.name, b"." | b"..") => {
                    to_visit.push(entry.nid);
                }
                FileType::Regular => add(tree, (dir, entry.name), entry.nid, &mut contents)?,
                _ => {}
            }
        }
    }
    Ok(contents)
}

fn add(
    tree: &Image<Mapped>,
    name: (Nid, &[u8]),
    file: Nid,
    contents: &mut [Contents],
) -> Result<(), ReadError> {
    for (piece, extent) in tree.extents(file, 0..u64::MAX)?.enumerate() {
        let Extent { len, place, .. } = extent?;
        if let Place::Layer { index, offset } = place
            && let Some(contents) = contents.get_mut(usize::from(index))
        {
            contents.files.push(offset..offset + len);
            if piece == 0 {
                contents
                    .candidates
                    .extend(Candidate::new(tree, name, file, offset));
            }
        }
    }
    Ok(())
}
