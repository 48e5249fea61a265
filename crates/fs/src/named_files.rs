//! Files of an image that name others which are read next: programs, libraries, scripts, descriptions of packages.

use crate::{
    elf,
    mapped::Mapped,
    package::{self, Package},
    resolve::{Resolved, walk},
};
use clip_archive::erofs::{Extent, FileType, Image, Nid, Place};
use clip_cache::LayerReader;
use std::{
    ops::Range,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// Files that one names itself. Large programs name a hundred libraries.
const NAMES_MAX: usize = 512;
/// Bytes of a name, or of a list of directories, that are looked at.
const NAME_MAX: u64 = 1024;
/// Where the loaders of glibc and musl look without being told, with what `/etc/ld.so.conf` usually adds.
const DIRS: [&str; 9] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
    "/usr/local/lib",
];
/// What glibc's loader reads before any library.
const LOADER_CACHE: &[u8] = b"/etc/ld.so.cache";
/// What is read before a program runs: the runtime looks up its user, the loader its libraries.
const BEFORE_ALL: [&[u8]; 3] = [LOADER_CACHE, b"/etc/passwd", b"/etc/group"];
/// Paths that are looked up for one mount, all in all. A start with hundreds of libraries or packages has some thousands; a
/// made-up image shall not keep a processor busy.
const LOOKUPS_MAX: u64 = 8 << 10;
/// Directories that are looked in for one name: ten times what is usual.
const DIRS_MAX: usize = 64;
/// Pieces of a file that is looked at. Files have one; only made-up archives cut them up.
const PIECES_MAX: usize = 16;
/// Entries of a directory that are looked at to find another's name.
const SIBLINGS_MAX: usize = 64 << 10;
/// Longer paths are not looked up. The kernel allows four times as much.
const PATH_MAX: usize = 1024;
/// Of a program that is about to run so many bytes are fetched at once. Programs in Go and interpreters are not much longer.
const MUCH: u64 = 8 << 20;
/// In pieces of this many bytes, which are short files when compressed.
const PIECE: usize = 1 << 20;
/// Compressed bytes that are fetched so for one mount, all in all: a made-up image shall not have itself downloaded.
const BYTES_MAX: u64 = 64 << 20;
/// How a script says which program runs it (execve(2)).
const SCRIPT: &[u8] = b"#!";

/// The files of an image, and where their content is.
#[derive(Debug)]
pub struct NamedFiles {
    tree: Arc<Image<Mapped>>,
    layers: Vec<LayerReader>,
    /// Directories where the words of a command are looked for, once they are known.
    path: OnceLock<Vec<Vec<u8>>>,
    /// Compressed bytes that may still be fetched.
    bytes_left: AtomicU64,
    /// Paths that may still be looked up.
    lookups_left: AtomicU64,
}

/// A file that was named, and the path of its directory.
#[derive(Debug)]
pub struct Named {
    pub nid: Nid,
    pub dir: Vec<u8>,
    /// Whether it is certain to be run, not only read.
    pub is_run: bool,
}

impl NamedFiles {
    /// Files of `tree`, whose content is in `layers`.
    pub fn new(tree: Arc<Image<Mapped>>, layers: Vec<LayerReader>) -> Self {
        Self {
            tree,
            layers,
            path: OnceLock::new(),
            bytes_left: AtomicU64::new(BYTES_MAX),
            lookups_left: AtomicU64::new(LOOKUPS_MAX),
        }
    }

    /// The layers.
    pub fn layers(&self) -> &[LayerReader] {
        &self.layers
    }

    /// Looks for the words of commands in these directories from now on. The first ones stay.
    pub fn look_in(&self, mut path: Vec<Vec<u8>>) {
        path.truncate(DIRS_MAX);
        // The same each time.
        let _ = self.path.set(path);
    }

    /// The files that `file` names, in the order in which they are wanted: libraries, what runs a script, packages. What
    /// else of it is read before long is fetched ahead. None if it is no such file, or could not be read.
    pub async fn named_by(&self, file: &Named) -> Option<Vec<Named>> {
        let head = self.peek(file.nid, 0..elf::HEAD).await?;
        if file.is_run
            && let Some(rest) = head.strip_prefix(SCRIPT)
        {
            let line = rest.split(|&b| b == b'\n').next()?;
            return Some(self.named(line));
        }
        if head.starts_with(b"{") {
            return self.named_by_package(file).await;
        }
        self.named_by_program(file, elf::Head::parse(&head)?).await
    }

    /// The interpreter of `program`, which has this `head`, and its libraries. Tables that the loader reads are fetched ahead.
    async fn named_by_program(&self, program: &Named, head: elf::Head) -> Option<Vec<Named>> {
        if head.sections_end >= self.tree.inode(program.nid).ok()?.size {
            for (layer, used) in self.places(program.nid, head.mapped.clone()) {
                layer.shorten_file(&used);
            }
        }
        let mut linked = Vec::new();
        if let Some(interpreter) = head.interpreter.clone() {
            let path = self.string(program.nid, interpreter.start).await?;
            linked.extend(self.find(&path));
            let beside = linked.iter().map(|linked| linked.nid);
            let cache = self.find(LOADER_CACHE).map(|cache| cache.nid);
            beside.chain(cache).for_each(|file| self.bring_whole(file));
        }
        for bytes in &head.begins_with {
            self.bring(program.nid, bytes.clone());
        }
        let Some(section) = head.dynamic.clone() else {
            return Some(linked);
        };
        let dynamic = head.dynamic(&self.peek(program.nid, section).await?)?;
        for bytes in dynamic.tables {
            self.bring(program.nid, bytes);
        }
        let mut dirs = Vec::new();
        // There is one, or in old programs another of the other kind.
        for at in dynamic.run_paths.into_iter().take(2) {
            let paths = self.string(program.nid, at).await?;
            dirs.extend(
                paths
                    .split(|&b| b == b':')
                    .map(|dir| with_origin(dir, &program.dir)),
            );
        }
        dirs.truncate(DIRS_MAX);
        dirs.extend(DIRS.iter().map(|dir| dir.as_bytes().to_vec()));
        // Of libraries that their loader finds by what it was told elsewhere.
        dirs.push(program.dir.clone());
        for at in dynamic.needed.into_iter().take(NAMES_MAX) {
            let name = self.string(program.nid, at).await?;
            linked.extend(match name.contains(&b'/') {
                true => self.find(&with_origin(&name, &program.dir)),
                false => self.find_in(&name, &dirs),
            });
        }
        Some(linked)
    }

    /// The descriptions of the packages that `package` depends on, if others depend on it: what an application itself names
    /// is more than any start of it needs. The file that it begins with is fetched ahead.
    async fn named_by_package(&self, package: &Named) -> Option<Vec<Named>> {
        if !package::is_dependency(&package.dir) {
            return None;
        }
        let described = self.peek(package.nid, 0..package::LEN_MAX).await?;
        let described = Package::parse(&described)?;
        let main = described.main.trim_start_matches("./");
        let in_package =
            |name: &str| self.find(&[&package.dir, &b"/"[..], name.as_bytes()].concat());
        let main = ["", ".js", "/index.js"]
            .iter()
            .find_map(|ending| in_package(&format!("{main}{ending}")));
        if let Some(main) = main {
            self.bring_whole(main.nid);
        }
        let dependencies = described.dependencies.iter().take(NAMES_MAX);
        let find = |name: &String| {
            let places = package::places_of(&package.dir, name);
            let mut places = places.take(DIRS_MAX).take_while(|_| !self.is_spent());
            places.find_map(|place| self.find(&[&place, &b"/"[..], package::FILE].concat()))
        };
        Some(dependencies.filter_map(find).collect())
    }

    /// The files that will be run when `line` is: its words name them, by path or in one of the directories where they are
    /// looked for. Options name none.
    pub fn named(&self, line: &[u8]) -> Vec<Named> {
        let words = line.split(u8::is_ascii_whitespace);
        let words = words.filter(|word| !word.is_empty() && !word.starts_with(b"-"));
        let dirs = self.path.get().map_or(&[][..], Vec::as_slice);
        let find = |word: &[u8]| match word.starts_with(b"/") {
            true => self.find(word),
            false => self.find_in(word, dirs),
        };
        let run = words.take(NAMES_MAX).filter_map(find);
        run.map(|file| Named {
            is_run: true,
            ..file
        })
        .collect()
    }

    fn find_in(&self, name: &[u8], dirs: &[Vec<u8>]) -> Option<Named> {
        let mut dirs = dirs.iter().take_while(|_| !self.is_spent());
        dirs.find_map(|dir| self.find(&[dir, &b"/"[..], name].concat()))
    }

    fn find(&self, path: &[u8]) -> Option<Named> {
        if path.len() > PATH_MAX || !spend(&self.lookups_left, 1) {
            return None;
        }
        let Ok((Resolved::Found(inode), path)) = walk(&self.tree, path, true) else {
            return None;
        };
        // Programs look beside themselves, not beside links to them; so does Node.js.
        let dir = path.rsplitn(2, |&b| b == b'/').nth(1).unwrap_or_default();
        (inode.kind == FileType::Regular).then(|| Named {
            nid: inode.nid,
            dir: dir.to_vec(),
            is_run: false,
        })
    }

    /// Whether the beginning of `file` is not here.
    pub fn is_missing(&self, file: Nid) -> bool {
        let head = self.places(file, 0..elf::HEAD);
        let mut missing = head.iter().map(|(layer, bytes)| layer.missing_bytes(bytes));
        missing.any(|missing| missing > 0)
    }

    /// Whether nothing will be looked up any more.
    fn is_spent(&self) -> bool {
        self.lookups_left.load(Relaxed) == 0
    }

    /// Fetches what is read before any program runs.
    pub fn bring_before_all(&self) {
        let files = BEFORE_ALL.into_iter().filter_map(|path| self.find(path));
        files.for_each(|file| self.bring_whole(file.nid));
    }

    /// Fetches the beginning of a file that is certain to be run, even if it is long.
    pub fn bring_much(&self, file: Nid) {
        for start in (0..MUCH).step_by(PIECE) {
            self.bring(file, start..start + PIECE as u64);
        }
    }

    /// Fetches all of a short file.
    pub fn bring_whole(&self, file: Nid) {
        self.bring(file, 0..u64::MAX);
    }

    /// Fetches these bytes of `file`, as far as it has them, unless they are more than a short file.
    fn bring(&self, file: Nid, bytes: Range<u64>) {
        for (layer, bytes) in self.places(file, bytes) {
            layer.bring(bytes, |missing| spend(&self.bytes_left, missing));
        }
    }

    /// These bytes of `file`, as far as it has them. None when they cannot be had.
    async fn peek(&self, file: Nid, bytes: Range<u64>) -> Option<Vec<u8>> {
        let mut found = Vec::new();
        for (layer, bytes) in self.places(file, bytes) {
            let at = found.len();
            found.resize(at + (bytes.end - bytes.start) as usize, 0);
            let is_here = spend(&self.bytes_left, layer.missing_bytes(&bytes))
                && layer.peek(bytes.start, &mut found[at..]).await.ok()?;
            if !is_here {
                return None;
            }
        }
        Some(found)
    }

    /// The string of `file` at `at`, without the zero that ends it; of a long one its beginning.
    async fn string(&self, file: Nid, at: u64) -> Option<Vec<u8>> {
        let mut bytes = self.peek(file, at..at.saturating_add(NAME_MAX)).await?;
        bytes.truncate(bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len()));
        Some(bytes)
    }

    /// Where these bytes of `file` lie, as far as it has them. Nothing of a file with holes or in many pieces: no program
    /// is so.
    fn places(&self, file: Nid, bytes: Range<u64>) -> Vec<(&LayerReader, Range<u64>)> {
        let place = |extent: Extent| match extent.place {
            Place::Layer { index, offset } => {
                let layer = self.layers.get(usize::from(index))?;
                let bytes = offset..offset.checked_add(extent.len)?;
                (bytes.end <= layer.size()).then_some((layer, bytes))
            }
            Place::Hole => None,
        };
        let extents = self.tree.extents(file, bytes).into_iter().flatten();
        let places = extents
            .take(PIECES_MAX + 1)
            .map(|extent| place(extent.ok()?));
        let places: Option<Vec<_>> = places.collect();
        let few = places.filter(|places| places.len() <= PIECES_MAX);
        few.unwrap_or_default()
    }

    /// The path of a directory, by way of its parents.
    pub fn path_of_dir(&self, mut dir: Nid) -> Option<Vec<u8>> {
        let mut names = Vec::new();
        while dir != self.tree.root() {
            let parent = self.tree.lookup(dir, b"..").ok()??;
            let entries = self.tree.read_dir(parent, 0).ok()?.flatten();
            let mut entries = entries.take(SIBLINGS_MAX);
            names.push(
                entries
                    .find(|entry| entry.nid == dir && entry.name != b".")?
                    .name,
            );
            dir = parent;
        }
        let absolute = names.iter().rev().flat_map(|name| [b"/", *name]);
        Some(absolute.collect::<Vec<_>>().concat())
    }
}

/// Takes `amount` of what is `left`, if there is so much.
fn spend(left: &AtomicU64, amount: u64) -> bool {
    let rest = |left: u64| left.checked_sub(amount);
    left.fetch_update(Relaxed, Relaxed, rest).is_ok()
}

/// `path` with `dir` in the place of `$ORIGIN`.
fn with_origin(path: &[u8], dir: &[u8]) -> Vec<u8> {
    let rest = [&b"$ORIGIN"[..], b"${ORIGIN}"]
        .into_iter()
        .find_map(|word| path.strip_prefix(word));
    rest.map_or_else(|| path.to_vec(), |rest| [dir, rest].concat())
}
