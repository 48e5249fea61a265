//! How long it takes to write and to read an EROFS image of a large tree.
//!
//! `cargo run --release -p clip-archive --example erofs_write [entries]`

use clip_archive::erofs::{FileType, Image, write};
use clip_archive::tree::{Node, NodeKind};
use clip_archive::{Segment, Tree};
use std::collections::BTreeMap;
use std::time::Instant;

fn main() {
    let entries = std::env::args()
        .nth(1)
        .map_or(125_000, |n| n.parse().expect("a number"));
    let tree = tree(entries);
    for _ in 0..5 {
        let start = Instant::now();
        let image = write(&tree).expect("a valid tree");
        let written = start.elapsed();

        let start = Instant::now();
        let image = Image::open(&image).expect("a valid image");
        image.verify().expect("an intact image");
        let verified = start.elapsed();

        let start = Instant::now();
        let seen = walk(&image);
        println!(
            "{seen} entries: written in {written:.1?}, verified in {verified:.1?}, walked, looked up and stat-ed in {:.1?}",
            start.elapsed(),
        );
    }
}

/// Directories of 20 files each, a tenth of them links, names as in a language's library tree.
fn tree(entries: usize) -> Tree {
    let node = |kind| Node {
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: 1,
        mtime_nsec: 2,
        xattrs: vec![],
    };
    let mut nodes = vec![node(NodeKind::Directory(BTreeMap::new()))];
    let mut directory = 0;
    for i in 0..entries {
        let id = nodes.len() as u32;
        let offset = i as u64 * 2048 + 512;
        let (name, kind) = match i % 20 {
            0 => (format!("package-{i}"), NodeKind::Directory(BTreeMap::new())),
            10 | 11 => (
                format!("libthing.so.{i}"),
                NodeKind::Symlink(b"../lib/libthing.so".to_vec()),
            ),
            _ => {
                let segments = vec![Segment {
                    logical: 0,
                    length: 1500,
                    tar_offset: offset,
                }];
                (
                    format!("module_{i}_source.py"),
                    NodeKind::File {
                        layer: 0,
                        size: 1500,
                        segments,
                    },
                )
            }
        };
        let is_directory = matches!(kind, NodeKind::Directory(_));
        let parent = if is_directory && i % 200 == 0 {
            0
        } else {
            directory
        };
        if let NodeKind::Directory(children) = &mut nodes[parent as usize].kind {
            children.insert(name.into_bytes(), id);
        }
        nodes.push(node(kind));
        if is_directory {
            directory = id;
        }
    }
    Tree {
        nodes,
        layer_tar_sizes: vec![entries as u64 * 2048 + 4096],
    }
}

fn walk(image: &Image<&Vec<u8>>) -> usize {
    let (mut seen, mut pending) = (1, vec![image.root()]);
    while let Some(directory) = pending.pop() {
        for entry in image.read_dir(directory, 0).expect("a directory") {
            let entry = entry.expect("an entry");
            if entry.name == b"." || entry.name == b".." {
                continue;
            }
            let nid = image
                .lookup(directory, entry.name)
                .expect("a lookup")
                .expect("a node");
            let inode = image.inode(nid).expect("an inode");
            seen += 1;
            if inode.kind == FileType::Directory {
                pending.push(nid);
            }
        }
    }
    seen
}
