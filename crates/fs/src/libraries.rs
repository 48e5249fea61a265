//! The libraries of a program, fetched as soon as somebody reads its head.
//!
//! The dynamic loader goes from a program to its libraries one after the other, and through each by page fault: the head,
//! the tables, the strings that these point to, then the next. Each step is a round trip to the registry. Whoever reads the
//! same few pages ahead knows all names at once. What is fetched so is read-ahead: it comes behind what readers wait for.

use crate::{
    elf,
    mapped::Mapped,
    resolve::{Resolved, resolve},
};
use clip_archive::erofs::{Extent, FileType, Image, Nid, Place};
use clip_cache::LayerReader;
use std::{
    collections::HashSet,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};
use tokio::{runtime::Handle, task::JoinSet};

/// Programs and libraries of one image that are looked at: more than any start has. A made-up image shall not have us look
/// for ever.
const FILES_MAX: usize = 4096;
/// Libraries that one program names itself. Large ones name a hundred.
const NAMES_MAX: usize = 512;
/// Bytes of a name, or of a list of directories, that are looked at.
const NAME_MAX: u64 = 1024;
/// Reads that are remembered until it is known where programs lie: some milliseconds.
const EARLY_MAX: usize = 64;
/// Who reads a file from its beginning may do so with the block around it.
const BLOCK: u64 = 4096;
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

/// A file that may be a program or a library, by its mode and name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// Where it begins in its layer.
    start: u64,
    nid: Nid,
    dir: Nid,
}

/// See the module. Dropped, it fetches nothing more.
#[derive(Debug)]
pub struct Libraries {
    image: Arc<Files>,
    /// Once it is known.
    programs: OnceLock<Programs>,
    /// What was read before that.
    early: Mutex<Vec<(usize, Range<u64>)>>,
    followed: Arc<Mutex<HashSet<Nid>>>,
    tasks: Mutex<JoinSet<()>>,
}

/// Where programs lie, and on what to fetch for them.
#[derive(Debug)]
struct Programs {
    /// Of each layer, by position.
    candidates: Vec<Vec<Candidate>>,
    runtime: Handle,
}

/// What the tasks look at.
#[derive(Debug)]
struct Files {
    tree: Arc<Image<Mapped>>,
    layers: Vec<LayerReader>,
}

/// A program or library, and the path of its directory.
#[derive(Debug)]
struct Linked {
    nid: Nid,
    dir: Vec<u8>,
}

impl Candidate {
    /// The file `nid` called `name` in `dir`, which begins at `start` in its layer; none if it cannot be a program.
    pub fn new(
        tree: &Image<Mapped>,
        (dir, name): (Nid, &[u8]),
        nid: Nid,
        start: u64,
    ) -> Option<Self> {
        let is_library = || name.windows(3).any(|part| part == b".so");
        let inode = tree.inode(nid).ok()?;
        let may_be = inode.size >= BLOCK && (inode.mode & 0o111 != 0 || is_library());
        may_be.then_some(Self { start, nid, dir })
    }
}

impl Libraries {
    /// Follows what is read of `layers`, which hold the files of `tree`.
    pub fn watch(tree: Arc<Image<Mapped>>, layers: &[LayerReader]) -> Arc<Self> {
        let layers = layers.to_vec();
        let libraries = Arc::new(Self {
            image: Arc::new(Files { tree, layers }),
            programs: OnceLock::new(),
            early: Mutex::default(),
            followed: Arc::default(),
            tasks: Mutex::default(),
        });
        for (at, layer) in libraries.image.layers.iter().enumerate() {
            let libraries = Arc::downgrade(&libraries);
            layer.watch(Box::new(move |bytes| {
                if let Some(libraries) = libraries.upgrade() {
                    libraries.read(at, bytes);
                }
            }));
        }
        libraries
    }

    /// Says which files of each layer are `candidates`. Libraries are fetched on `runtime` from now on, also those of
    /// programs that were read already.
    pub fn know(&self, mut candidates: Vec<Vec<Candidate>>, runtime: Handle) {
        for candidates in &mut candidates {
            candidates.sort_unstable();
            candidates.shrink_to_fit();
        }
        let early = {
            let mut early = lock(&self.early);
            // Known already: the same.
            let _ = self.programs.set(Programs {
                candidates,
                runtime,
            });
            std::mem::take(&mut *early)
        };
        for (layer, bytes) in early {
            self.read(layer, &bytes);
        }
    }

    /// Somebody reads `bytes` of a layer. If a program begins there, fetches its libraries.
    fn read(&self, layer: usize, bytes: &Range<u64>) {
        let programs = match self.programs.get() {
            Some(programs) => programs,
            None => {
                let mut early = lock(&self.early);
                let Some(programs) = self.programs.get() else {
                    if early.len() < EARLY_MAX {
                        early.push((layer, bytes.clone()));
                    }
                    return;
                };
                programs
            }
        };
        let Some(program) = programs.at(layer, bytes) else {
            return;
        };
        if !begin(&self.followed, program.nid) {
            return;
        }
        let (image, followed) = (self.image.clone(), self.followed.clone());
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(follow(image, followed, program), &programs.runtime);
    }
}

impl Programs {
    /// The file that begins where `bytes` do. The kernel reads blocks, which may begin with the end of the file before.
    fn at(&self, layer: usize, bytes: &Range<u64>) -> Option<Candidate> {
        let candidates = self.candidates.get(layer)?;
        let first_block = bytes.start..bytes.end.min(bytes.start + BLOCK);
        let at = candidates.partition_point(|file| file.start < first_block.start);
        let begins_there = |file: &Candidate| first_block.contains(&file.start);
        candidates.get(at).copied().filter(begins_there)
    }
}

/// Fetches the libraries of `program`, and theirs.
async fn follow(image: Arc<Files>, followed: Arc<Mutex<HashSet<Nid>>>, program: Candidate) {
    let mut under_way = JoinSet::new();
    let begin_with = |linked: Linked, under_way: &mut JoinSet<Vec<Linked>>| {
        let image = image.clone();
        under_way.spawn(async move { image.linked_with(&linked).await.unwrap_or_default() });
    };
    let dir = image.path_of_dir(program.dir).unwrap_or_default();
    image.bring(program.nid);
    begin_with(
        Linked {
            nid: program.nid,
            dir,
        },
        &mut under_way,
    );
    while let Some(found) = under_way.join_next().await {
        for linked in found.unwrap_or_default() {
            if begin(&followed, linked.nid) {
                // Here, so that they come in the order in which they are loaded.
                image.bring(linked.nid);
                begin_with(linked, &mut under_way);
            }
        }
    }
}

/// Whether `nid` was not followed before, and shall be.
fn begin(followed: &Mutex<HashSet<Nid>>, nid: Nid) -> bool {
    let mut followed = lock(followed);
    followed.len() < FILES_MAX && followed.insert(nid)
}

impl Files {
    /// The files that `program` is linked with itself, in the order in which they are loaded. None if it is no program, or
    /// could not be read.
    async fn linked_with(&self, program: &Linked) -> Option<Vec<Linked>> {
        let head = self.peek(program.nid, 0..elf::HEAD).await?;
        let head = elf::Head::parse(&head)?;
        let dynamic = self.peek(program.nid, head.dynamic.clone()).await?;
        let names = head.names(&dynamic)?;
        let mut linked = Vec::new();
        if let Some(interpreter) = head.interpreter.clone() {
            let path = self.string(program.nid, interpreter.start).await?;
            linked.extend(self.find(&path));
            if let Some(cache) = self.find(LOADER_CACHE) {
                self.bring(cache.nid);
            }
        }
        let mut dirs = Vec::new();
        for at in names.run_paths {
            let paths = self.string(program.nid, at).await?;
            dirs.extend(
                paths
                    .split(|&b| b == b':')
                    .map(|dir| with_origin(dir, &program.dir)),
            );
        }
        dirs.extend(DIRS.iter().map(|dir| dir.as_bytes().to_vec()));
        // Of libraries that their loader finds by what it was told elsewhere.
        dirs.push(program.dir.clone());
        for at in names.needed.into_iter().take(NAMES_MAX) {
            let name = self.string(program.nid, at).await?;
            linked.extend(match name.contains(&b'/') {
                true => self.find(&with_origin(&name, &program.dir)),
                false => dirs
                    .iter()
                    .find_map(|dir| self.find(&[dir, &b"/"[..], &name].concat())),
            });
        }
        Some(linked)
    }

    fn find(&self, path: &[u8]) -> Option<Linked> {
        let Ok(Resolved::Found(inode)) = resolve(&self.tree, path, true) else {
            return None;
        };
        // A link's own directory would do as well as its target's: libraries lie beside their links.
        let dir = path.rsplitn(2, |&b| b == b'/').nth(1).unwrap_or_default();
        (inode.kind == FileType::Regular).then(|| Linked {
            nid: inode.nid,
            dir: dir.to_vec(),
        })
    }

    /// Fetches all of a short file.
    fn bring(&self, file: Nid) {
        for (layer, bytes) in self.places(file, 0..u64::MAX) {
            layer.bring(bytes);
        }
    }

    /// These bytes of `file`, as far as it has them. None when they cannot be had.
    async fn peek(&self, file: Nid, bytes: Range<u64>) -> Option<Vec<u8>> {
        let mut found = Vec::new();
        for (layer, bytes) in self.places(file, bytes) {
            let at = found.len();
            found.resize(at + (bytes.end - bytes.start) as usize, 0);
            if !layer.peek(bytes.start, &mut found[at..]).await.ok()? {
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

    /// Where these bytes of `file` lie. Nothing of a file with holes: no program has any.
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
        let places: Option<Vec<_>> = extents.map(|extent| place(extent.ok()?)).collect();
        places.unwrap_or_default()
    }

    /// The path of a directory, by way of its parents.
    fn path_of_dir(&self, mut dir: Nid) -> Option<Vec<u8>> {
        let mut names = Vec::new();
        while dir != self.tree.root() {
            let parent = self.tree.lookup(dir, b"..").ok()??;
            let mut entries = self.tree.read_dir(parent, 0).ok()?.flatten();
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

/// `path` with `dir` in the place of `$ORIGIN`.
fn with_origin(path: &[u8], dir: &[u8]) -> Vec<u8> {
    let rest = [&b"$ORIGIN"[..], b"${ORIGIN}"]
        .into_iter()
        .find_map(|word| path.strip_prefix(word));
    rest.map_or_else(|| path.to_vec(), |rest| [dir, rest].concat())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
