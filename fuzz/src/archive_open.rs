//! Opening an archive: header, head, entries, span tables, windows, verification, merge, expansion.
//!
//! The first byte chooses how the rest becomes a file:
//! 0 as it is; 1 an encoded head (with its length before it), then the sections; 2 layers of encoded parts, all framed
//! rightly; 3 the same, but the head lies about where the parts are.

use crate::{
    erofs_walk,
    framing::{RawLayer, archive, with_raw_head},
    input::Input,
};
use clip_archive::{
    Archive, Head, RuntimeDirs, erofs,
    section::{SpanKind, WINDOW_LEN},
};

/// The target.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let file = match input.byte() % 4 {
        0 => input.rest().to_vec(),
        1 => with_raw_head(input.piece(), input.rest()),
        mode => {
            let lies = mode == 3;
            let falsify = lies.then(|| [input.byte(), input.byte()].map(usize::from));
            let number = lies.then(|| input.number());
            let runtime_dirs = match input.byte() % 2 {
                0 => RuntimeDirs::Omit,
                _ => RuntimeDirs::Empty,
            };
            let layers: Vec<RawLayer> = std::iter::from_fn(|| raw_layer(&mut input))
                .take(5)
                .collect();
            archive(&layers, runtime_dirs, |head| {
                if let (Some([layer, field]), Some(number)) = (falsify, number) {
                    lie(head, layer, field, number);
                }
            })
        }
    };
    exercise(&file);
}

fn raw_layer(input: &mut Input<'_>) -> Option<RawLayer> {
    (!input.is_empty()).then(|| RawLayer {
        size: input.number(),
        tar_size: input.number(),
        entries: input.piece().to_vec(),
        spans: input.piece().to_vec(),
        windows: input.piece().to_vec(),
    })
}

fn lie(head: &mut Head, layer: usize, field: usize, number: u64) {
    let count = head.layers.len().max(1);
    let Some(layer) = head.layers.get_mut(layer % count) else {
        return;
    };
    let part = match field / 3 % 3 {
        0 => &mut layer.entries,
        1 => &mut layer.spans,
        _ => &mut layer.windows,
    };
    match field % 3 {
        0 => part.offset = number,
        1 => part.len = number,
        _ => part.raw_len = number,
    }
}

/// Everything that a node or `clip inspect` does with an archive.
fn exercise(file: &[u8]) {
    let Ok(archive) = Archive::open(file) else {
        return;
    };
    let head = archive.head();
    let _ = (head.image_name(), head.tree_digest());
    for (index, layer) in head.layers.iter().enumerate() {
        let _ = layer.section_digest();
        let _ = archive.entries(index);
        let table = archive.seek_table(index);
        let windows = archive.windows(index).unwrap_or_default();
        for window in &windows {
            window.expand(&mut [0; WINDOW_LEN]);
        }
        for span in table.iter().flat_map(|table| &table.spans) {
            assert!(span.blob_offset + span.blob_len <= layer.size);
            assert!(!matches!(
                span.kind,
                SpanKind::GzipBlock { skip_bits: 8.., .. }
            ));
        }
    }
    let verified = archive.verify();
    let Ok(tree) = archive.merge() else {
        assert!(verified.is_err(), "verify accepts what cannot be merged");
        return;
    };
    // Not every tree can be mounted (device numbers, sizes); what can must be read back.
    if let Ok(image) = erofs::write(&tree) {
        erofs_walk::assert_shows(&image, &tree);
    }
}
