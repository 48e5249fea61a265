//! Damaged and hostile images: any answer will do, but no panic and no endless work.

use crate::trees::{NodeKind, add, any_tree, empty_tree, everything, node, write};
use crate::view::{assert_same, expected};
use clip_archive::Segment;
use clip_archive::erofs::{Image, Nid, ReadError};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

proptest! {
    #[test]
    fn an_altered_image_never_panics(
        tree in any_tree(),
        changes in vec((any::<Index>(), prop_oneof![any::<u8>(), Just(0), Just(0xff)]), 1..40),
    ) {
        let mut bytes = write(&tree).unwrap();
        for (position, value) in changes {
            let behind_superblock = 1536 + position.index(bytes.len() - 1536);
            bytes[behind_superblock] = value;
        }
        exercise(&bytes);
    }

    #[test]
    fn a_forged_superblock_with_a_sound_checksum_never_panics(
        tree in any_tree(),
        forged in vec((1036usize..1152, any::<u8>()), 1..6),
    ) {
        let mut bytes = write(&tree).unwrap();
        for (position, value) in forged {
            bytes[position] = value;
        }
        bytes[1028..1032].fill(0);
        let checksum = !crc32c::crc32c(&bytes[1024..1536]);
        bytes[1028..1032].copy_from_slice(&checksum.to_le_bytes());
        exercise(&bytes);
    }

    #[test]
    fn a_file_with_impossible_segments_is_written_rightly_or_refused(
        (size, tar_size) in (any_number(), any_number()),
        segments in vec((any_number(), any_number(), any_number()), 0..4),
    ) {
        let segments = segments.into_iter();
        let segments = segments.map(|(logical, length, tar_offset)| Segment { logical, length, tar_offset });
        let kind = NodeKind::File { layer: 0, size, segments: segments.collect() };
        let mut tree = empty_tree(&[tar_size]);
        add(&mut tree, 0, b"x", node(kind));
        if let Ok(bytes) = write(&tree) {
            let image = Image::open(&bytes).unwrap();
            assert_same("our reader", &crate::our_reader::view(&image), &expected(&tree));
        }
    }

    #[test]
    fn an_image_cut_short_never_panics(tree in any_tree(), len in any::<Index>()) {
        let bytes = write(&tree).unwrap();
        exercise(&bytes[..len.index(bytes.len())]);
    }

    #[test]
    fn arbitrary_bytes_behind_a_sound_superblock_never_panic(noise in vec(any::<u8>(), 0..6000)) {
        let mut bytes = write(&empty_tree(&[512])).unwrap();
        let len = bytes.len();
        for (place, byte) in bytes[1536..len].iter_mut().zip(noise) {
            *place = byte;
        }
        exercise(&bytes);
    }
}

#[test]
fn every_flipped_bit_of_the_superblock_is_noticed() {
    let bytes = write(&empty_tree(&[1024])).unwrap();
    for bit in 1024 * 8..1536 * 8 {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Image::open(&bytes).is_err(), "bit {bit}");
    }
}

#[test]
fn verify_notices_what_open_does_not_look_at() {
    let mut bytes = write(&everything()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let verified = Image::open(&bytes).unwrap().verify();
    assert_eq!(verified, Err(ReadError::Damaged("wrong content checksum")));
}

#[test]
fn a_node_is_only_read_as_what_it_is() {
    let bytes = write(&everything()).unwrap();
    let image = Image::open(&bytes).unwrap();
    let root = image.root();
    let tool = image.lookup(root, b"same-tool").unwrap().unwrap();
    assert_eq!(
        image.lookup(tool, b"x"),
        Err(ReadError::NotADirectory(tool))
    );
    assert_eq!(
        image.read_dir(tool, 0).err(),
        Some(ReadError::NotADirectory(tool))
    );
    assert_eq!(image.read_link(root), Err(ReadError::NotASymlink(root)));
    assert_eq!(
        image.extents(root, 0..1).err(),
        Some(ReadError::NotAFile(root))
    );
    assert!(matches!(
        image.inode(Nid(u64::MAX)),
        Err(ReadError::Corrupt { .. })
    ));
    assert!(matches!(
        image.inode(Nid(1 << 40)),
        Err(ReadError::Corrupt { .. })
    ));
}

/// Small, near a block's border, near a power of two, or huge.
fn any_number() -> impl Strategy<Value = u64> {
    let near = |n: u64, by: u64| n.wrapping_add(by).wrapping_sub(2);
    prop_oneof![
        4 => (0..8u64).prop_map(|blocks| blocks * 512),
        2 => (0..8u64, 0..5u64).prop_map(move |(blocks, by)| near(blocks * 512, by)),
        1 => (9..64u32, 0..5u64).prop_map(move |(power, by)| near(1 << power, by)),
    ]
}

/// Asks everything of every slot that could be an inode.
fn exercise(bytes: &[u8]) {
    let Ok(image) = Image::open(bytes) else {
        return;
    };
    let _ = image.verify();
    for nid in (0..bytes.len() as u64 / 32)
        .chain([u64::MAX, u64::MAX / 32])
        .map(Nid)
    {
        let _ = image.inode(nid);
        let _ = image.lookup(nid, b"");
        let _ = image.lookup(nid, b"abc");
        let _ = image.read_link(nid);
        let _ = image.xattr(nid, b"user.a");
        for cookie in [0, 12, 505, 512, 1023, u64::MAX - 7] {
            let _ = image
                .read_dir(nid, cookie)
                .map(|entries| entries.take(100_000).count());
        }
        for range in [0..u64::MAX, 512..513, u64::MAX - 1..u64::MAX] {
            let _ = image
                .extents(nid, range)
                .map(|extents| extents.take(100_000).count());
        }
        let _ = image.xattrs(nid).map(|xattrs| xattrs.take(100_000).count());
    }
}
