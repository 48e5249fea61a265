//! What will be read next because something that was read, or will be run, says so.
//!
//! The dynamic loader goes from a program to its libraries one after the other, and through each by page fault: the head,
//! the tables, the strings that these point to, then the next. Node.js does the same with packages. Each step is a round
//! trip to the registry. Whoever reads the same few pages ahead knows all names at once. What is fetched so is read-ahead:
//! it comes behind what readers wait for.

use crate::{
    mapped::Mapped,
    named_files::{Named, NamedFiles},
    package,
};
use clip_archive::erofs::{Image, Nid};
use clip_cache::LayerReader;
use std::{
    collections::HashSet,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};
use tokio::{runtime::Handle, task::JoinSet};

/// Files of one image that are looked at: more than any start has. A made-up image shall not have us look for ever.
const FILES_MAX: usize = 4096;
/// Reads that are remembered until it is known where such files lie: some milliseconds.
const EARLY_MAX: usize = 64;
/// Files that begin in one block. A tar has no more.
const AT_ONCE_MAX: usize = 4;
/// Who reads a file from its beginning may do so with the block around it.
const BLOCK: u64 = 4096;

/// A file that may name others, by its mode and name: a program, a library, a package's description.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// Where it begins in its layer.
    start: u64,
    nid: Nid,
    dir: Nid,
}

/// Files that were or are looked at.
type Followed = Mutex<HashSet<Nid>>;

/// See the module. Dropped, it fetches nothing more.
#[derive(Debug)]
pub struct Foresight {
    files: Arc<NamedFiles>,
    /// Once it is known.
    candidates: OnceLock<Candidates>,
    /// What was read before that.
    early: Mutex<Vec<(usize, Range<u64>)>>,
    followed: Arc<Followed>,
    tasks: Mutex<JoinSet<()>>,
}

/// Where files lie that may name others, and on what to fetch those.
#[derive(Debug)]
struct Candidates {
    /// Of each layer, by position.
    by_layer: Vec<Vec<Candidate>>,
    runtime: Handle,
}

impl Candidate {
    /// The file `nid` called `name` in `dir`, which begins at `start` in its layer; none if it cannot name others.
    pub fn new(
        tree: &Image<Mapped>,
        (dir, name): (Nid, &[u8]),
        nid: Nid,
        start: u64,
    ) -> Option<Self> {
        let is_library = || name.windows(3).any(|part| part == b".so");
        let inode = tree.inode(nid).ok()?;
        let may_be_program = inode.size >= BLOCK && (inode.mode & 0o111 != 0 || is_library());
        (may_be_program || name == package::FILE).then_some(Self { start, nid, dir })
    }
}

impl Foresight {
    /// Follows what is read of `layers`, which hold the files of `tree`.
    pub fn watch(tree: Arc<Image<Mapped>>, layers: &[LayerReader]) -> Arc<Self> {
        let foresight = Arc::new(Self {
            files: Arc::new(NamedFiles::new(tree, layers.to_vec())),
            candidates: OnceLock::new(),
            early: Mutex::default(),
            followed: Arc::default(),
            tasks: Mutex::default(),
        });
        for (at, layer) in foresight.files.layers().iter().enumerate() {
            let foresight = Arc::downgrade(&foresight);
            layer.watch(Box::new(move |bytes| {
                if let Some(foresight) = foresight.upgrade() {
                    foresight.read(at, bytes);
                }
            }));
        }
        foresight
    }

    /// Says which files of each layer are candidates. What they name is fetched on `runtime` from now on, also where they
    /// were read already.
    pub fn know(&self, mut by_layer: Vec<Vec<Candidate>>, runtime: Handle) {
        for candidates in &mut by_layer {
            candidates.sort_unstable();
            // Hard links.
            candidates.dedup_by_key(|file| file.nid);
            candidates.shrink_to_fit();
        }
        let early = {
            let mut early = lock(&self.early);
            // Known already: the same.
            let _ = self.candidates.set(Candidates { by_layer, runtime });
            std::mem::take(&mut *early)
        };
        for (layer, bytes) in early {
            self.read(layer, &bytes);
        }
    }

    /// Somebody reads `bytes` of a layer. If a file begins there that names others, fetches them.
    fn read(&self, layer: usize, bytes: &Range<u64>) {
        let candidates = match self.candidates.get() {
            Some(candidates) => candidates,
            None => {
                let mut early = lock(&self.early);
                let Some(candidates) = self.candidates.get() else {
                    if early.len() < EARLY_MAX {
                        early.push((layer, bytes.clone()));
                    }
                    return;
                };
                candidates
            }
        };
        let begins = |file: &&Candidate| begin(&self.followed, file.nid);
        let read = candidates.at(layer, bytes).iter();
        let read: Vec<_> = read.take(AT_ONCE_MAX).filter(begins).copied().collect();
        if read.is_empty() {
            return;
        }
        self.follow(&candidates.runtime, move |files, _| {
            let named = |file: Candidate| Named {
                nid: file.nid,
                dir: files.path_of_dir(file.dir).unwrap_or_default(),
                is_run: false,
            };
            read.into_iter().map(named).collect()
        });
    }

    /// Those files that the command of these `words` names of which nothing is here; words are looked for in the directories
    /// of `path`.
    pub fn missing_of(&self, words: &[u8], path: Vec<Vec<u8>>) -> Vec<Named> {
        self.files.look_in(path);
        let mut named = self.files.named(words);
        named.retain(|file| self.files.is_missing(file.nid));
        named
    }

    /// A command is about to run that names these files. Fetches on `runtime` what it begins with.
    pub fn expect(&self, mut named: Vec<Named>, runtime: &Handle) {
        self.follow(runtime, move |files, followed| {
            files.bring_before_all();
            for file in &named {
                files.bring_much(file.nid);
            }
            named.retain(|file| begin(followed, file.nid));
            named
        });
    }

    /// Fetches on `runtime` the files that are `first`, which begin to be followed, those that they name, and so on.
    fn follow(
        &self,
        runtime: &Handle,
        first: impl FnOnce(&NamedFiles, &Followed) -> Vec<Named> + Send + 'static,
    ) {
        let (files, followed) = (self.files.clone(), self.followed.clone());
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(
            async move {
                let first = first(&files, &followed);
                follow(files, &followed, first).await;
            },
            runtime,
        );
    }
}

impl Candidates {
    /// The files that begin where `bytes` do. The kernel reads blocks, which may begin with the end of another file, and have
    /// the beginnings of several.
    fn at(&self, layer: usize, bytes: &Range<u64>) -> &[Candidate] {
        let candidates = self.by_layer.get(layer).map_or(&[][..], Vec::as_slice);
        let end_of_block = bytes.end.min(bytes.start + BLOCK);
        let from = candidates.partition_point(|file| file.start < bytes.start);
        let to = candidates.partition_point(|file| file.start < end_of_block);
        candidates.get(from..to).unwrap_or_default()
    }
}

/// Fetches the files that were `found`, those that they name, and so on.
async fn follow(files: Arc<NamedFiles>, followed: &Followed, mut found: Vec<Named>) {
    let mut under_way = JoinSet::new();
    loop {
        for named in found {
            // Here, so that they come in the order in which they are loaded.
            files.bring_whole(named.nid);
            let files = files.clone();
            under_way.spawn(async move { files.named_by(&named).await });
        }
        found = match under_way.join_next().await {
            Some(next) => next.ok().flatten().unwrap_or_default(),
            None => return,
        };
        found.retain(|named| begin(followed, named.nid));
    }
}

/// Whether `nid` was not followed before, and shall be.
fn begin(followed: &Followed, nid: Nid) -> bool {
    let mut followed = lock(followed);
    followed.len() < FILES_MAX && followed.insert(nid)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
