//! From rows to trees: each layer through the tar walk, all through merge, and the result through
//! the EROFS image that a node mounts; then a listing of that image.
//!
//! ```text
//! d etc                      a directory; mode=0755 owner=0:0 go without saying
//! f etc/passwd "root"        a file with its content; mode 0644
//! l bin -> usr/bin           a symbolic link
//! c null 1:3, b disk 8:0     devices;  p pipe
//! = b a                      a further name of the file a
//! … mode=0600 owner=1:2 t=5.000000007 user.note="x"      what does not go without saying
//! ```

use crate::raw::{MTIME, Member, layer};
use clip_archive::erofs::{self, FileType, Image, Nid, Place};
use clip_archive::{RuntimeDirs, merge};
use clip_index::TarWalker;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::{env, fs, path::Path};

/// One corner case.
pub struct Row {
    name: &'static str,
    layers: Vec<Vec<u8>>,
    /// The listing, or `refused: ` and the reason.
    tree: String,
    /// What containerd, umoci and containers/storage do where it is not the same.
    #[allow(dead_code, reason = "for readers")]
    peers: &'static str,
}

/// A row of layers made of members.
pub fn row<const N: usize>(
    name: &'static str,
    layers: [Vec<Member>; N],
    tree: impl AsRef<str>,
) -> Row {
    streams(name, layers.map(layer), tree)
}

/// A row of layers given as streams.
pub fn streams<const N: usize>(
    name: &'static str,
    layers: [Vec<u8>; N],
    tree: impl AsRef<str>,
) -> Row {
    let lines: Vec<&str> = tree.as_ref().lines().map(str::trim).collect();
    Row {
        name,
        layers: layers.into(),
        tree: lines.join("\n").trim().to_owned(),
        peers: "",
    }
}

impl Row {
    /// Says where unpackers differ.
    pub fn peers(self, peers: &'static str) -> Self {
        Self { peers, ..self }
    }
}

/// Checks all rows, and names all that differ.
pub fn check(suite: &str, rows: Vec<Row>) {
    let mut wrong = String::new();
    for row in &rows {
        export(suite, row);
        let found = tree(&row.layers);
        if found != row.tree {
            let _ = write!(
                wrong,
                "\n== {suite}/{}\n-- expected\n{}\n-- found\n{found}\n",
                row.name, row.tree
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(!rows.is_empty());
}

/// What a mount of the layers shows.
pub fn tree(layers: &[Vec<u8>]) -> String {
    match mount(layers) {
        Ok(image) => Listing::of(&image, layers),
        Err(reason) => format!("refused: {reason}"),
    }
}

fn mount(layers: &[Vec<u8>]) -> Result<Vec<u8>, String> {
    let mut entries = vec![];
    for layer in layers {
        let mut walker = TarWalker::new();
        // Pieces of an odd size: no border of the stream may matter.
        for piece in layer.chunks(1000) {
            walker.push(piece).map_err(|error| error.to_string())?;
        }
        entries.push(walker.finish().map_err(|error| error.to_string())?.entries);
    }
    let sizes = layers.iter().map(|layer| layer.len() as u64).collect();
    let tree = merge(entries, sizes, RuntimeDirs::Omit).map_err(|error| error.to_string())?;
    erofs::write(&tree).map_err(|error| error.to_string())
}

struct Listing<'a> {
    image: Image<&'a [u8]>,
    layers: &'a [Vec<u8>],
    lines: Vec<String>,
    first_names: BTreeMap<Nid, String>,
}

impl<'a> Listing<'a> {
    fn of(image: &'a [u8], layers: &'a [Vec<u8>]) -> String {
        let image = Image::open(image).unwrap();
        image.verify().unwrap();
        let mut listing = Self {
            image,
            layers,
            lines: vec![],
            first_names: BTreeMap::new(),
        };
        listing.add(listing.image.root(), "");
        listing.lines.join("\n")
    }

    fn add(&mut self, nid: Nid, path: &str) {
        let inode = self.image.inode(nid).unwrap();
        let is_directory = inode.kind == FileType::Directory;
        if !is_directory && let Some(first) = self.first_names.get(&nid) {
            self.lines.push(format!("= {path} {first}"));
            return;
        }
        self.first_names.insert(nid, path.to_owned());
        let what = self.what(nid, path);
        let attributes = self.attributes(nid);
        if !path.is_empty() || !attributes.is_empty() {
            self.lines.push(what + &attributes);
        }
        if is_directory {
            let names: Vec<(Vec<u8>, Nid)> = self
                .image
                .read_dir(nid, 0)
                .unwrap()
                .map(|entry| entry.unwrap())
                .filter(|entry| entry.name != b"." && entry.name != b"..")
                .map(|entry| (entry.name.to_vec(), entry.nid))
                .collect();
            for (name, child) in names {
                let name = name.escape_ascii();
                match path {
                    "" => self.add(child, &name.to_string()),
                    _ => self.add(child, &format!("{path}/{name}")),
                }
            }
        }
    }

    fn what(&self, nid: Nid, path: &str) -> String {
        let inode = self.image.inode(nid).unwrap();
        let (major, minor) = inode.device();
        match inode.kind {
            FileType::Directory => format!("d {path}"),
            FileType::Regular => {
                let content = self.content(nid, inode.size);
                match content.len() {
                    0..=200 => format!("f {path} \"{}\"", content.escape_ascii()),
                    len => format!("f {path} {len} bytes"),
                }
            }
            FileType::Symlink => {
                let target = self.image.read_link(nid).unwrap();
                format!("l {path} -> {}", target.escape_ascii())
            }
            FileType::CharDevice => format!("c {path} {major}:{minor}"),
            FileType::BlockDevice => format!("b {path} {major}:{minor}"),
            FileType::Fifo => format!("p {path}"),
        }
    }

    fn attributes(&self, nid: Nid) -> String {
        let inode = self.image.inode(nid).unwrap();
        let mut text = String::new();
        let usual_mode = match inode.kind {
            FileType::Directory => 0o755,
            FileType::Symlink => 0o777,
            _ => 0o644,
        };
        if inode.mode & 0o7777 != usual_mode {
            let _ = write!(text, " mode={:04o}", inode.mode & 0o7777);
        }
        if (inode.uid, inode.gid) != (0, 0) {
            let _ = write!(text, " owner={}:{}", inode.uid, inode.gid);
        }
        let is_usual_time = (inode.mtime, inode.mtime_nsec) == (MTIME, 0);
        if nid != self.image.root() && !is_usual_time {
            let _ = write!(text, " t={}.{:09}", inode.mtime, inode.mtime_nsec);
        }
        for xattr in self.image.xattrs(nid).unwrap() {
            let xattr = xattr.unwrap();
            let (name, value) = (xattr.name(), xattr.value);
            let _ = write!(
                text,
                " {}=\"{}\"",
                name.escape_ascii(),
                value.escape_ascii()
            );
        }
        text
    }

    fn content(&self, nid: Nid, size: u64) -> Vec<u8> {
        let mut content = vec![];
        for extent in self.image.extents(nid, 0..size).unwrap() {
            let extent = extent.unwrap();
            let len = extent.len as usize;
            match extent.place {
                Place::Hole => content.resize(content.len() + len, 0),
                Place::Layer { index, offset } => {
                    let layer = &self.layers[usize::from(index)];
                    content.extend_from_slice(&layer[offset as usize..][..len]);
                }
            }
        }
        content
    }
}

fn export(suite: &str, row: &Row) {
    let Ok(to) = env::var("CLIP_CORNER_CASES") else {
        return;
    };
    let to = Path::new(&to).join(suite).join(row.name.replace('/', "%"));
    fs::create_dir_all(&to).unwrap();
    for (i, layer) in row.layers.iter().enumerate() {
        fs::write(to.join(format!("{i}.tar")), layer).unwrap();
    }
    fs::write(to.join("tree"), &row.tree).unwrap();
}
