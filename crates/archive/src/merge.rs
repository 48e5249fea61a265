//! Lays an image's layers over each other, as a runtime would unpack them one after the other
//! (OCI image-spec, layer.md, "Applying Changesets").
//!
//! Each layer is applied in two passes. Whiteouts and opaque marks come first: they hide what
//! *lower* layers have, wherever they stand in the tar. Then the entries follow in tar order:
//!
//! * a later entry replaces an earlier one of the same path; a directory over a directory keeps
//!   its children and takes the new attributes;
//! * parents are looked up through symbolic links, inside the image: with `lib -> usr/lib` below,
//!   `lib/x` is the file `usr/lib/x`;
//! * a parent that no entry describes is made: mode 0755, owner 0:0, times of the entry that
//!   implied it;
//! * a hard link names the inode of its target, which may come later in the same layer.
//!
//! Where runtimes disagree, `docs/semantics.md` says what we do and why.

use crate::{
    Entry, RuntimeDirs,
    entry::EntryKind,
    limits,
    tree::{Node, NodeId, NodeKind, Tree},
};
use std::collections::BTreeMap;

/// Raised when merging gives another tree for the same layers; part of the tree's identity.
pub const MERGE_VERSION: u32 = 1;

/// Symbolic links followed for one path before we call it a loop; Linux' limit (path_resolution(7)).
const LINKS_FOLLOWED_MAX: usize = 40;

/// Why layers cannot be merged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// A hard link to nothing, or to a directory.
    #[error("layer {layer}: {path:?} is a hard link to {target:?}, which {problem}")]
    Hardlink {
        /// Which layer, base = 0.
        layer: usize,
        /// The link.
        path: String,
        /// What it names.
        target: String,
        /// What is wrong with the target.
        problem: &'static str,
    },
    /// The parents of an entry go round in circles.
    #[error("layer {layer}: the parents of {path:?} are a loop of symbolic links")]
    Loop {
        /// Which layer, base = 0.
        layer: usize,
        /// The entry.
        path: String,
    },
    /// Looking up the parents of so many entries would take for ever.
    #[error(
        "layer {layer}: {path:?}: the image's symbolic links send its entries round too many \
         directories ({} for each entry)",
        limits::STEPS_PER_ENTRY
    )]
    TooManySteps {
        /// Which layer, base = 0.
        layer: usize,
        /// The entry.
        path: String,
    },
    /// More files and directories than an image may have.
    #[error(
        "layer {layer}: {path:?}: with it the image has more than {} files and directories",
        limits::ENTRIES_MAX
    )]
    TooManyNodes {
        /// Which layer, base = 0.
        layer: usize,
        /// The entry.
        path: String,
    },
    /// The image's root is not a directory.
    #[error("layer {layer} has an entry for the root that is not a directory")]
    Root {
        /// Which layer, base = 0.
        layer: usize,
    },
}

/// Merges `layers`, base first. `tar_sizes` are the sizes in bytes of their uncompressed tars.
pub fn merge(
    layers: Vec<Vec<Entry>>,
    tar_sizes: Vec<u64>,
    runtime_dirs: RuntimeDirs,
) -> Result<Tree, MergeError> {
    let mut merger = Merger::new();
    let entries = layers.iter().map(|entries| entries.len() as u64);
    merger.steps_left = limits::STEPS_SPARE + limits::STEPS_PER_ENTRY * entries.sum::<u64>();
    for (layer, entries) in layers.into_iter().enumerate() {
        merger.apply(layer, entries)?;
    }
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
    root_is_explicit: bool,
    /// How many more path components may be looked up.
    steps_left: u64,
}

/// What `place` needs of an entry: its attributes, and for errors its name.
struct Context<'a> {
    layer: usize,
    entry: &'a Entry,
}

impl Merger {
    fn new() -> Self {
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
            root_is_explicit: false,
            steps_left: 0,
        }
    }

    fn apply(&mut self, layer: usize, entries: Vec<Entry>) -> Result<(), MergeError> {
        for entry in &entries {
            match entry.kind {
                EntryKind::Whiteout => self.remove(&Context { layer, entry })?,
                EntryKind::Opaque => self.empty(&Context { layer, entry })?,
                _ => {}
            }
        }
        let mut links_to_later = Vec::new();
        for entry in entries {
            match entry.kind {
                EntryKind::Whiteout | EntryKind::Opaque => {}
                EntryKind::Hardlink { .. } => {
                    if !self.link(&Context {
                        layer,
                        entry: &entry,
                    })? {
                        links_to_later.push(entry);
                    }
                }
                _ => self.add(layer, entry)?,
            }
        }
        for entry in links_to_later {
            let context = Context {
                layer,
                entry: &entry,
            };
            if !self.link(&context)? {
                return Err(context.hardlink_error("does not exist in this layer or below"));
            }
        }
        Ok(())
    }

    /// Whiteout: forgets the name. What is not there cannot be hidden; that is no error.
    fn remove(&mut self, context: &Context<'_>) -> Result<(), MergeError> {
        let (parent, name) = split(&context.entry.path);
        if let Some(parent) = self.resolve(parent, context)?
            && let NodeKind::Directory(children) = &mut self.nodes[parent as usize].kind
        {
            children.remove(name);
        }
        Ok(())
    }

    /// Opaque mark: forgets what is in the directory.
    fn empty(&mut self, context: &Context<'_>) -> Result<(), MergeError> {
        if let Some(id) = self.resolve(&context.entry.path, context)?
            && let NodeKind::Directory(children) = &mut self.nodes[id as usize].kind
        {
            children.clear();
        }
        Ok(())
    }

    fn add(&mut self, layer: usize, entry: Entry) -> Result<(), MergeError> {
        if entry.path.is_empty() {
            return self.describe_root(layer, entry);
        }
        let (parent, name) = split(&entry.path);
        let parent = self.make_parents(
            parent,
            &Context {
                layer,
                entry: &entry,
            },
        )?;
        let name = name.to_vec();
        let node = into_node(layer, entry);
        let existing = self.child(parent, &name);
        match (existing, &node.kind) {
            (Some(old), NodeKind::Directory(_)) if self.is_directory(old) => {
                self.redescribe(old, node)
            }
            _ => self.attach(parent, name, node),
        }
        Ok(())
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
            unreachable!("called for hard links only")
        };
        let (target_parent, target_name) = split(target);
        let Some(target_parent) = self.resolve(target_parent, context)? else {
            return Ok(false);
        };
        let Some(inode) = self.child(target_parent, target_name) else {
            return Ok(false);
        };
        if self.is_directory(inode) {
            return Err(context.hardlink_error("is a directory"));
        }
        if context.entry.path.is_empty() {
            let layer = context.layer;
            return Err(MergeError::Root { layer });
        }
        let (parent, name) = split(&context.entry.path);
        let parent = self.make_parents(parent, context)?;
        let name = name.to_vec();
        self.children_mut(parent).insert(name, inode);
        Ok(true)
    }

    /// The directory at `path`, through symbolic links, made where it is missing. What is in the
    /// way and not a directory is replaced: the upper layer wins.
    fn make_parents(&mut self, path: &[u8], context: &Context<'_>) -> Result<NodeId, MergeError> {
        if !self.root_is_explicit {
            self.root_is_explicit = true;
            let root = &mut self.nodes[ROOT as usize];
            (root.mtime, root.mtime_nsec) = (context.entry.mtime, context.entry.mtime_nsec);
        }
        let mut walk = Walk::new(path);
        while let Some(name) = walk.next_name() {
            let child = self.child(walk.at(), &name);
            if self.nodes.len() > limits::ENTRIES_MAX {
                return Err(context.too_many_nodes());
            }
            match child.map(|id| (id, &self.nodes[id as usize].kind)) {
                Some((id, NodeKind::Directory(_))) => walk.enter(id),
                Some((_, NodeKind::Symlink(target))) => {
                    walk.follow(target).map_err(|Looped| context.loop_error())?
                }
                _ => {
                    let made = implied_directory(context.entry);
                    self.attach(walk.at(), name, made);
                    walk.enter(self.nodes.len() as NodeId - 1);
                }
            }
        }
        self.charge(&walk, context)?;
        Ok(walk.at())
    }

    /// Takes a finished walk's steps from those that are left; a single walk is bounded by itself.
    fn charge(&mut self, walk: &Walk, context: &Context<'_>) -> Result<(), MergeError> {
        let left = self.steps_left.checked_sub(walk.steps);
        self.steps_left = left.ok_or_else(|| context.too_many_steps())?;
        Ok(())
    }

    /// The directory at `path`, through symbolic links; `None` when there is none.
    fn resolve(
        &mut self,
        path: &[u8],
        context: &Context<'_>,
    ) -> Result<Option<NodeId>, MergeError> {
        let mut walk = Walk::new(path);
        let mut found = true;
        while found && let Some(name) = walk.next_name() {
            let child = self.child(walk.at(), &name);
            match child.map(|id| (id, &self.nodes[id as usize].kind)) {
                Some((id, NodeKind::Directory(_))) => walk.enter(id),
                Some((_, NodeKind::Symlink(target))) => {
                    walk.follow(target).map_err(|Looped| context.loop_error())?
                }
                _ => found = false,
            }
        }
        self.charge(&walk, context)?;
        Ok(found.then(|| walk.at()))
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

    fn attach(&mut self, parent: NodeId, name: Vec<u8>, node: Node) {
        let id = self.nodes.len() as NodeId;
        self.nodes.push(node);
        self.children_mut(parent).insert(name, id);
    }

    fn children_mut(&mut self, id: NodeId) -> &mut BTreeMap<Vec<u8>, NodeId> {
        match &mut self.nodes[id as usize].kind {
            NodeKind::Directory(children) => children,
            _ => unreachable!("parents are directories: make_parents returned this one"),
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
        let placeholder = || Node {
            kind: NodeKind::Fifo,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: 0,
            mtime_nsec: 0,
            xattrs: vec![],
        };
        let take = |old: NodeId| {
            let mut node = std::mem::replace(&mut self.nodes[old as usize], placeholder());
            if let NodeKind::Directory(children) = &mut node.kind {
                children
                    .values_mut()
                    .for_each(|child| *child = new_id[*child as usize]);
            }
            node
        };
        order.into_iter().map(take).collect()
    }
}

impl Context<'_> {
    fn hardlink_error(&self, problem: &'static str) -> MergeError {
        let target = match &self.entry.kind {
            EntryKind::Hardlink { target } => lossy(target),
            _ => String::new(),
        };
        MergeError::Hardlink {
            layer: self.layer,
            path: lossy(&self.entry.path),
            target,
            problem,
        }
    }

    fn too_many_steps(&self) -> MergeError {
        MergeError::TooManySteps {
            layer: self.layer,
            path: lossy(&self.entry.path),
        }
    }

    fn too_many_nodes(&self) -> MergeError {
        MergeError::TooManyNodes {
            layer: self.layer,
            path: lossy(&self.entry.path),
        }
    }

    fn loop_error(&self) -> MergeError {
        MergeError::Loop {
            layer: self.layer,
            path: lossy(&self.entry.path),
        }
    }
}

/// Too many symbolic links.
struct Looped;

/// Walks a path through the image: components still to go, and the directories entered so far
/// (so that `..` in a link's target can go back without leaving the root).
struct Walk {
    to_go: Vec<Vec<u8>>,
    entered: Vec<NodeId>,
    links_followed: usize,
    /// Components looked at.
    steps: u64,
}

impl Walk {
    fn new(path: &[u8]) -> Self {
        Self {
            to_go: components_reversed(path),
            entered: vec![ROOT],
            links_followed: 0,
            steps: 0,
        }
    }

    fn at(&self) -> NodeId {
        *self.entered.last().expect("the root is never left")
    }

    fn next_name(&mut self) -> Option<Vec<u8>> {
        loop {
            let name = self.to_go.pop()?;
            self.steps += 1;
            match name.as_slice() {
                b".." if self.entered.len() > 1 => drop(self.entered.pop()),
                b".." | b"." => {}
                _ => return Some(name),
            }
        }
    }

    fn enter(&mut self, id: NodeId) {
        self.entered.push(id);
    }

    fn follow(&mut self, target: &[u8]) -> Result<(), Looped> {
        self.links_followed += 1;
        if self.links_followed > LINKS_FOLLOWED_MAX {
            return Err(Looped);
        }
        if target.first() == Some(&b'/') {
            self.entered.truncate(1);
        }
        self.to_go.extend(components_reversed(target));
        Ok(())
    }
}

fn components_reversed(path: &[u8]) -> Vec<Vec<u8>> {
    path.rsplit(|&b| b == b'/')
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect()
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

fn implied_directory(by: &Entry) -> Node {
    let kind = NodeKind::Directory(BTreeMap::new());
    Node {
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: by.mtime,
        mtime_nsec: by.mtime_nsec,
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

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
