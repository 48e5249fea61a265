//! Layers that an earlier archive already describes are not downloaded again.

use crate::digest_of;
use clip_archive::{Archive, LayerRef, LayerSection, OpenError, SeekTable, head::Indexer};
use clip_index::LayerContent;
use clip_registry::LayerDescriptor;

/// The section of `layer` from the first of `archives` that has it, as indexing the blob again with
/// `indexer` would give it.
///
/// An archive is believed: it was made by somebody who may write here. A section that does not decode is passed over: the layer is indexed anew then.
pub(crate) fn find_section(
    archives: &[Archive],
    layer: &LayerDescriptor,
    content: &LayerContent,
    indexer: &Indexer,
) -> Option<LayerSection> {
    // The names of other layers' files come from annotations, which the blob's digest does not cover.
    if *content != (LayerContent::Tar { top: None }) {
        return None;
    }
    let same_indexer = archives
        .iter()
        .filter(|archive| archive.head().indexer == *indexer);
    let mut found = same_indexer.flat_map(|archive| {
        let layers = archive.head().layers.iter().enumerate();
        layers.map(move |(index, there)| (archive, index, there))
    });
    let (archive, index, _) = found.find(|(_, _, there)| is_same(there, layer))?;
    section(archive, index).ok()
}

fn is_same(there: &LayerRef, layer: &LayerDescriptor) -> bool {
    let promised = layer.diff_id.as_ref().map(digest_of);
    there.digest == digest_of(&layer.digest)
        && there.size == layer.size
        && there.media_type == layer.media_type
        && promised.is_none_or(|promised| promised == there.diff_id)
}

fn section(archive: &Archive, index: usize) -> Result<LayerSection, OpenError> {
    let there = &archive.head().layers[index];
    let (spans, windows) = (archive.seek_table(index)?, archive.windows(index)?);
    let seek = SeekTable { windows, ..spans };
    let checked = seek.check_spans(there.size, Some(seek.windows.len()));
    checked.map_err(|source| OpenError::SeekTable {
        layer: index,
        source,
    })?;
    Ok(LayerSection {
        digest: there.digest,
        diff_id: there.diff_id,
        size: there.size,
        media_type: there.media_type.clone(),
        entries: archive.entries(index)?,
        seek,
    })
}
