//! Everything that a directory tree shows, file by file, and how two trees differ.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

/// Files by path, relative to the root, which is `.`.
pub type Tree = BTreeMap<PathBuf, Found>;

/// What one file shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// `d`, `-`, `l`, `c`, `b`, `p` or `s`, as ls(1) writes it.
    pub kind: char,
    /// The permission bits, set-user-ID and the like included.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Last change of the content, seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Names of the file; for a directory, 2 and one for each directory in it.
    pub links: u64,
    /// Size in bytes; 0 for directories, whose size is the filesystem's own business.
    pub size: u64,
    /// Device number; 0 for all but device nodes.
    pub device: u64,
    /// Target of a symbolic link.
    pub target: Option<PathBuf>,
    /// Extended attributes.
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// Digest of the content of a regular file.
    pub content: Option<String>,
    /// The first path of the same file.
    pub first_name: PathBuf,
}

/// Looks at everything below `root`, content included.
pub fn look(root: &Path) -> Result<Tree> {
    let mut tree = Tree::new();
    let mut first_names = BTreeMap::new();
    let mut to_visit = vec![PathBuf::from(".")];
    while let Some(path) = to_visit.pop() {
        let full = root.join(&path);
        let found =
            look_at(&full, &path).with_context(|| format!("looking at {}", full.display()))?;
        if found.kind == 'd' {
            for entry in std::fs::read_dir(&full)? {
                to_visit.push(match path.as_os_str() == "." {
                    true => PathBuf::from(entry?.file_name()),
                    false => path.join(entry?.file_name()),
                });
            }
        }
        tree.insert(path, found);
    }
    for (path, found) in &mut tree {
        if found.kind != 'd' {
            let metadata = root.join(path).symlink_metadata()?;
            found.first_name = first_names
                .entry((metadata.dev(), metadata.ino()))
                .or_insert_with(|| path.clone())
                .clone();
        }
    }
    Ok(tree)
}

/// Without what lies at or below `dir`, a directory in the root. As a directory less is there, the root has one link
/// less, too.
pub fn without_top_dir(tree: &mut Tree, dir: &str) {
    let was_there = tree.get(Path::new(dir)).map(|found| found.kind) == Some('d');
    tree.retain(|path, _| !path.starts_with(dir));
    if let Some(root) = tree.get_mut(Path::new(".")).filter(|_| was_there) {
        root.links -= 1;
    }
}

/// One line per difference; empty if there is none.
pub fn differences(ours: &Tree, theirs: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    for path in ours.keys().filter(|path| !theirs.contains_key(*path)) {
        lines.push(format!("{path:?}: should not be there"));
    }
    for (path, theirs) in theirs {
        let Some(ours) = ours.get(path) else {
            lines.push(format!("{path:?}: is missing"));
            continue;
        };
        let (ours, theirs) = (fields(ours), fields(theirs));
        for ((name, ours), (_, theirs)) in ours.into_iter().zip(theirs) {
            if ours != theirs {
                lines.push(format!("{path:?}: {name} is {ours}, should be {theirs}"));
            }
        }
    }
    lines
}

fn fields(found: &Found) -> [(&'static str, String); 11] {
    [
        ("type", found.kind.to_string()),
        ("mode", format!("{:04o}", found.mode)),
        ("owner", format!("{:?}", found.owner)),
        ("mtime", format!("{:?}", found.mtime)),
        ("link count", found.links.to_string()),
        ("size", found.size.to_string()),
        ("device", format!("{:#x}", found.device)),
        ("target", format!("{:?}", found.target)),
        ("xattrs", format!("{:?}", found.xattrs)),
        ("content", format!("{:?}", found.content)),
        ("first name", format!("{:?}", found.first_name)),
    ]
}

fn look_at(full: &Path, path: &Path) -> Result<Found> {
    let metadata = full.symlink_metadata()?;
    let file_type = metadata.file_type();
    let kind = match file_type {
        t if t.is_dir() => 'd',
        t if t.is_symlink() => 'l',
        t if t.is_char_device() => 'c',
        t if t.is_block_device() => 'b',
        t if t.is_fifo() => 'p',
        t if t.is_socket() => 's',
        _ => '-',
    };
    Ok(Found {
        kind,
        mode: metadata.mode() & 0o7777,
        owner: (metadata.uid(), metadata.gid()),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        links: metadata.nlink(),
        size: if kind == 'd' { 0 } else { metadata.size() },
        device: if matches!(kind, 'b' | 'c') {
            metadata.rdev()
        } else {
            0
        },
        target: (kind == 'l').then(|| full.read_link()).transpose()?,
        xattrs: xattrs_of(full)?,
        content: (kind == '-').then(|| content_digest(full)).transpose()?,
        first_name: path.to_owned(),
    })
}

fn xattrs_of(path: &Path) -> io::Result<BTreeMap<OsString, Vec<u8>>> {
    let names = match xattr::list(path) {
        // A filesystem that says it has none, as FUSE servers may say once for all files.
        Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => {
            return Ok(BTreeMap::new());
        }
        names => names?,
    };
    names
        .map(|name| Ok((name.clone(), xattr::get(path, &name)?.unwrap_or_default())))
        .collect()
}

fn content_digest(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut file = File::open(path)?;
    let mut buf = vec![0; 256 << 10];
    loop {
        match io::Read::read(&mut file, &mut buf)? {
            0 => return Ok(hex::encode(hasher.finalize())),
            len => hasher.update(&buf[..len]),
        }
    }
}
