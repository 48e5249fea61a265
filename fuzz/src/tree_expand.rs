//! Layers laid over each other, written as EROFS, read back and compared; and the EROFS reader on arbitrary bytes.
//!
//! The first byte chooses: even, the rest are instructions that make entries; odd, the rest lies behind a superblock.

use crate::{erofs_walk, framing, input::Input};
use clip_archive::{
    Archive, Entry, EntryKind, RuntimeDirs, Segment, Xattr, columns, erofs, limits,
    tree::{Attributes, TreeBuilder},
};

/// The target.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    match input.byte() % 2 {
        0 => expand(&mut input),
        _ => erofs_walk::exercise(&behind_a_superblock(&mut input)),
    }
}

fn expand(input: &mut Input<'_>) {
    let runtime_dirs = match input.byte() % 2 {
        0 => RuntimeDirs::Omit,
        _ => RuntimeDirs::Empty,
    };
    let tar_sizes: Vec<u64> = (0..1 + input.byte() % 4)
        .map(|_| input.number() & !511)
        .collect();
    let mut layers = vec![Vec::new(); tar_sizes.len()];
    while !input.is_empty() {
        let layer = usize::from(input.byte()) % layers.len();
        layers[layer].push(entry(input));
    }
    // Through an archive, because opening one is what refuses impossible entries.
    let raw_layers: Vec<_> = layers
        .iter()
        .zip(&tar_sizes)
        .map(|(entries, &tar_size)| framing::RawLayer {
            tar_size,
            entries: columns::encode_entries(entries),
            ..Default::default()
        })
        .collect();
    let file = framing::archive(&raw_layers, runtime_dirs, |_| {});
    let Ok(tree) = Archive::open(file).and_then(|archive| archive.merge()) else {
        return;
    };
    if let Ok(image) = erofs::write(&tree) {
        erofs_walk::assert_shows(&image, &tree);
    }
}

fn entry(input: &mut Input<'_>) -> Entry {
    let kind = input.byte();
    let path = path(input, false);
    let kind = match kind % 16 {
        0..4 => EntryKind::Directory,
        4..7 => file(input),
        7 | 8 => EntryKind::Symlink {
            target: path_or(input, b"/"),
        },
        9 | 10 => EntryKind::Hardlink {
            target: self::path(input, false),
        },
        11 => EntryKind::CharDevice {
            major: input.number() as u32,
            minor: input.number() as u32,
        },
        12 => EntryKind::BlockDevice {
            major: input.number() as u32,
            minor: input.number() as u32,
        },
        13 => EntryKind::Fifo,
        14 => EntryKind::Whiteout,
        _ => EntryKind::Opaque,
    };
    let flags = input.byte();
    let (mut mode, mut owner, mut mtime) = (0o644, 0, 0);
    if flags & 1 != 0 {
        (mode, owner, mtime) = (
            input.short() & 0o7777,
            input.number() as u32,
            input.number() as i64,
        );
    }
    let xattrs = match flags & 6 {
        6 => (0..input.byte() % 8).map(|_| xattr(input)).collect(),
        _ => vec![],
    };
    Entry {
        path,
        kind,
        mode,
        uid: owner,
        gid: owner.rotate_left(7),
        mtime,
        mtime_nsec: mtime.unsigned_abs() as u32 % 1_000_000_000,
        xattrs,
    }
}

fn file(input: &mut Input<'_>) -> EntryKind {
    let size = input.number();
    let count = match input.byte() {
        one @ 0..0x80 => usize::from(one & 1),
        many => usize::from(many & 15),
    };
    let (mut logical, mut tar_offset) = (0u64, 512u64);
    let segments = (0..count).map(|_| {
        logical = logical.wrapping_add(input.number() << 9);
        let length = input.number();
        let segment = Segment {
            logical,
            length: if length == 0 { size } else { length },
            tar_offset,
        };
        logical = logical.wrapping_add(segment.length.next_multiple_of_512());
        tar_offset = tar_offset.wrapping_add(segment.length.next_multiple_of_512());
        segment
    });
    EntryKind::File {
        size,
        segments: segments.collect(),
    }
}

trait Blocks {
    fn next_multiple_of_512(self) -> u64;
}

impl Blocks for u64 {
    fn next_multiple_of_512(self) -> u64 {
        self.checked_next_multiple_of(512).unwrap_or(self)
    }
}

fn xattr(input: &mut Input<'_>) -> Xattr {
    const NAMES: [&[u8]; 8] = [
        b"user.a",
        b"user.b",
        b"security.capability",
        b"system.posix_acl_access",
        b"trusted.overlay.opaque",
        b"com.apple.provenance",
        b"",
        b"user.",
    ];
    let name = NAMES[usize::from(input.byte() % 8)].to_vec();
    let len = input.number() as usize & 0x1ffff;
    Xattr {
        name,
        value: vec![b'v'; len],
    }
}

/// Few names, so that entries meet; one as long as names get, one that is no UTF-8.
fn path(input: &mut Input<'_>, dots: bool) -> Vec<u8> {
    let names: [&[u8]; 10] = [
        b"a",
        b"b",
        b"lib",
        b"usr",
        b"c",
        b"dev",
        &[b'n'; 255],
        b"\xff\n",
        b".",
        b"..",
    ];
    let count = if dots { names.len() } else { 8 };
    let depth = match input.byte() {
        deep @ 0xf0.. => 64 * usize::from(deep & 15),
        shallow => usize::from(shallow % 5),
    };
    let mut path = Vec::new();
    let repeated = input.byte();
    for level in 0..depth {
        let choice = if depth > 8 { repeated } else { input.byte() };
        if level > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(names[usize::from(choice) % count]);
        if path.len() > limits::PATH_BYTES_MAX + 10 {
            break;
        }
    }
    path
}

/// A link's target: relative, absolute, with dots.
fn path_or(input: &mut Input<'_>, root: &[u8]) -> Vec<u8> {
    let absolute = input.byte().is_multiple_of(4);
    let path = path(input, true);
    match absolute {
        true => [root, &path].concat(),
        false => path,
    }
}

/// An empty image whose parts behind the superblock are replaced; some fields of the superblock, too, its checksum made
/// right again.
fn behind_a_superblock(input: &mut Input<'_>) -> Vec<u8> {
    let root = Attributes {
        mode: 0o755,
        ..Attributes::default()
    };
    let tree = TreeBuilder::new(root).finish(vec![1 << 20]);
    let mut image = erofs::write(&tree).expect("an empty tree can be written");
    for _ in 0..input.byte() % 8 {
        let at = 1024 + usize::from(input.byte() % 128);
        image[at] = input.byte();
    }
    // Behind the device slot, or over it, too.
    let at = if input.byte().is_multiple_of(4) {
        1152
    } else {
        1280
    };
    let noise = input.rest();
    image.resize(image.len().max(at + noise.len()), 0);
    image[at..at + noise.len()].copy_from_slice(noise);
    image[1028..1032].fill(0);
    let checksum = !crc32c::crc32c(&image[1024..1536]);
    image[1028..1032].copy_from_slice(&checksum.to_le_bytes());
    image
}
