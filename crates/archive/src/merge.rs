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
mod own;
mod walk;

use crate::{
    Entry, RuntimeDirs,
    entry::EntryKind,
    limits,
    tree::{Node, NodeId, NodeKind, Tree},
};
use error::Context;
pub use error::MergeError;
use own::{Own, Touched};
use std::{cell::Cell, collections::BTreeMap};
use walk::{LINKS_FOLLOWED_MAX, Looped, Walk, split};

/// Raised when merging gives another tree for the same layers; part of the tree's identity.
pub const MERGE_VERSION: u32 = 2;

/// Merges `layers`, base first. `tar_sizes` are the sizes in bytes of their uncompressed tars.
pub fn merge(
    layers: Vec<Vec<Entry>>,
    tar_sizes: Vec<u64>,
    runtime_dirs: RuntimeDirs,
) -> Result<Tree, MergeError> {
    let entries: usize = layers.iter().map(Vec::len).sum();
    let mut merger = Merger::new(entries);
    // Each layer's entries go as soon as the tree has them.
    for (layer, entries) in layers.into_iter().enumerate() {
        merger.apply(layer, entries)?;
    }
    // The walk leaves out what is named below them; what came there through links goes here.
    merger.drop_runtime_dirs();
    if runtime_dirs == RuntimeDirs::Empty {
        merger.add_runtime_dirs();
    }
    Ok(Tree {
        nodes: merger.into_reachable_nodes(),
        layer_tar_sizes: tar_sizes,
    })
}

/// Whether `path` (normalised) is `/proc`, `/sys` or `/dev` or lies below one of them.
pub fn is_runtime_path(path: &[u8]) -> bool {
    let first = path.split(|&b| b == b'/').next().unwrap_or_default();
    RUNTIME_DIRS.contains(&first)
}

const RUNTIME_DIRS: [&[u8]; 3] = [b"proc", b"sys", b"dev"];
const ROOT: NodeId = 0;

/// Grows the tree. Replaced nodes stay in `nodes` until [`Merger::into_reachable_nodes`].
struct Merger {
    nodes: Vec<Node>,
    /// How many more path components may be looked up.
    steps_left: Cell<u64>,
    root_is_explicit: bool,
    /// What the current layer has added, if it has marks that must not hide that.
    own: Option<Own>,
    last_parent: Option<LastParent>,
}

/// Where the entry before lies: those of one directory stand together in a tar, and its path need not be walked for
/// each of them. It was entered through directories alone, so that it stays what the path means until one of these gives
/// up its name.
struct LastParent {
    path: Vec<u8>,
    directory: NodeId,
    /// What walking there costs of [`Merger::steps_left`], walked or not.
    steps: u64,
}

impl Merger {
    fn new(entries: usize) -> Self {
        let steps = limits::STEPS_SPARE + limits::STEPS_PER_ENTRY * entries as u64;
        let root = Node {
            kind: NodeKind::Directory(BTreeMap::new()),
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: 0,
            mtime_nsec: 0,
            xattrs: vec![],
        };
        Self {
            nodes: vec![root],
            steps_left: Cell::new(steps),
            root_is_explicit: false,
            own: None,
            last_parent: None,
        }
    }

    fn apply(&mut self, layer: usize, entries: Vec<Entry>) -> Result<(), MergeError> {
        let is_mark = |entry: &Entry| matches!(entry.kind, EntryKind::Whiteout | EntryKind::Opaque);
        self.own = entries.iter().any(is_mark).then(Own::default);
        self.last_parent = None;
        let mut links_to_later = Vec::new();
        for entry in entries {
            let context = Context {
                layer,
                entry: &entry,
            };
            match entry.kind {
                EntryKind::Whiteout => self.remove(&context)?,
                EntryKind::Opaque => self.empty(&context)?,
                EntryKind::Hardlink { .. } => {
                    if !self.link(&context)? {
                        links_to_later.push(entry);
                    }
                }
                _ => self.add(layer, entry)?,
            }
        }
        self.link_to_later(layer, links_to_later)
    }

    /// Links whose targets were not there when their turn came. A target may be such a link itself,
    /// so this goes on for some rounds: chains are short, and a hostile one must not cost its square.
    fn link_to_later(&mut self, layer: usize, mut links: Vec<Entry>) -> Result<(), MergeError> {
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

    /// Whiteout: what is not there cannot be hidden; that is no error.
    fn remove(&mut self, context: &Context<'_>) -> Result<(), MergeError> {
        let (parent, name) = split(&context.entry.path);
        match self.resolve(parent, context)? {
            Some(parent) => self.hide(parent, name, context),
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

    /// Hides what lower layers have under a name. A directory in which the layer has something becomes a new one,
    /// as if the mark had come first.
    fn hide(
        &mut self,
        parent: NodeId,
        name: &[u8],
        context: &Context<'_>,
    ) -> Result<(), MergeError> {
        let Some(child) = self.child(parent, name) else {
            return Ok(());
        };
        let own = self.own.get_or_insert_default();
        if own.has_name(parent, name) {
            return Ok(());
        }
        match own.touched(child) {
            None => {
                self.last_parent = None;
                self.children_mut(parent).remove(name);
                return Ok(());
            }
            Some(Touched::Implied { mtime, mtime_nsec }) => {
                self.redescribe(child, implied_directory(mtime, mtime_nsec));
            }
            Some(Touched::Described) => {}
        }
        self.note_name(parent, name);
        self.hide_children(child, context)
    }

    fn hide_children(
        &mut self,
        directory: NodeId,
        context: &Context<'_>,
    ) -> Result<(), MergeError> {
        let own = self.own.get_or_insert_default();
        let NodeKind::Directory(children) = &mut self.nodes[directory as usize].kind else {
            return Ok(());
        };
        self.last_parent = None;
        let looked_at = children.len() as u64;
        let mut touched = Vec::new();
        children.retain(|name, child| {
            let is_own = own.has_name(directory, name);
            let stays = is_own || own.touched(*child).is_some();
            if stays && !is_own {
                touched.push(name.clone());
            }
            stays
        });
        self.spend(looked_at, context)?;
        touched
            .iter()
            .try_for_each(|name| self.hide(directory, name, context))
    }

    fn add(&mut self, layer: usize, mut entry: Entry) -> Result<(), MergeError> {
        if entry.path.is_empty() {
            return self.describe_root(layer, entry);
        }
        let context = Context {
            layer,
            entry: &entry,
        };
        let (parent, name) = split(&entry.path);
        let parent = self.make_parents(parent, &context)?;
        let leading = entry.path.len() - name.len();
        // The path becomes the name in its place: nothing is allocated or freed for an entry any more.
        let mut name = std::mem::take(&mut entry.path);
        name.drain(..leading);
        let node = into_node(layer, entry);
        match self.directory_to_redescribe(parent, &name, &node) {
            Some(old) => {
                self.redescribe(old, node);
                if let Some(own) = &mut self.own {
                    own.describe(old);
                }
            }
            None => drop(self.attach(parent, name, node)),
        }
        Ok(())
    }

    /// The directory that is there already, if `node` is one, too.
    fn directory_to_redescribe(&self, parent: NodeId, name: &[u8], node: &Node) -> Option<NodeId> {
        match node.kind {
            NodeKind::Directory(_) => self
                .child(parent, name)
                .filter(|&old| self.is_directory(old)),
            _ => None,
        }
    }

    fn describe_root(&mut self, layer: usize, entry: Entry) -> Result<(), MergeError> {
        if entry.kind != EntryKind::Directory {
            return Err(MergeError::Root { layer });
        }
        self.root_is_explicit = true;
        self.redescribe(ROOT, into_node(layer, entry));
        Ok(())
    }

    /// Gives a directory new attributes; it keeps its children.
    fn redescribe(&mut self, id: NodeId, mut new: Node) {
        let old = &mut self.nodes[id as usize];
        std::mem::swap(&mut old.kind, &mut new.kind);
        *old = new;
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
        if self.is_directory(inode) {
            return Err(context.hardlink_error("is a directory"));
        }
        let (parent, name) = split(&context.entry.path);
        let parent = self.make_parents(parent, context)?;
        if self.is_same_name(parent, name, target, context)? {
            return Err(context.hardlink_error("is itself"));
        }
        self.name(parent, name.to_vec(), inode);
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
        Ok(parent.and_then(|parent| self.child(parent, name)))
    }

    /// The directory at `path`, through symbolic links, made where it is missing. What is in the
    /// way and not a directory is replaced: the upper layer wins.
    fn make_parents(&mut self, path: &[u8], context: &Context<'_>) -> Result<NodeId, MergeError> {
        if !self.root_is_explicit {
            self.root_is_explicit = true;
            let root = &mut self.nodes[ROOT as usize];
            (root.mtime, root.mtime_nsec) = (context.entry.mtime, context.entry.mtime_nsec);
        }
        if self.nodes.len() > limits::ENTRIES_MAX {
            return Err(context.too_many_nodes());
        }
        if let Some(last) = self.last_parent.as_ref().filter(|last| last.path == path) {
            self.spend(last.steps, context)?;
            return Ok(last.directory);
        }
        let walk = self.walk(path, context)?;
        let (steps, is_plain) = (walk.steps, walk.links_followed == 0);
        let entered = walk.entered.into_iter();
        let entered: Vec<_> = entered
            .map(|(name, directory)| directory.ok_or_else(|| name.to_vec()))
            .collect();
        let directory = self.enter(entered, context.entry);
        self.last_parent = is_plain.then(|| LastParent {
            path: path.to_vec(),
            directory,
            steps,
        });
        Ok(directory)
    }

    /// Where a walk leads, once the directories are made of which there is but the name.
    fn enter(&mut self, entered: Vec<Result<NodeId, Vec<u8>>>, implied_by: &Entry) -> NodeId {
        let (mtime, mtime_nsec) = (implied_by.mtime, implied_by.mtime_nsec);
        let mut at = ROOT;
        for directory in entered {
            at = directory
                .unwrap_or_else(|name| self.attach(at, name, implied_directory(mtime, mtime_nsec)));
            if let Some(own) = &mut self.own {
                own.imply(at, implied_by);
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
            let child = walk.directory().and_then(|parent| self.child(parent, name));
            match child.map(|id| (id, &self.nodes[id as usize].kind)) {
                Some((id, NodeKind::Directory(_))) => walk.entered.push((name, Some(id))),
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

    fn child(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.nodes[parent as usize].kind {
            NodeKind::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    fn is_directory(&self, id: NodeId) -> bool {
        matches!(self.nodes[id as usize].kind, NodeKind::Directory(_))
    }

    fn attach(&mut self, parent: NodeId, name: Vec<u8>, node: Node) -> NodeId {
        let id = self.nodes.len() as NodeId;
        self.nodes.push(node);
        self.name(parent, name, id);
        id
    }

    /// Gives `id` a name, and takes it from who has it.
    fn name(&mut self, parent: NodeId, name: Vec<u8>, id: NodeId) {
        self.note_name(parent, &name);
        let old = self.children_mut(parent).insert(name, id);
        if old.is_some_and(|old| self.is_directory(old)) {
            self.last_parent = None;
        }
    }

    fn note_name(&mut self, parent: NodeId, name: &[u8]) {
        if let Some(own) = &mut self.own {
            own.add_name(parent, name);
        }
    }

    fn children_mut(&mut self, id: NodeId) -> &mut BTreeMap<Vec<u8>, NodeId> {
        match &mut self.nodes[id as usize].kind {
            NodeKind::Directory(children) => children,
            _ => unreachable!("only what `walk` found to be a directory comes here"),
        }
    }

    fn drop_runtime_dirs(&mut self) {
        let children = self.children_mut(ROOT);
        for name in RUNTIME_DIRS {
            children.remove(name);
        }
    }

    fn add_runtime_dirs(&mut self) {
        let root = &self.nodes[ROOT as usize];
        let empty = Node {
            kind: NodeKind::Directory(BTreeMap::new()),
            mode: 0o755,
            uid: 0,
            gid: 0,
            xattrs: vec![],
            ..root.clone()
        };
        for name in RUNTIME_DIRS {
            self.attach(ROOT, name.to_vec(), empty.clone());
        }
    }

    /// Drops replaced nodes and numbers the rest in breadth-first order, names sorted: the
    /// numbering depends on the tree alone, not on the history of the layers.
    fn into_reachable_nodes(mut self) -> Vec<Node> {
        let mut new_id = vec![NodeId::MAX; self.nodes.len()];
        let mut order = vec![ROOT];
        new_id[ROOT as usize] = 0;
        let mut next = 0;
        while next < order.len() {
            if let NodeKind::Directory(children) = &self.nodes[order[next] as usize].kind {
                for &child in children.values() {
                    if new_id[child as usize] == NodeId::MAX {
                        new_id[child as usize] = order.len() as NodeId;
                        order.push(child);
                    }
                }
            }
            next += 1;
        }
        for node in &mut self.nodes {
            if let NodeKind::Directory(children) = &mut node.kind {
                children
                    .values_mut()
                    .for_each(|child| *child = new_id[*child as usize]);
            }
        }
        let mut nodes: Vec<Option<Node>> = self.nodes.into_iter().map(Some).collect();
        let take = |old: NodeId| nodes[old as usize].take();
        order.into_iter().filter_map(take).collect()
    }
}

fn implied_directory(mtime: i64, mtime_nsec: u32) -> Node {
    let kind = NodeKind::Directory(BTreeMap::new());
    Node {
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime,
        mtime_nsec,
        xattrs: vec![],
    }
}

fn into_node(layer: usize, entry: Entry) -> Node {
    let kind = match entry.kind {
        EntryKind::File { size, segments } => NodeKind::File {
            layer: layer as u16,
            size,
            segments,
        },
        EntryKind::Directory => NodeKind::Directory(BTreeMap::new()),
        EntryKind::Symlink { target } => NodeKind::Symlink(target),
        EntryKind::CharDevice { major, minor } => NodeKind::CharDevice { major, minor },
        EntryKind::BlockDevice { major, minor } => NodeKind::BlockDevice { major, minor },
        EntryKind::Fifo => NodeKind::Fifo,
        EntryKind::Hardlink { .. } | EntryKind::Whiteout | EntryKind::Opaque => {
            unreachable!("handled before: these make no node of their own")
        }
    };
    // Linux gives every symbolic link mode 0777, whatever the tar says (symlink(7)).
    let mode = if matches!(kind, NodeKind::Symlink(_)) {
        0o777
    } else {
        entry.mode
    };
    Node {
        kind,
        mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        mtime_nsec: entry.mtime_nsec,
        xattrs: entry.xattrs,
    }
}
