//! What a reader sees of a tree, in a form in which readers can be compared.

use crate::trees::{NodeKind, Tree};
use clip_archive::Segment;
use clip_archive::erofs::FileType;
use clip_archive::tree::NodeId;
use std::collections::BTreeMap;
use std::ops::Range;

/// All paths of a tree ("" is the root) with what is there.
pub type View = BTreeMap<Vec<u8>, Seen>;

/// Everything that can be seen of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub kind: FileType,
    pub mode: u16,
    pub owner: (u32, u32),
    pub mtime: (i64, u32),
    pub nlink: u32,
    /// The first path of the same inode.
    pub same_as: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub detail: Detail,
}

/// What depends on the type.
#[derive(Clone, PartialEq, Eq)]
pub enum Detail {
    /// Size, and the bytes of [`windows`].
    File(u64, Vec<Vec<u8>>),
    Link(Vec<u8>),
    Device(u32, u32),
    Nothing,
}

/// Content as its checksum: a failed comparison must stay readable.
impl std::fmt::Debug for Detail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(size, content) => write!(
                f,
                "File({size} bytes, {:08x})",
                crc32c::crc32c(&content.concat())
            ),
            Self::Link(target) => write!(f, "Link({})", String::from_utf8_lossy(target)),
            Self::Device(major, minor) => write!(f, "Device({major}, {minor})"),
            Self::Nothing => f.write_str("Nothing"),
        }
    }
}

/// The parts of a file that are compared: all of a small one, samples of a large one.
pub fn windows(size: u64) -> Vec<Range<u64>> {
    const SAMPLE: u64 = 5000;
    let (starts, len) = match size {
        0 => (vec![], 0),
        1..=1_000_000 => (vec![0], size),
        _ => (vec![0, size / 2, (1 << 30) - 100, size - SAMPLE], SAMPLE),
    };
    let windows = starts.into_iter().map(|start| start..start + len);
    windows.filter(|window| window.end <= size).collect()
}

/// The bytes of a layer's tar: a pattern, but zeros in the middle of every GiB, so that large
/// layers can be sparse files on disk.
pub fn layer_bytes(layer: usize, range: Range<u64>) -> Vec<u8> {
    range
        .map(|offset| {
            if is_zero(offset) {
                0
            } else {
                pattern(layer, offset)
            }
        })
        .collect()
}

/// The ranges in which [`layer_bytes`] is not zero.
pub fn layer_data(size: u64) -> impl Iterator<Item = Range<u64>> {
    let runs = (0..=size >> 30).flat_map(|gib| {
        let (start, end) = (gib << 30, (gib + 1) << 30);
        [start..start + (1 << 20), end - (1 << 20)..end]
    });
    runs.map(move |run| run.start..run.end.min(size))
        .filter(|run| run.start < run.end)
}

fn is_zero(offset: u64) -> bool {
    (1 << 20..(1 << 30) - (1 << 20)).contains(&(offset % (1 << 30)))
}

fn pattern(layer: usize, offset: u64) -> u8 {
    (offset / 512 * 37 + offset + layer as u64 * 101) as u8 | 1
}

/// What a reader should see of `tree`.
pub fn expected(tree: &Tree) -> View {
    let mut view = View::new();
    let mut pending = vec![(Vec::new(), 0)];
    while let Some((path, id)) = pending.pop() {
        let node = &tree.nodes[id as usize];
        let mut nlink = 0; // of a directory; other nodes' names are counted below
        let (kind, detail) = match &node.kind {
            NodeKind::Directory(children) => {
                let is_directory =
                    |id: &&NodeId| matches!(tree.nodes[**id as usize].kind, NodeKind::Directory(_));
                nlink = 2 + children.values().filter(is_directory).count() as u32;
                for (name, &child) in children {
                    pending.push((join(&path, name), child));
                }
                (FileType::Directory, Detail::Nothing)
            }
            NodeKind::File {
                layer,
                size,
                segments,
            } => {
                let windows = windows(*size).into_iter();
                let content = windows
                    .map(|window| content(*layer, segments, window))
                    .collect();
                (FileType::Regular, Detail::File(*size, content))
            }
            NodeKind::Symlink(target) => (FileType::Symlink, Detail::Link(target.clone())),
            NodeKind::CharDevice { major, minor } => {
                (FileType::CharDevice, Detail::Device(*major, *minor))
            }
            NodeKind::BlockDevice { major, minor } => {
                (FileType::BlockDevice, Detail::Device(*major, *minor))
            }
            NodeKind::Fifo => (FileType::Fifo, Detail::Nothing),
        };
        let xattrs = node
            .xattrs
            .iter()
            .map(|x| (x.name.clone(), x.value.clone()))
            .collect();
        let seen = Seen {
            kind,
            mode: node.mode,
            owner: (node.uid, node.gid),
            mtime: (node.mtime, node.mtime_nsec),
            nlink,
            same_as: id.to_string().into_bytes(), // `name_inodes` turns it into a path
            xattrs,
            detail,
        };
        view.insert(path, seen);
    }
    let mut view = name_inodes(view);
    let mut names = BTreeMap::<Vec<u8>, u32>::new();
    view.values()
        .for_each(|seen| *names.entry(seen.same_as.clone()).or_default() += 1);
    for seen in view
        .values_mut()
        .filter(|seen| seen.kind != FileType::Directory)
    {
        seen.nlink = names[&seen.same_as];
    }
    view
}

/// Replaces each inode's number in `same_as` by its first path.
pub fn name_inodes(mut view: View) -> View {
    let mut first = BTreeMap::<Vec<u8>, Vec<u8>>::new();
    for (path, seen) in &mut view {
        let inode = std::mem::take(&mut seen.same_as);
        seen.same_as = first.entry(inode).or_insert_with(|| path.clone()).clone();
    }
    view
}

/// A file's bytes, from the tree's segments.
fn content(layer: u16, segments: &[Segment], window: Range<u64>) -> Vec<u8> {
    let mut bytes = vec![0; (window.end - window.start) as usize];
    for segment in segments {
        let start = segment.logical.max(window.start);
        let end = (segment.logical + segment.length).min(window.end);
        if start < end {
            let tar = segment.tar_offset + (start - segment.logical);
            bytes[(start - window.start) as usize..(end - window.start) as usize]
                .copy_from_slice(&layer_bytes(layer.into(), tar..tar + (end - start)));
        }
    }
    bytes
}

/// `directory`/`name`, without a leading slash.
pub fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    match directory.is_empty() {
        true => name.to_vec(),
        false => [directory, b"/", name].concat(),
    }
}

/// Fails with the first difference, for whole views are too long to print.
#[track_caller]
pub fn assert_same(judge: &str, seen: &View, expected: &View) {
    for (path, expected) in expected {
        let name = path.escape_ascii();
        assert_eq!(
            seen.get(path),
            Some(expected),
            "{judge} sees \"{name}\" differently"
        );
    }
    let more = seen.keys().find(|path| !expected.contains_key(*path));
    assert_eq!(more, None, "{judge} sees a path that is not there");
}
