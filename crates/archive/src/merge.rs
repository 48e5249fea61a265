//! Lays an image's layers over each other, as a runtime would unpack them one after the other
//! (OCI image-spec, layer.md, "Applying Changesets").
//!
//! The entries of a layer are applied in the order of its tar, as the unpackers do:
//!
//! * whiteouts and opaque marks hide what *lower* layers have, wherever they stand in the tar;
//! * a later entry replaces an earlier one of the same path; a directory over a directory keeps
//!   its children and takes the new attributes;
//! * parents are looked up through symbolic links, inside the image: with `lib -> usr/lib` below,
//!   `lib/x` is the file `usr/lib/x`;
//! * a parent that no entry describes is made: mode 0755, owner 0:0, times of the entry that
//!   implied it;
//! * a hard link names the inode of its target, which may come later in its layer.
//!
//! Where runtimes disagree, `docs/semantics.md` says what we do and why.

mod error;
mod walk;

use crate::{
    Entry, RuntimeDirs,
    entry::EntryKind,
    limits,
    tree::{Attributes, Found, Node, NodeId, NodeKind, Touched, Tree, TreeBuilder},
};
use error::Context;
pub use error::MergeError;
use std::cell::Cell;
use walk::{LINKS_FOLLOWED_MAX, Looped, Walk, split};

/// Raised when merging gives another tree for the same layers; part of the tree's identity.
pub const MERGE_VERSION: u32 = 2;

/// Merges `layers`, base first. `tar_sizes` are the sizes in bytes of their uncompressed tars.
pub fn merge(
    layers: Vec<Vec<Entry>>,
    tar_sizes: Vec<u64>,
    runtime_dirs: RuntimeDirs,
) -> Result<Tree, MergeError> {
    let mut merger = Merger::new();
    // Each layer's entries go as soon as the tree has them.
    for entries in layers {
        merger.begin_layer(entries.len() as u64);
        entries.iter().try_for_each(|entry| merger.apply(entry))?;
        merger.end_layer()?;
    }
    Ok(merger.finish(tar_sizes, runtime_dirs))
}

/// Whether `path` (normalised) is `/proc`, `/sys` or `/dev` or lies below one of them.
pub fn is_runtime_path(path: &[u8]) -> bool {
    let first = path.split(|&b| b == b'/').next().unwrap_or_default();
    RUNTIME_DIRS.contains(&first)
}

const RUNTIME_DIRS: [&[u8]; 3] = [b"proc", b"sys", b"dev"];
const ROOT: NodeId = 0;

/// Lays entries over a tree, one after the other.
pub(crate) struct Merger {
    tree: TreeBuilder,
    /// The layer that is being applied; 0 before the first.
    layer: usize,
    layers_begun: usize,
    /// How many more path components may be looked up.
    steps_left: Cell<u64>,
    root_is_explicit: bool,
    /// Hard links of the layer whose targets were not there when their turn came.
    links_to_later: Vec<Entry>,
    last_parent: LastParent,
}

/// Where the entry before lies: those of one directory stand together in a tar, and its path need not be walked for
/// each of them. It was entered through directories alone, so that it stays what the path means until one of these gives
/// up its name.
#[derive(Default)]
struct LastParent {
    path: Vec<u8>,
    directory: Option<NodeId>,
    /// What walking there costs of [`Merger::steps_left`], walked or not.
    steps: u64,
}

impl Merger {
    pub fn new() -> Self {
        Self {
            tree: TreeBuilder::new(implied(0, 0)),
            layer: 0,
            layers_begun: 0,
            steps_left: Cell::new(limits::STEPS_SPARE),
            root_is_explicit: false,
            links_to_later: Vec::new(),
            last_parent: LastParent::default(),
        }
    }

    /// Begins the next layer, which has so many entries.
    pub fn begin_layer(&mut self, entries: u64) {
        self.layer = self.layers_begun;
        self.layers_begun += 1;
        self.tree.begin_layer(self.layer as u16);
        let steps = limits::STEPS_PER_ENTRY.saturating_mul(entries);
        let left = self.steps_left.get();
        self.steps_left.set(left.saturating_add(steps));
        self.forget_last_parent();
    }

    /// Applies the layer's next entry.
    pub fn apply(&mut self, entry: &Entry) -> Result<(), MergeError> {
        let context = Context {
            layer: self.layer,
            entry,
        };
        match entry.kind {
            EntryKind::Whiteout => self.remove(&context),
            EntryKind::Opaque => self.empty(&context),
            EntryKind::Hardlink { .. } => {
                if !self.link(&context)? {
                    self.links_to_later.push(entry.clone());
                }
                Ok(())
            }
            _ => self.add(&context),
        }
    }

    /// Ends a layer. Targets of links to later entries may be such links themselves, so this goes on for some rounds:
    /// chains are short, and a hostile one must not cost its square.
    pub fn end_layer(&mut self) -> Result<(), MergeError> {
        let layer = self.layer;
        let mut links = std::mem::take(&mut self.links_to_later);
        for _ in 0..LINKS_FOLLOWED_MAX {
            let before = links.len();
            let mut left = Vec::new();
            for entry in links {
                let context = Context {
                    layer,
                    entry: &entry,
                };
                if !self.link(&context)? {
                    left.push(entry);
                }
            }
            links = left;
            if links.len() == before {
                break;
            }
        }
        match links.first() {
            Some(entry) => {
                let context = Context { layer, entry };
                Err(context.hardlink_error("does not exist in this layer or below"))
            }
            None => Ok(()),
        }
    }

    /// The tree of all layers.
    pub fn finish(mut self, tar_sizes: Vec<u64>, runtime_dirs: RuntimeDirs) -> Tree {
        // The walk leaves out what is named below them; what came there through links goes here.
        for name in RUNTIME_DIRS {
            let found = self.tree.find(ROOT, name);
            self.tree.take(found);
        }
        if runtime_dirs == RuntimeDirs::Empty {
            let root = *self.tree.attributes_mut(ROOT);
            for name in RUNTIME_DIRS {
                let empty = directory(implied(root.mtime, root.mtime_nsec));
                self.tree.add(ROOT, name, &empty);
            }
        }
        self.tree.finish(tar_sizes)
    }

    /// Whiteout: what is not there cannot be hidden; that is no error.
    fn remove(&mut self, context: &Context<'_>) -> Result<(), MergeError> {
        let (parent, name) = split(&context.entry.path);
        match self.resolve(parent, context)? {
            Some(parent) => self.hide(self.tree.find(parent, name), context),
            None => Ok(()),
        }
    }

    /// Opaque mark: the directory itself stays as it is.
    fn empty(&mut self, context: &Context<'_>) -> Result<(), MergeError> {
        match self.resolve(&context.entry.path, context)? {
            Some(directory) => self.hide_children(directory, context),
            None => Ok(()),
        }
    }

    /// Hides what lower layers have under a name (layer.md: "whiteout files MUST only apply to resources in lower/parent
    /// layers"). A directory in which the layer has something becomes a new one, as if the mark had come first.
    fn hide(&mut self, name: Found, context: &Context<'_>) -> Result<(), MergeError> {
        let Some(child) = self.tree.node_of(name) else {
            return Ok(());
        };
        if self.tree.is_own(name) {
            return Ok(());
        }
        match self.tree.touched(child) {
            None => {
                self.forget_last_parent();
                self.tree.take(name);
                return Ok(());
            }
            Some(Touched::Implied { mtime, mtime_nsec }) => {
                self.tree.describe(child, implied(mtime, mtime_nsec), &[]);
            }
            Some(Touched::Described) => {}
        }
        self.tree.own(name);
        self.hide_children(child, context)
    }

    fn hide_children(
        &mut self,
        directory: NodeId,
        context: &Context<'_>,
    ) -> Result<(), MergeError> {
        if !self.tree.is_directory(directory) {
            return Ok(());
        }
        self.forget_last_parent();
        let mut names = self.tree.names_in(directory);
        self.spend(names.len() as u64, context)?;
        let mut touched = Vec::new();
        names.retain(|&name| {
            let is_own = self.tree.is_own(name);
            let child = self.tree.node_of(name);
            let is_touched = child.is_some_and(|child| self.tree.touched(child).is_some());
            match (is_own, is_touched) {
                (true, _) => {}
                (false, true) => touched.push(name),
                (false, false) => self.tree.take(name),
            }
            is_own || is_touched
        });
        self.tree.leave_names(directory, &names);
        touched
            .into_iter()
            .try_for_each(|name| self.hide(name, context))
    }

    fn add(&mut self, context: &Context<'_>) -> Result<(), MergeError> {
        let entry = context.entry;
        let node = node_of(self.layer, entry);
        if entry.path.is_empty() {
            return self.describe_root(&node);
        }
        let (parent, name) = split(&entry.path);
        let parent = self.make_parents(parent, context)?;
        let found = self.tree.find(parent, name);
        match self.tree.node_of(found) {
            Some(old) if node.kind == NodeKind::Directory && self.tree.is_directory(old) => {
                self.tree.describe(old, node.attributes, node.xattrs);
                self.tree.touch(old, Touched::Described);
            }
            _ => {
                let id = self.tree.keep(&node);
                self.name(parent, name, found, id);
            }
        }
        Ok(())
    }

    fn describe_root(&mut self, node: &Node<'_>) -> Result<(), MergeError> {
        if node.kind != NodeKind::Directory {
            return Err(MergeError::Root { layer: self.layer });
        }
        self.root_is_explicit = true;
        self.tree.describe(ROOT, node.attributes, node.xattrs);
        Ok(())
    }

    /// Adds a name for an existing inode; false when the target is not there (yet).
    fn link(&mut self, context: &Context<'_>) -> Result<bool, MergeError> {
        let EntryKind::Hardlink { target } = &context.entry.kind else {
            unreachable!("only hard links come here")
        };
        if context.entry.path.is_empty() {
            return Err(MergeError::Root {
                layer: context.layer,
            });
        }
        let Some(inode) = self.link_target(target, context)? else {
            return Ok(false);
        };
        if self.tree.is_directory(inode) {
            return Err(context.hardlink_error("is a directory"));
        }
        let (parent, name) = split(&context.entry.path);
        let parent = self.make_parents(parent, context)?;
        if self.is_same_name(parent, name, target, context)? {
            return Err(context.hardlink_error("is itself"));
        }
        self.name(parent, name, self.tree.find(parent, name), inode);
        Ok(true)
    }

    /// Whether `target` is the name that is to be linked: unpackers remove it, and then miss it.
    fn is_same_name(
        &self,
        parent: NodeId,
        name: &[u8],
        target: &[u8],
        context: &Context<'_>,
    ) -> Result<bool, MergeError> {
        let (target_parent, target_name) = split(target);
        Ok(name == target_name && self.resolve(target_parent, context)? == Some(parent))
    }

    /// The inode that a hard link names. Links on the way are followed, at its end they are not.
    fn link_target(
        &self,
        target: &[u8],
        context: &Context<'_>,
    ) -> Result<Option<NodeId>, MergeError> {
        if target.is_empty() {
            return Ok(Some(ROOT));
        }
        let (parent, name) = split(target);
        let parent = self.resolve(parent, context)?;
        Ok(parent.and_then(|parent| self.tree.child(parent, name)))
    }

    /// The directory at `path`, through symbolic links, made where it is missing. What is in the
    /// way and not a directory is replaced: the upper layer wins.
    fn make_parents(&mut self, path: &[u8], context: &Context<'_>) -> Result<NodeId, MergeError> {
        if !self.root_is_explicit {
            self.root_is_explicit = true;
            let root = self.tree.attributes_mut(ROOT);
            (root.mtime, root.mtime_nsec) = (context.entry.mtime, context.entry.mtime_nsec);
        }
        if self.tree.node_count() > limits::ENTRIES_MAX {
            return Err(context.too_many_nodes());
        }
        if self.tree.text_len() > limits::TREE_TEXT_MAX {
            return Err(context.too_much_text());
        }
        match self.last_parent.directory {
            Some(directory) if self.last_parent.path == path => {
                self.spend(self.last_parent.steps, context)?;
                Ok(directory)
            }
            _ => self.walk_to_parent(path, context),
        }
    }

    fn walk_to_parent(&mut self, path: &[u8], context: &Context<'_>) -> Result<NodeId, MergeError> {
        let walk = self.walk(path, context)?;
        let (steps, is_plain) = (walk.steps, walk.links_followed == 0);
        let entered = walk.entered.into_iter();
        let entered: Vec<_> = entered
            .map(|(name, directory)| directory.ok_or_else(|| name.to_vec()))
            .collect();
        let directory = self.enter(entered, context.entry);
        self.last_parent.path.clear();
        self.last_parent.path.extend_from_slice(path);
        self.last_parent.directory = is_plain.then_some(directory);
        self.last_parent.steps = steps;
        Ok(directory)
    }

    fn forget_last_parent(&mut self) {
        self.last_parent.directory = None;
    }

    /// Where a walk leads, once the directories are made of which there is but the name.
    fn enter(&mut self, entered: Vec<Result<NodeId, Vec<u8>>>, implied_by: &Entry) -> NodeId {
        let (mtime, mtime_nsec) = (implied_by.mtime, implied_by.mtime_nsec);
        let mut at = ROOT;
        for entered in entered {
            at = entered.unwrap_or_else(|name| {
                let id = self.tree.keep(&directory(implied(mtime, mtime_nsec)));
                self.name(at, &name, self.tree.find(at, &name), id);
                id
            });
            if self.tree.touched(at).is_none() {
                self.tree.touch(at, Touched::Implied { mtime, mtime_nsec });
            }
        }
        at
    }

    /// The directory at `path`, through symbolic links; `None` when there is none.
    fn resolve(&self, path: &[u8], context: &Context<'_>) -> Result<Option<NodeId>, MergeError> {
        Ok(self.walk(path, context)?.directory())
    }

    /// Walks `path` inside the image. What is not there is walked by its name, so that `..` leads
    /// back from it, as in the unpackers' path resolution.
    fn walk<'a>(&'a self, path: &'a [u8], context: &Context<'_>) -> Result<Walk<'a>, MergeError> {
        let mut walk = Walk::new(path);
        while let Some(name) = walk.next_name() {
            let parent = walk.directory();
            let child = parent.and_then(|parent| self.tree.child(parent, name));
            match child.map(|id| (id, self.tree.kind(id))) {
                Some((id, NodeKind::Directory)) => walk.entered.push((name, Some(id))),
                Some((_, NodeKind::Symlink(target))) => {
                    walk.follow(target).map_err(|Looped| context.loop_error())?
                }
                _ => walk.entered.push((name, None)),
            }
        }
        // A single walk is bounded by itself; only their sum needs counting.
        self.spend(walk.steps, context)?;
        Ok(walk)
    }

    fn spend(&self, steps: u64, context: &Context<'_>) -> Result<(), MergeError> {
        let left = self.steps_left.get().checked_sub(steps);
        self.steps_left
            .set(left.ok_or_else(|| context.too_many_steps())?);
        Ok(())
    }

    /// Gives `id` a name that was looked for, and takes it from who has it.
    fn name(&mut self, parent: NodeId, name: &[u8], found: Found, id: NodeId) {
        let old = self.tree.give(parent, name, found, id);
        if old.is_some_and(|old| self.tree.is_directory(old)) {
            self.forget_last_parent();
        }
    }
}

/// Of a directory that no entry describes.
fn implied(mtime: i64, mtime_nsec: u32) -> Attributes {
    Attributes {
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime,
        mtime_nsec,
    }
}

fn directory(attributes: Attributes) -> Node<'static> {
    Node {
        kind: NodeKind::Directory,
        attributes,
        xattrs: &[],
    }
}

fn node_of(layer: usize, entry: &Entry) -> Node<'_> {
    let kind = match &entry.kind {
        EntryKind::File { size, segments } => NodeKind::File {
            layer: layer as u16,
            size: *size,
            segments,
        },
        EntryKind::Directory => NodeKind::Directory,
        EntryKind::Symlink { target } => NodeKind::Symlink(target),
        &EntryKind::CharDevice { major, minor } => NodeKind::CharDevice { major, minor },
        &EntryKind::BlockDevice { major, minor } => NodeKind::BlockDevice { major, minor },
        EntryKind::Fifo => NodeKind::Fifo,
        EntryKind::Hardlink { .. } | EntryKind::Whiteout | EntryKind::Opaque => {
            unreachable!("handled before: these make no node of their own")
        }
    };
    // Linux gives every symbolic link mode 0777, whatever the tar says (symlink(7)).
    let mode = match kind {
        NodeKind::Symlink(_) => 0o777,
        _ => entry.mode,
    };
    Node {
        kind,
        attributes: Attributes {
            mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            mtime_nsec: entry.mtime_nsec,
        },
        xattrs: &entry.xattrs,
    }
}
