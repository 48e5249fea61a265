//! Judge two: erofs-rs, a reader that others wrote from the kernel's sources.

use crate::trees::{any_tree, write};
use crate::view::{
    Detail, Seen, View, assert_same, expected, join, layer_bytes, name_inodes, windows,
};
use clip_archive::erofs::FileType;
use erofs_rs::EroFS;
use erofs_rs::backend::SliceImage;
use erofs_rs::types::Inode;
use proptest::prelude::*;

proptest! {
    #[test]
    fn another_reader_sees_the_tree_that_was_written(tree in any_tree()) {
        let image = write(&tree).unwrap();
        let sizes = tree.layer_tar_sizes.iter().enumerate();
        // Devices are whole blocks.
        let layers: Vec<Vec<u8>> = sizes
            .map(|(layer, size)| layer_bytes(layer, 0..size.next_multiple_of(512)))
            .collect();
        let devices = layers.iter().map(|layer| SliceImage::new(layer)).collect();
        let fs = EroFS::new_with_devices(SliceImage::new(&image), devices).unwrap();
        assert_same("erofs-rs", &view(&fs), &expected(&tree));
    }
}

type Fs<'a> = EroFS<SliceImage<'a>>;

fn view(fs: &Fs<'_>) -> View {
    let mut view = View::new();
    let root = fs.get_inode(fs.super_block().root_inode_id()).unwrap();
    view.insert(vec![], see(fs, &root));
    let mut pending = vec![vec![]];
    while let Some(directory) = pending.pop() {
        let path = join(b"", &[b"/", directory.as_slice()].concat());
        for entry in fs.read_dir(&path).unwrap() {
            let entry = entry.unwrap();
            let path = join(&directory, entry.dir_entry.file_name());
            if entry.inode.is_dir() {
                pending.push(path.clone());
            }
            view.insert(path, see(fs, &entry.inode));
        }
    }
    name_inodes(view)
}

fn see(fs: &Fs<'_>, inode: &Inode) -> Seen {
    let kind = FileType::from_mode(inode.file_type().as_raw_mode() as u16).unwrap();
    let detail = match kind {
        FileType::Regular => {
            let file = fs.open_inode_file(*inode).unwrap();
            let read = |window: std::ops::Range<u64>| {
                let mut bytes = vec![0; (window.end - window.start) as usize];
                let mut done = 0;
                while done < bytes.len() {
                    let read = file.read_at(&mut bytes[done..], window.start + done as u64);
                    done += Some(read.unwrap())
                        .filter(|&read| read > 0)
                        .expect("more bytes");
                }
                bytes
            };
            Detail::File(
                file.size(),
                windows(file.size()).into_iter().map(read).collect(),
            )
        }
        FileType::Symlink => Detail::Link(fs.read_link_inode(*inode).unwrap().into_vec()),
        FileType::CharDevice | FileType::BlockDevice => {
            let (major, minor) = inode.device().unwrap();
            Detail::Device(major, minor)
        }
        FileType::Directory | FileType::Fifo => Detail::Nothing,
    };
    Seen {
        kind,
        mode: inode.permissions(),
        owner: (inode.uid(), inode.gid()),
        mtime: inode.modified_unix(),
        nlink: inode.nlink(),
        same_as: inode.id().to_be_bytes().to_vec(),
        xattrs: fs.xattrs_inode(*inode).unwrap(),
        detail,
    }
}
