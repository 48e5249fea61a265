//! A tree that grows: names are given to nodes and taken from them again.

use super::index::{Index, Judged, NONE};
use super::store::{Run, Store, Stored, StoredKind, position};
use super::{Attributes, Child, Node, NodeId, NodeKind, Tree};
use crate::Xattr;
use std::cell::RefCell;
use std::cmp::Ordering;

/// Grows a [`Tree`] layer by layer. What has lost its last name stays until [`Self::finish`].
#[derive(Debug)]
pub struct TreeBuilder {
    nodes: Vec<Stored>,
    directories: Vec<Directory>,
    names: Vec<Name>,
    /// Names are put in when one is looked for that [`Self::last_or_new`] does not know.
    index: RefCell<Index>,
    store: Store,
    /// The layer that is being applied.
    layer: u16,
}

/// What only directories have.
#[derive(Debug, Clone)]
struct Directory {
    /// The names that were given in it, those taken again included: a chain through [`Name::next_sibling`].
    first: u32,
    last: u32,
    /// Whether each of them came behind the one before: most tars are sorted.
    is_sorted: bool,
    /// How a layer told of it, and which.
    touched: Option<(u16, Touched)>,
}

/// How a layer tells of a directory that it has not made, but in which it has something.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Touched {
    /// An entry describes it.
    Described,
    /// The first entry below it is of this time.
    Implied { mtime: i64, mtime_nsec: u32 },
}

/// A name that was given.
#[derive(Debug)]
struct Name {
    text: Run,
    directory: NodeId,
    /// [`NONE`] once it was taken.
    node: NodeId,
    next_sibling: u32,
    /// The layer that gave it.
    layer: u16,
}

/// Where [`TreeBuilder::find`] has found a name, or that it has not.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found(Option<u32>);

impl TreeBuilder {
    /// A tree of a root directory alone.
    pub fn new(root: Attributes) -> Self {
        let mut builder = Self {
            nodes: Vec::new(),
            directories: Vec::new(),
            names: Vec::new(),
            index: RefCell::default(),
            store: Store::default(),
            layer: 0,
        };
        builder.keep(&Node {
            kind: NodeKind::Directory,
            attributes: root,
            xattrs: &[],
        });
        builder
    }

    /// Adds a node called `name` to the directory `parent`, in the place of what is called so there.
    pub fn add(&mut self, parent: NodeId, name: &[u8], node: &Node<'_>) -> NodeId {
        let id = self.keep(node);
        self.link(parent, name, id);
        id
    }

    /// Gives a node one more name, and takes it from who has it.
    ///
    /// # Panics
    /// If there is no such directory or node.
    pub fn link(&mut self, parent: NodeId, name: &[u8], node: NodeId) {
        assert!((node as usize) < self.nodes.len(), "no node {node}");
        let found = self.find(parent, name);
        self.give(parent, name, found, node);
    }

    /// Gives a node other attributes; what it is stays, and so do its names.
    pub fn describe(&mut self, id: NodeId, attributes: Attributes, xattrs: &[Xattr]) {
        let xattrs = self.store.keep_xattrs(xattrs);
        let node = &mut self.nodes[id as usize];
        (node.attributes, node.xattrs) = (attributes, xattrs);
    }

    /// The tree. Nodes are numbered breadth first, names sorted, and those without a name left out: the numbering
    /// depends on the tree alone, not on how it has grown.
    pub fn finish(self, layer_tar_sizes: Vec<u64>) -> Tree {
        let mut order: Vec<NodeId> = Vec::with_capacity(self.nodes.len());
        let mut new_id = vec![NONE; self.nodes.len()];
        let mut nodes = Vec::with_capacity(self.nodes.len());
        let mut children = Vec::with_capacity(self.names.len());
        order.push(0);
        new_id[0] = 0;
        while let Some(&old) = order.get(nodes.len()) {
            let mut node = self.nodes[old as usize];
            if let StoredKind::Directory(run) = &mut node.kind {
                let first = children.len();
                self.sorted_children(run.at, &mut children);
                *run = Run {
                    at: position(first),
                    len: position(children.len() - first),
                };
                for child in &mut children[first..] {
                    let id = &mut new_id[child.node as usize];
                    if *id == NONE {
                        *id = position(order.len());
                        order.push(child.node);
                    }
                    child.node = *id;
                }
            }
            nodes.push(node);
        }
        Tree {
            nodes,
            children,
            store: self.store,
            layer_tar_sizes,
        }
    }

    /// Appends the names in a directory, by its number among the directories.
    fn sorted_children(&self, directory: u32, out: &mut Vec<Child>) {
        let first = out.len();
        let directory = &self.directories[directory as usize];
        let mut at = directory.first;
        while let Some(name) = self.names.get(at as usize) {
            if name.node != NONE {
                out.push(Child {
                    name: name.text,
                    node: name.node,
                });
            }
            at = name.next_sibling;
        }
        if !directory.is_sorted {
            let text = |child: &Child| self.store.text(child.name);
            out[first..].sort_unstable_by(|a, b| text(a).cmp(text(b)));
        }
    }

    /// Adds a node that has no name yet.
    pub(crate) fn keep(&mut self, node: &Node<'_>) -> NodeId {
        let id = position(self.nodes.len());
        let directory = Run {
            at: position(self.directories.len()),
            len: 0,
        };
        if node.kind == NodeKind::Directory {
            self.directories.push(Directory {
                first: NONE,
                last: NONE,
                is_sorted: true,
                touched: None,
            });
        }
        self.nodes.push(self.store.keep(node, directory));
        id
    }
}

/// What merging needs beside that.
impl TreeBuilder {
    /// What is added from now on belongs to this layer.
    pub(crate) fn begin_layer(&mut self, layer: u16) {
        self.layer = layer;
    }

    pub(crate) fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Bytes of all names and link targets.
    pub(crate) fn text_len(&self) -> usize {
        self.store.text_len()
    }

    pub(crate) fn kind(&self, id: NodeId) -> NodeKind<'_> {
        self.store.view_kind(&self.nodes[id as usize].kind)
    }

    pub(crate) fn attributes_mut(&mut self, id: NodeId) -> &mut Attributes {
        &mut self.nodes[id as usize].attributes
    }

    pub(crate) fn is_directory(&self, id: NodeId) -> bool {
        self.directory(id).is_some()
    }

    pub(crate) fn child(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.node_of(self.find(parent, name))
    }

    pub(crate) fn find(&self, parent: NodeId, name: &[u8]) -> Found {
        self.last_or_new(parent, name)
            .unwrap_or_else(|| self.look_up(parent, name))
    }

    /// Whether `name` is the last one that was given in its directory, or new there because it comes behind all others.
    /// In a sorted tar it always is one of the two.
    fn last_or_new(&self, parent: NodeId, name: &[u8]) -> Option<Found> {
        let directory = self.directory(parent)?;
        let Some(last) = self.names.get(directory.last as usize) else {
            return Some(Found(None));
        };
        match self.store.text(last.text).cmp(name) {
            Ordering::Less if directory.is_sorted => Some(Found(None)),
            Ordering::Equal if last.node != NONE => Some(Found(Some(directory.last))),
            _ => None,
        }
    }

    fn look_up(&self, parent: NodeId, name: &[u8]) -> Found {
        let mut index = self.index.borrow_mut();
        index.reserve(self.names.len());
        for name in &self.names[index.len()..] {
            index.push(name.directory, self.store.text(name.text));
        }
        let hash = index.hash(parent, name);
        Found(index.find(hash, |at| {
            let there = &self.names[at as usize];
            match (there.node, there.directory) {
                (NONE, _) => Judged::Gone,
                (_, directory) if directory != parent => Judged::Another,
                _ if self.store.text(there.text) == name => Judged::It,
                _ => Judged::Another,
            }
        }))
    }

    pub(crate) fn node_of(&self, found: Found) -> Option<NodeId> {
        let node = found.0.map(|at| self.names[at as usize].node);
        node.filter(|&node| node != NONE)
    }

    /// Whether the layer that is being applied has given the name.
    pub(crate) fn is_own(&self, found: Found) -> bool {
        let name = found.0.map(|at| &self.names[at as usize]);
        name.is_some_and(|name| name.layer == self.layer)
    }

    /// Makes the name one that the layer that is being applied has given.
    pub(crate) fn own(&mut self, found: Found) {
        if let Some(at) = found.0 {
            self.names[at as usize].layer = self.layer;
        }
    }

    /// Gives a name that was looked for to a node; returns who had it.
    pub(crate) fn give(
        &mut self,
        parent: NodeId,
        name: &[u8],
        found: Found,
        node: NodeId,
    ) -> Option<NodeId> {
        match found.0 {
            Some(at) => {
                let layer = self.layer;
                let name = &mut self.names[at as usize];
                name.layer = layer;
                Some(std::mem::replace(&mut name.node, node))
            }
            None => {
                self.give_new(parent, name, node);
                None
            }
        }
    }

    fn give_new(&mut self, parent: NodeId, name: &[u8], node: NodeId) {
        let at = position(self.names.len());
        self.names.push(Name {
            text: self.store.keep_text(name),
            directory: parent,
            node,
            next_sibling: NONE,
            layer: self.layer,
        });
        self.append_sibling(parent, at);
    }

    fn append_sibling(&mut self, parent: NodeId, at: u32) {
        let name = self.store.text(self.names[at as usize].text);
        let last = self
            .directory(parent)
            .map_or(NONE, |directory| directory.last);
        let is_behind = match self.names.get(last as usize) {
            Some(last) => self.store.text(last.text) < name,
            None => true,
        };
        let directory = self.directory_mut(parent);
        directory.is_sorted &= is_behind;
        directory.last = at;
        match self.names.get_mut(last as usize) {
            Some(last) => last.next_sibling = at,
            None => self.directory_mut(parent).first = at,
        }
    }

    /// Takes a name from its node.
    pub(crate) fn take(&mut self, found: Found) {
        if let Some(at) = found.0 {
            self.names[at as usize].node = NONE;
        }
    }

    /// All names in a directory, in the order in which they were given.
    pub(crate) fn names_in(&self, directory: NodeId) -> Vec<Found> {
        let mut names = Vec::new();
        let mut at = self
            .directory(directory)
            .map_or(NONE, |directory| directory.first);
        while let Some(name) = self.names.get(at as usize) {
            if name.node != NONE {
                names.push(Found(Some(at)));
            }
            at = name.next_sibling;
        }
        names
    }

    /// Says that of the names given in a directory these are left: the others need not be walked again.
    pub(crate) fn leave_names(&mut self, directory: NodeId, names: &[Found]) {
        let emptied = self.directory_mut(directory);
        (emptied.first, emptied.last, emptied.is_sorted) = (NONE, NONE, true);
        for at in names.iter().filter_map(|found| found.0) {
            self.names[at as usize].next_sibling = NONE;
            self.append_sibling(directory, at);
        }
    }

    /// How the layer that is being applied tells of a directory that it has not made.
    pub(crate) fn touched(&self, id: NodeId) -> Option<Touched> {
        let (layer, touched) = self.directory(id)?.touched?;
        (layer == self.layer).then_some(touched)
    }

    pub(crate) fn touch(&mut self, id: NodeId, touched: Touched) {
        let layer = self.layer;
        self.directory_mut(id).touched = Some((layer, touched));
    }

    fn directory(&self, id: NodeId) -> Option<&Directory> {
        match self.nodes[id as usize].kind {
            StoredKind::Directory(run) => Some(&self.directories[run.at as usize]),
            _ => None,
        }
    }

    fn directory_mut(&mut self, id: NodeId) -> &mut Directory {
        match self.nodes[id as usize].kind {
            StoredKind::Directory(run) => &mut self.directories[run.at as usize],
            _ => panic!("node {id} is no directory"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};
    use std::collections::BTreeMap;

    const FIFO: Node<'_> = Node {
        kind: NodeKind::Fifo,
        attributes: Attributes {
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: 0,
            mtime_nsec: 0,
        },
        xattrs: &[],
    };

    #[derive(Debug, Clone)]
    enum Step {
        Give(u32, String),
        Take(u32, String),
        Empty(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        let name = || (0..3u32, "[a-c]{1,2}");
        prop_oneof![
            8 => name().prop_map(|(directory, name)| Step::Give(directory, name)),
            3 => name().prop_map(|(directory, name)| Step::Take(directory, name)),
            1 => (0..3u32).prop_map(Step::Empty),
        ]
    }

    proptest! {
        #[test]
        fn names_that_come_and_go_are_found_as_in_a_map(steps in vec(step(), 0..60)) {
            let mut tree = TreeBuilder::new(FIFO.attributes);
            let directory = Node { kind: NodeKind::Directory, ..FIFO };
            let directories = [tree.add(0, b"X", &directory), tree.add(0, b"Y", &directory), tree.add(0, b"Z", &directory)];
            let mut expected = [const { BTreeMap::new() }; 3];
            for step in steps {
                match step {
                    Step::Give(at, name) => {
                        let id = tree.add(directories[at as usize], name.as_bytes(), &FIFO);
                        expected[at as usize].insert(name, id);
                    }
                    Step::Take(at, name) => {
                        let found = tree.find(directories[at as usize], name.as_bytes());
                        prop_assert_eq!(tree.node_of(found), expected[at as usize].remove(&name));
                        tree.take(found);
                    }
                    Step::Empty(at) => {
                        let names = tree.names_in(directories[at as usize]);
                        prop_assert_eq!(names.len(), expected[at as usize].len());
                        let (taken, left) = names.split_at(names.len() / 2);
                        taken.iter().for_each(|&found| tree.take(found));
                        tree.leave_names(directories[at as usize], left);
                        let left: Vec<_> = left.iter().map(|&found| tree.node_of(found)).collect();
                        expected[at as usize].retain(|_, id| left.contains(&Some(*id)));
                    }
                }
            }
            let tree = tree.finish(vec![]);
            for (at, expected) in (1..).zip(expected) {
                let found: Vec<&[u8]> = tree.children(at).map(|(name, _)| name).collect();
                let expected: Vec<&[u8]> = expected.keys().map(|name| name.as_bytes()).collect();
                prop_assert_eq!(found, expected);
            }
        }
    }
}
