//! Reads an EROFS image with our reader: all of it, against the tree that it was written from, or for its own sake.

use clip_archive::{
    Segment, Tree, Xattr,
    erofs::{FileType, Image, Inode, Nid, Place},
    tree::{Attributes, Node, NodeId, NodeKind},
};
use std::collections::HashMap;

/// Panics unless `image` shows exactly `tree`.
pub fn assert_shows(image: &[u8], tree: &Tree) {
    let image = Image::open(image).expect("what was written opens");
    image.verify().expect("what was written is whole");
    assert_eq!(image.layers(), tree.layer_tar_sizes().len());
    let mut nids: HashMap<NodeId, Nid> = HashMap::from([(0, image.root())]);
    let mut names: HashMap<NodeId, u32> = HashMap::new();
    let mut pending = vec![(0, 0)];
    while let Some((directory, parent)) = pending.pop() {
        let entries = image.read_dir(nids[&directory], 0).expect("a directory");
        let mut shown = HashMap::new();
        for entry in entries {
            let entry = entry.expect("a sound directory");
            shown.insert(entry.name, (entry.nid, entry.kind));
        }
        let children = tree.children(directory);
        assert_eq!(
            shown.len(),
            children.clone().count() + 2,
            "directory {directory}"
        );
        assert_eq!(shown[b".".as_slice()].0, nids[&directory]);
        assert_eq!(shown[b"..".as_slice()].0, nids[&parent]);
        let mut subdirectories = 0;
        for (name, child) in children {
            let (nid, kind) = shown[name];
            let known = *nids.entry(child).or_insert(nid);
            assert_eq!(known, nid, "two nids for node {child}");
            assert_eq!(image.lookup(nids[&directory], name), Ok(Some(nid)));
            assert_eq!(kind, image.inode(nid).expect("a sound inode").kind);
            *names.entry(child).or_default() += 1;
            if kind == FileType::Directory {
                subdirectories += 1;
                pending.push((child, directory));
            }
        }
        names.insert(directory, 2 + subdirectories);
    }
    for (&id, &nid) in &nids {
        let inode = image.inode(nid).expect("a sound inode");
        assert_eq!(inode.nlink, names[&id], "names of node {id}");
        assert_node(&image, &inode, &tree.node(id));
    }
}

fn assert_node(image: &Image<&[u8]>, inode: &Inode, node: &Node<'_>) {
    let shown = Attributes {
        mode: inode.mode & 0o7777,
        uid: inode.uid,
        gid: inode.gid,
        mtime: inode.mtime,
        mtime_nsec: inode.mtime_nsec,
    };
    assert_eq!(shown, node.attributes);
    for xattr in image.xattrs(inode.nid).expect("sound attributes") {
        let xattr = xattr.expect("a sound attribute");
        let (name, value) = (xattr.name(), xattr.value.to_vec());
        assert!(node.xattrs.contains(&Xattr { name, value }));
    }
    match node.kind {
        NodeKind::Symlink(target) => assert_eq!(image.read_link(inode.nid), Ok(target)),
        NodeKind::CharDevice { major, minor } | NodeKind::BlockDevice { major, minor } => {
            assert_eq!(inode.device(), (major, minor));
        }
        NodeKind::File {
            layer,
            size,
            segments,
        } => {
            assert_eq!(inode.size, size);
            let extents = image.extents(inode.nid, 0..u64::MAX).expect("a file");
            let shown = extents.filter_map(|extent| {
                let extent = extent.expect("sound extents");
                match extent.place {
                    Place::Hole => None,
                    Place::Layer { index, offset } => {
                        assert_eq!(index, layer);
                        Some(Segment {
                            logical: extent.file_offset,
                            length: extent.len,
                            tar_offset: offset,
                        })
                    }
                }
            });
            assert_eq!(joined(shown), joined(segments.iter().copied()));
        }
        NodeKind::Directory | NodeKind::Fifo => {}
    }
}

/// Segments without empty ones, those that go on in file and tar alike made one.
fn joined(segments: impl Iterator<Item = Segment>) -> Vec<Segment> {
    let mut out: Vec<Segment> = Vec::new();
    for segment in segments.filter(|segment| segment.length > 0) {
        match out.last_mut() {
            Some(last)
                if last.logical + last.length == segment.logical
                    && last.tar_offset + last.length == segment.tar_offset =>
            {
                last.length += segment.length;
            }
            _ => out.push(segment),
        }
    }
    out
}

/// Asks everything of an image that may be damaged; any answer will do.
pub fn exercise(bytes: &[u8]) {
    let Ok(image) = Image::open(bytes) else {
        return;
    };
    let _ = image.verify();
    let _ = image.layer_size(u16::MAX);
    // Each position that could be an inode, and what directories name; both bounded by the image's length.
    let slots = bytes.len() as u64 / 32;
    for nid in (0..=slots).chain([u64::MAX, u64::MAX / 32]).map(Nid) {
        let Ok(inode) = image.inode(nid) else {
            continue;
        };
        let _ = image.lookup(nid, b"a");
        let _ = image.read_link(nid);
        let _ = image.xattr(nid, b"user.a");
        // What one node makes us walk is bounded by the image, whatever its size field claims.
        let most = bytes.len() + 1;
        let entries = image.read_dir(nid, u64::from(inode.gid)).ok();
        assert!(entries.is_none_or(|entries| entries.count() <= most));
        let attributes = image.xattrs(nid).ok();
        assert!(attributes.is_none_or(|attributes| attributes.count() <= most));
        for range in [0..u64::MAX, inode.size.saturating_sub(600)..u64::MAX] {
            let extents = image.extents(nid, range).ok();
            assert!(extents.is_none_or(|extents| extents.count() <= most));
        }
    }
}
