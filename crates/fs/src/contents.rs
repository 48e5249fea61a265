//! Where the content of an image's files lies in its layers.

use crate::mapped::Mapped;
use clip_archive::erofs::{Extent, FileType, Image, Nid, Place, ReadError};
use clip_cache::LayerReader;
use std::ops::Range;

/// Tells each of `layers` where the files of `tree` lie in it. Looks at the whole tree: some milliseconds for 100,000
/// files. Of a damaged tree nothing is told; who reads it is.
pub fn tell(tree: &Image<Mapped>, layers: &[LayerReader]) {
    match by_layer(tree, layers.len()) {
        Ok(contents) => {
            for (layer, contents) in layers.iter().zip(contents) {
                layer.know_files(contents);
            }
        }
        Err(error) => tracing::debug!(%error, "cannot tell where files lie"),
    }
}

/// The bytes of each layer that a file consists of, a range for each piece.
fn by_layer(tree: &Image<Mapped>, layers: usize) -> Result<Vec<Vec<Range<u64>>>, ReadError> {
    let mut contents = vec![Vec::new(); layers];
    let mut to_visit = vec![tree.root()];
    while let Some(dir) = to_visit.pop() {
        for entry in tree.read_dir(dir, 0)? {
            let entry = entry?;
            match entry.kind {
                FileType::Directory if !matches!(entry.name, b"." | b"..") => {
                    to_visit.push(entry.nid);
                }
                FileType::Regular => add(tree, entry.nid, &mut contents)?,
                _ => {}
            }
        }
    }
    Ok(contents)
}

fn add(tree: &Image<Mapped>, file: Nid, contents: &mut [Vec<Range<u64>>]) -> Result<(), ReadError> {
    for extent in tree.extents(file, 0..u64::MAX)? {
        let Extent { len, place, .. } = extent?;
        if let Place::Layer { index, offset } = place
            && let Some(contents) = contents.get_mut(usize::from(index))
        {
            contents.push(offset..offset + len);
        }
    }
    Ok(())
}
