//! Damaged and hostile images: any answer will do, but no panic and no endless work.

use crate::trees::{any_tree, everything};
use clip_archive::erofs::{Image, Nid, ReadError, write};
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
    fn an_image_cut_short_never_panics(tree in any_tree(), len in any::<Index>()) {
        let bytes = write(&tree).unwrap();
        exercise(&bytes[..len.index(bytes.len())]);
    }

    #[test]
    fn arbitrary_bytes_behind_a_sound_superblock_never_panic(noise in vec(any::<u8>(), 0..6000)) {
        let mut bytes = write(&crate::trees::empty_tree(&[512])).unwrap();
        let len = bytes.len();
        for (place, byte) in bytes[1536..len].iter_mut().zip(noise) {
            *place = byte;
        }
        exercise(&bytes);
    }
}

#[test]
fn every_flipped_bit_of_the_superblock_is_noticed() {
    let bytes = write(&crate::trees::empty_tree(&[1024])).unwrap();
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
