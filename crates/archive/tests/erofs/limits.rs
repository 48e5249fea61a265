//! What EROFS cannot express is refused by name, not written wrongly.

use crate::trees::{
    Node, NodeKind, Tree, add, directory, empty_tree, file, link, node, write, xattr,
};
use clip_archive::Segment;
use clip_archive::erofs::{Image, WriteError};

/// A tree with one entry "x", which is node 1.
fn tree_with(node: Node) -> Tree {
    let mut tree = empty_tree(&[4096]);
    add(&mut tree, 0, b"x", node);
    tree
}

#[test]
fn a_directory_with_two_names_is_refused() {
    let mut twice = tree_with(directory());
    link(&mut twice, 0, b"y", 1);
    assert_eq!(
        write(&twice),
        Err(WriteError::DirectoryHasTwoNames { node: 1 })
    );
    let mut cycle = tree_with(directory());
    link(&mut cycle, 1, b"up", 0);
    assert_eq!(
        write(&cycle),
        Err(WriteError::DirectoryHasTwoNames { node: 0 })
    );
}

#[test]
fn names_and_targets_that_linux_forbids_are_refused() {
    let long = [b'x'; 256];
    for name in [b"".as_slice(), b".", b"..", b"a/b", b"a\0", &long] {
        let mut tree = empty_tree(&[]);
        add(&mut tree, 0, name, directory());
        assert_eq!(write(&tree), Err(WriteError::InvalidName { directory: 0 }));
    }
    for target in [vec![], vec![b'x'; 4096], b"a\0b".to_vec()] {
        let tree = tree_with(node(NodeKind::Symlink(target)));
        assert_eq!(write(&tree), Err(WriteError::InvalidTarget { node: 1 }));
    }
}

#[test]
fn attributes_out_of_range_are_refused() {
    let tree = tree_with(Node {
        mtime_nsec: 1_000_000_000,
        ..directory()
    });
    assert_eq!(write(&tree), Err(WriteError::InvalidTime { node: 1 }));
    let tree = tree_with(node(NodeKind::CharDevice {
        major: 4096,
        minor: 0,
    }));
    assert_eq!(
        write(&tree),
        Err(WriteError::InvalidDevice {
            node: 1,
            major: 4096,
            minor: 0
        })
    );
    let tree = tree_with(Node {
        xattrs: vec![xattr(b"user.x", &[0; 65_536])],
        ..directory()
    });
    assert_eq!(write(&tree), Err(WriteError::XattrsTooLarge { node: 1 }));
}

#[test]
fn content_that_blocks_cannot_express_is_refused() {
    assert_eq!(
        write(&tree_with(file(1, 1, 512))),
        Err(WriteError::NoSuchLayer { node: 1, layer: 1 })
    );
    assert_eq!(
        write(&tree_with(file(0, 3585, 512))),
        Err(WriteError::InvalidSegments { node: 1 })
    );
    let unaligned = file(0, 100, 100);
    let error = WriteError::UnalignedSegment {
        node: 1,
        logical: 0,
        length: 100,
        tar_offset: 100,
    };
    assert_eq!(write(&tree_with(unaligned)), Err(error));
    let segments = vec![Segment {
        logical: 512,
        length: 512,
        tar_offset: 512,
    }];
    let fragmented = node(NodeKind::File {
        layer: 0,
        size: 1 << 40,
        segments,
    });
    assert_eq!(
        write(&tree_with(fragmented)),
        Err(WriteError::TooFragmented { node: 1 })
    );
    let size = 1 << 63;
    let endless = node(NodeKind::File {
        layer: 0,
        size,
        segments: vec![],
    });
    assert_eq!(
        write(&tree_with(endless)),
        Err(WriteError::FileTooLarge { node: 1, size })
    );
}

#[test]
fn layers_beyond_the_formats_numbers_are_refused() {
    let too_many = empty_tree(&[512; 4097]);
    assert_eq!(
        write(&too_many),
        Err(WriteError::TooManyLayers { layers: 4097 })
    );
    let too_large = empty_tree(&[512, 1 << 42]);
    assert_eq!(
        write(&too_large),
        Err(WriteError::LayerTooLarge {
            layer: 1,
            size: 1 << 42
        })
    );
}

#[test]
fn as_many_layers_as_allowed_keep_the_root_within_16_bits() {
    let mut tree = empty_tree(&[1024; 4096]);
    add(&mut tree, 0, b"x", file(4095, 600, 0));
    let bytes = write(&tree).unwrap();
    let image = Image::open(&bytes).unwrap();
    assert_eq!(image.layers(), 4096);
    assert!(image.lookup(image.root(), b"x").unwrap().is_some());
    assert_eq!(image.layer_size(4095), Some(1024));
    assert_eq!(image.layer_size(4096), None);
}

#[test]
fn impossible_attributes_are_left_out() {
    let tree = tree_with(Node {
        xattrs: vec![xattr(b"com.apple.provenance", b"1")],
        ..directory()
    });
    let bytes = write(&tree).unwrap();
    let image = Image::open(&bytes).unwrap();
    assert_eq!(image.inode_count(), 2);
    assert!(!image.has_xattrs_anywhere());
}
