//! How long it takes to write and to read an EROFS image of a large tree.
//!
//! `cargo run --release -p clip-archive --example erofs_write [entries]`

use clip_archive::erofs::{FileType, Image, write};
use clip_archive::tree::{Attributes, Node, NodeKind, TreeBuilder};
use clip_archive::{Segment, Tree};
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
    let attributes = Attributes {
        mode: 0o644,
        mtime: 1,
        mtime_nsec: 2,
        ..Attributes::default()
    };
    let mut tree = TreeBuilder::new(attributes);
    let mut directory = 0;
    for i in 0..entries {
        let segments = [Segment {
            logical: 0,
            length: 1500,
            tar_offset: i as u64 * 2048 + 512,
        }];
        let (name, kind) = match i % 20 {
            0 => (format!("package-{i}"), NodeKind::Directory),
            10 | 11 => (
                format!("libthing.so.{i}"),
                NodeKind::Symlink(b"../lib/libthing.so"),
            ),
            _ => {
                let kind = NodeKind::File {
                    layer: 0,
                    size: 1500,
                    segments: &segments,
                };
                (format!("module_{i}_source.py"), kind)
            }
        };
        let node = Node {
            kind,
            attributes,
            xattrs: &[],
        };
        let parent = if i % 200 == 0 { 0 } else { directory };
        let id = tree.add(parent, name.as_bytes(), &node);
        if node.kind == NodeKind::Directory {
            directory = id;
        }
    }
    tree.finish(vec![entries as u64 * 2048 + 4096])
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
