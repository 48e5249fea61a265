//! Round trips through our reader.

use crate::trees::{add, any_tree, directory, empty_tree, everything, file, write};
use crate::view::{
    Detail, Seen, View, assert_same, expected, join, layer_bytes, name_inodes, windows,
};
use clip_archive::erofs::{DirEntry, Extent, FileType, Image, Nid, Place};
use proptest::prelude::*;

proptest! {
    #[test]
    fn our_reader_sees_the_tree_that_was_written(tree in any_tree()) {
        let bytes = write(&tree).unwrap();
        prop_assert_eq!(&bytes, &write(&tree).unwrap(), "the same tree gives the same bytes");
        let image = Image::open(&bytes).unwrap();
        image.verify().unwrap();
        prop_assert_eq!(image.layers(), tree.layer_tar_sizes.len());
        let expected = expected(&tree);
        assert_same("our reader", &view(&image), &expected);
        let has_xattrs = expected.values().any(|seen| !seen.xattrs.is_empty());
        prop_assert_eq!(image.has_xattrs_anywhere(), has_xattrs);
    }

    #[test]
    fn a_listing_resumes_at_every_cookie_and_finds_what_lookup_finds(tree in any_tree()) {
        let bytes = write(&tree).unwrap();
        let image = Image::open(&bytes).unwrap();
        for directory in directories(&image) {
            let all = list(&image, directory, 0);
            prop_assert!(all.is_sorted_by(|a, b| a.name < b.name));
            for (i, entry) in all.iter().enumerate() {
                prop_assert_eq!(&list(&image, directory, entry.next_cookie), &all[i + 1..]);
                prop_assert_eq!(image.lookup(directory, entry.name), Ok(Some(entry.nid)));
                let absent = [entry.name, b"\x01"].concat();
                let is_absent = all.iter().all(|entry| entry.name != absent);
                prop_assert_eq!(image.lookup(directory, &absent).unwrap().is_none(), is_absent);
                let shorter = &entry.name[1..];
                let is_absent = all.iter().all(|entry| entry.name != shorter);
                prop_assert_eq!(image.lookup(directory, shorter).unwrap().is_none(), is_absent);
            }
        }
    }

    #[test]
    fn extents_of_a_part_are_the_part_of_all_extents(tree in any_tree(), from in 0..50_000u64, len in 0..9000u64) {
        let bytes = write(&tree).unwrap();
        let image = Image::open(&bytes).unwrap();
        let view = view(&image);
        for (path, seen) in &view {
            if let Detail::File(size, content) = &seen.detail {
                let range = from.min(*size)..(from + len).min(*size);
                let whole = content.concat();
                let part = whole.get(range.start as usize..range.end as usize);
                if let Some(part) = part {
                    prop_assert_eq!(read(&image, find(&image, path), range), part);
                }
            }
        }
    }
}

#[test]
fn our_reader_sees_a_tree_with_everything() {
    let tree = everything();
    let bytes = write(&tree).unwrap();
    let image = Image::open(&bytes).unwrap();
    assert_eq!(image.inode_count(), tree.nodes.len() as u64);
    assert!(image.has_xattrs_anywhere());
    let expected = expected(&tree);
    assert_same("our reader", &view(&image), &expected);
    for seen in expected.values() {
        let nid = find(&image, &seen.same_as);
        for (name, value) in &seen.xattrs {
            assert_eq!(image.xattr(nid, name), Ok(Some(&value[..])));
        }
        assert_eq!(image.xattr(nid, b"user.absent"), Ok(None));
    }
}

#[test]
fn our_reader_sees_a_tree_that_two_threads_have_written() {
    let mut tree = empty_tree(&[1 << 20]);
    let mut parent = 0;
    for i in 0..60_000u64 {
        if i % 400 == 0 {
            parent = add(&mut tree, 0, format!("{i}").as_bytes(), directory());
        }
        let name = format!("file-with-a-longer-name-{i}");
        add(&mut tree, parent, name.as_bytes(), file(0, i % 700, 512));
    }
    let bytes = write(&tree).unwrap();
    assert!(bytes.len() > 6 << 20, "{} bytes", bytes.len());
    let image = Image::open(&bytes).unwrap();
    image.verify().unwrap();
    assert_same("our reader", &view(&image), &expected(&tree));
}

/// Everything that our reader sees.
pub fn view<B: AsRef<[u8]>>(image: &Image<B>) -> View {
    let mut view = View::new();
    let mut pending = vec![(Vec::new(), image.root(), image.root())];
    while let Some((path, nid, parent)) = pending.pop() {
        let inode = image.inode(nid).unwrap();
        let detail = match inode.kind {
            FileType::Directory => {
                for entry in list(image, nid, 0) {
                    assert_eq!(image.inode(entry.nid).unwrap().kind, entry.kind);
                    match entry.name {
                        b"." => assert_eq!(entry.nid, nid),
                        b".." => assert_eq!(entry.nid, parent),
                        name => pending.push((join(&path, name), entry.nid, nid)),
                    }
                }
                Detail::Nothing
            }
            FileType::Regular => {
                let windows = windows(inode.size).into_iter();
                Detail::File(
                    inode.size,
                    windows.map(|window| read(image, nid, window)).collect(),
                )
            }
            FileType::Symlink => Detail::Link(image.read_link(nid).unwrap().to_vec()),
            FileType::CharDevice | FileType::BlockDevice => {
                let (major, minor) = inode.device();
                Detail::Device(major, minor)
            }
            FileType::Fifo => Detail::Nothing,
        };
        let xattrs = image.xattrs(nid).unwrap().map(|entry| entry.unwrap());
        let seen = Seen {
            kind: inode.kind,
            mode: inode.mode & 0o7777,
            owner: (inode.uid, inode.gid),
            mtime: (inode.mtime, inode.mtime_nsec),
            nlink: inode.nlink,
            same_as: nid.0.to_be_bytes().to_vec(),
            xattrs: xattrs
                .map(|entry| (entry.name(), entry.value.to_vec()))
                .collect(),
            detail,
        };
        view.insert(path, seen);
    }
    name_inodes(view)
}

fn read<B: AsRef<[u8]>>(image: &Image<B>, nid: Nid, range: std::ops::Range<u64>) -> Vec<u8> {
    let mut bytes = vec![];
    for extent in image.extents(nid, range.clone()).unwrap() {
        let Extent {
            file_offset,
            len,
            place,
        } = extent.unwrap();
        assert_eq!(
            file_offset,
            range.start + bytes.len() as u64,
            "extents have no gaps"
        );
        bytes.extend(match place {
            Place::Hole => vec![0; len as usize],
            Place::Layer { index, offset } => layer_bytes(index.into(), offset..offset + len),
        });
    }
    assert_eq!(bytes.len() as u64, range.end - range.start);
    bytes
}

fn list<B: AsRef<[u8]>>(image: &Image<B>, directory: Nid, cookie: u64) -> Vec<DirEntry<'_>> {
    image
        .read_dir(directory, cookie)
        .unwrap()
        .map(|entry| entry.unwrap())
        .collect()
}

fn find<B: AsRef<[u8]>>(image: &Image<B>, path: &[u8]) -> Nid {
    let names = path
        .split(|&byte| byte == b'/')
        .filter(|name| !name.is_empty());
    names.fold(image.root(), |nid, name| {
        image.lookup(nid, name).unwrap().unwrap()
    })
}

fn directories<B: AsRef<[u8]>>(image: &Image<B>) -> Vec<Nid> {
    let mut found = vec![image.root()];
    let mut next = 0;
    while let Some(&nid) = found.get(next) {
        let entries = list(image, nid, 0)
            .into_iter()
            .filter(|e| e.kind == FileType::Directory);
        found.extend(
            entries
                .filter(|e| e.name != b"." && e.name != b"..")
                .map(|e| e.nid),
        );
        next += 1;
    }
    found
}
