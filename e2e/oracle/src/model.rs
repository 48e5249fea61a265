//! Replays a stack as the unpackers do, member after member, to find out which [`Rule`]s apply, and to
//! which paths. It is no fourth unpacker: content and attributes are followed only where a rule asks.

mod resolve;

use crate::{
    paths::{Path, is_at_or_below, is_runtime, join, leaves_the_root, normalise, split},
    rules::{Excuse, Fields, Rule, Scope},
    stack::{Attributes, Bytes, Kind, Member, OPAQUE_MARK, SparseFormat, Stack, WHITEOUT_PREFIX},
    unpackers::Tool,
};
use resolve::Resolved;
use std::collections::{BTreeMap, BTreeSet};

/// The excuses for differences over `stack`.
pub fn excuses(stack: &Stack) -> Vec<Excuse> {
    let mut model = Model::new();
    for (layer, members) in stack.layers.iter().map(|layer| &layer.members).enumerate() {
        model.layer = layer;
        for member in members {
            if model.apply(member) == Flow::EverybodyRefuses {
                return model.excuses;
            }
        }
        model.end_layer();
    }
    model.judge_attributes();
    model.excuses
}

const UNPRINCIPLED: [Tool; 2] = [Tool::Containerd, Tool::Storage];
const SET_GID: u32 = 0o2000;
const ACCESS_LIST_DEFAULT: &str = "system.posix_acl_default";

struct Model {
    layer: usize,
    /// By path from the root, links resolved; the root is the empty path.
    nodes: BTreeMap<Path, Node>,
    inodes: Vec<Attributes>,
    excuses: Vec<Excuse>,
    /// Excuses for whatever paths these inodes have in the end.
    of_inodes: Vec<(usize, Rule, Tool, Fields)>,
    root_has_entry: bool,
    /// Directories of the current layer: the name of the entry, where that was, the inode.
    directories: Vec<(Vec<Vec<u8>>, Path, usize)>,
    /// Directories with a default access list, inherited ones included.
    with_list: BTreeSet<usize>,
}

#[derive(Clone)]
struct Node {
    shape: Shape,
    inode: usize,
    /// The layer that made it.
    made_in: usize,
    /// The last layer that has an entry for it.
    described_in: Option<usize>,
    /// The last layer that has an entry at or below it.
    touched_in: usize,
    /// Tools that do not have it, or have something else.
    tainted: Vec<Tool>,
}

#[derive(Clone, PartialEq)]
enum Shape {
    Directory,
    Link(Path),
    File,
    /// FIFO or device.
    Special,
}

#[derive(PartialEq)]
enum Flow {
    GoOn,
    EverybodyRefuses,
}

impl Model {
    fn new() -> Self {
        let root = Node {
            shape: Shape::Directory,
            inode: 0,
            made_in: 0,
            described_in: None,
            touched_in: 0,
            tainted: vec![],
        };
        Self {
            layer: 0,
            nodes: BTreeMap::from([(vec![], root)]),
            inodes: vec![Attributes::plain(0o755)],
            excuses: vec![],
            of_inodes: vec![],
            root_has_entry: false,
            directories: vec![],
            with_list: BTreeSet::new(),
        }
    }

    fn apply(&mut self, member: &Member) -> Flow {
        let names = normalise(&member.name);
        if leaves_the_root(&member.name) {
            self.refusal(Rule::LeavesTheRoot, &[Tool::Storage]);
        }
        let Some((name, parents)) = names.split_last() else {
            self.describe_root(member);
            return Flow::GoOn;
        };
        let Ok(parent) = self.resolve(parents) else {
            self.refusal(Rule::Loop, &Tool::ALL);
            self.excuse(Rule::Loop, &Tool::ALL, Scope::OurRefusal);
            return Flow::EverybodyRefuses;
        };
        self.note_taint(&parent.tainted);
        if let Some(file) = &parent.no_directory {
            self.refusal(Rule::ParentIsNoDirectory, &UNPRINCIPLED);
            let (rule, umoci) = (Rule::ParentIsNoDirectory, [Tool::Umoci]);
            self.at(rule, &umoci, file.clone(), Fields::OF_ENTRY);
            // What is implied below inherits the bit.
            if self.is_set_gid(file) {
                self.below(rule, &umoci, file.clone(), Fields::ATTRIBUTES);
            }
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) {
            self.hide(&parent, hidden, *name == OPAQUE_MARK);
            return Flow::GoOn;
        }
        let path = join(&parent.path, name);
        if is_runtime(&names) && !is_runtime(&split(&path)) {
            self.below(Rule::RuntimeDirs, &Tool::ALL, path.clone(), Fields::ALL);
        }
        let mut tainted = parent.tainted.clone();
        if is_runtime(&names) {
            tainted.extend(Tool::ALL);
        }
        match &member.kind {
            Kind::Hardlink(target) => return self.link(member, &path, &target.0, parent, tainted),
            Kind::Directory => {
                self.make_parents(&parent, &tainted);
                self.directory(member, path.clone(), tainted);
                let inode = self.nodes[&path].inode;
                let names = names.iter().map(|name| name.to_vec()).collect();
                self.directories.push((names, path, inode));
            }
            kind => {
                self.make_parents(&parent, &tainted);
                let shape = match kind {
                    Kind::Symlink(target) => Shape::Link(target.0.clone()),
                    Kind::File(_) | Kind::Sparse { .. } => Shape::File,
                    _ => Shape::Special,
                };
                if is_old_gnu_sparse(kind) {
                    self.refusal(Rule::OldGnuSparse, &Tool::ALL);
                }
                if is_off_borders(kind) {
                    self.excuse(Rule::SparseOffBorders, &Tool::ALL, Scope::OurRefusal);
                }
                self.check_user_xattrs(&member.attributes, shape == Shape::File);
                self.replace(path, shape, member.attributes.clone(), tainted);
            }
        }
        Flow::GoOn
    }

    fn describe_root(&mut self, member: &Member) {
        self.root_has_entry = true;
        self.note_directory_xattrs(0, &member.attributes);
        self.set_attributes(0, member.attributes.clone());
        let (rule, tools) = (Rule::RootEntry, [Tool::Containerd]);
        self.at(rule, &tools, vec![], Fields::OF_ENTRY);
    }

    fn end_layer(&mut self) {
        for (names, path, inode) in std::mem::take(&mut self.directories) {
            let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
            let Some((name, parents)) = names.split_last() else {
                continue;
            };
            let parent = self.resolve(parents);
            let leads_there = parent
                .as_ref()
                .is_ok_and(|parent| parent.tainted.is_empty());
            let now = parent.map(|parent| join(&parent.path, name));
            let node = now.as_ref().ok().and_then(|now| self.nodes.get(now));
            let same = |node: &Node| node.inode == inode && node.tainted.is_empty();
            let is_there = now.as_ref().is_ok_and(|now| *now == path) && node.is_some_and(same);
            if leads_there && is_there {
                continue;
            }
            self.refusal(Rule::DirectoryGone, &UNPRINCIPLED);
            let through_link = self.resolve(&[parents, &[*name]].concat());
            for now in now.into_iter().chain(through_link.map(|found| found.path)) {
                if let Some(inode) = self.nodes.get(&now).map(|node| node.inode) {
                    let hit = |tool| (inode, Rule::DirectoryGone, tool, Fields::MTIME);
                    self.of_inodes.extend(UNPRINCIPLED.map(hit));
                }
                self.at(Rule::DirectoryGone, &UNPRINCIPLED, now, Fields::MTIME);
            }
        }
    }

    fn set_attributes(&mut self, inode: usize, attributes: Attributes) {
        let is_list = |(name, _): &(String, _)| name == ACCESS_LIST_DEFAULT;
        if attributes.xattrs.iter().any(is_list) {
            self.with_list.insert(inode);
        }
        self.inodes[inode] = attributes;
    }

    fn directory(&mut self, member: &Member, path: Path, tainted: Vec<Tool>) {
        match self.nodes.get(&path).map(|node| (&node.shape, node.inode)) {
            Some((Shape::Directory, inode)) => {
                self.note_directory_xattrs(inode, &member.attributes);
                self.set_attributes(inode, member.attributes.clone());
                // Who came to another directory leaves this one as it was.
                self.at(Rule::Consequence, &tainted, path.clone(), Fields::OF_ENTRY);
                let layer = self.layer;
                if let Some(node) = self.nodes.get_mut(&path) {
                    node.described_in = Some(layer);
                    node.touched_in = layer;
                }
            }
            _ => self.replace(path, Shape::Directory, member.attributes.clone(), tainted),
        }
    }

    fn note_directory_xattrs(&mut self, inode: usize, new: &Attributes) {
        let has = |name: &String| new.xattrs.iter().any(|(there, _)| there == name);
        let lost = self.inodes[inode].xattrs.iter().any(|(name, _)| !has(name));
        // What a tool has kept once, it keeps for good.
        if lost {
            for tool in UNPRINCIPLED {
                self.of_inodes
                    .push((inode, Rule::DirectoryXattrs, tool, Fields::XATTRS));
            }
        }
    }

    fn link(
        &mut self,
        member: &Member,
        path: &Path,
        target: &[u8],
        parent: Resolved,
        mut tainted: Vec<Tool>,
    ) -> Flow {
        if leaves_the_root(target) {
            self.refusal(Rule::LeavesTheRoot, &[Tool::Storage]);
        }
        let named_as_directory = target.ends_with(b"/");
        let names = normalise(target);
        if is_runtime(&names) {
            self.excuse(Rule::RuntimeDirs, &Tool::ALL, Scope::OurRefusal);
        }
        let (name, parents) = match names.split_last() {
            Some(split) => split,
            None => return self.everybody_refuses(Rule::LinkToDirectory),
        };
        let Ok(target_parent) = self.resolve(parents) else {
            return self.everybody_refuses(Rule::Loop);
        };
        tainted.extend(&target_parent.tainted);
        let target = join(&target_parent.path, name);
        if is_runtime(&split(&target)) {
            self.excuse(Rule::RuntimeDirs, &Tool::ALL, Scope::OurRefusal);
        }
        let found = self.nodes.get(&target).cloned();
        let Some(found) = found.filter(|_| target_parent.no_directory.is_none()) else {
            return self.everybody_refuses(Rule::LinkToNothing);
        };
        if found.shape == Shape::Directory {
            return self.everybody_refuses(Rule::LinkToDirectory);
        }
        if named_as_directory && matches!(found.shape, Shape::Link(_)) {
            self.refusal(Rule::LinkToSlash, &[Tool::Containerd]);
            tainted.push(Tool::Containerd);
        }
        let on_the_way = is_at_or_below(&target, path) || is_at_or_below(path, &target);
        if on_the_way || target_parent.links.contains(path) {
            return self.everybody_refuses(Rule::LinkToItself);
        }
        tainted.extend(&found.tainted);
        self.note_taint(&tainted);
        self.check_user_xattrs(&member.attributes, found.shape == Shape::File);
        self.note_link_attributes(&found, &member.attributes);
        self.make_parents(&parent, &tainted);
        self.remove(path);
        // A tool that has something else under the target's name gives that to this path, too.
        for &tool in &tainted {
            self.below(Rule::Consequence, &[tool], path.clone(), Fields::ALL);
        }
        let node = Node {
            described_in: Some(self.layer),
            touched_in: self.layer,
            tainted,
            ..found
        };
        self.nodes.insert(path.clone(), node);
        Flow::GoOn
    }

    /// Whoever does not refuse has found what the rule says is not there.
    fn everybody_refuses(&mut self, rule: Rule) -> Flow {
        self.refusal(rule, &Tool::ALL);
        self.excuse(rule, &Tool::ALL, Scope::OurRefusal);
        Flow::EverybodyRefuses
    }

    fn note_link_attributes(&mut self, found: &Node, new: &Attributes) {
        let old = &self.inodes[found.inode];
        if old == new {
            return;
        }
        for tool in UNPRINCIPLED {
            let rule = Rule::LinkAttributes;
            let excuse = (found.inode, rule, tool, Fields::OF_ENTRY);
            self.of_inodes.push(excuse);
        }
    }

    /// A whiteout of `name` in `parent`, or an opaque mark on `parent`.
    fn hide(&mut self, parent: &Resolved, name: &[u8], is_opaque: bool) {
        for missing in &parent.missing {
            self.below(
                Rule::WhiteoutMakesParents,
                &UNPRINCIPLED,
                missing.clone(),
                Fields::ALL,
            );
        }
        if !self.nodes.contains_key(&parent.path) || parent.no_directory.is_some() {
            return;
        }
        let top = match is_opaque {
            true => parent.path.clone(),
            false => join(&parent.path, name),
        };
        let below: Vec<Path> = self
            .nodes
            .keys()
            .filter(|path| is_at_or_below(path, &top) && (!is_opaque || **path != top))
            .cloned()
            .collect();
        let mut removed_by_others: Vec<Path> = vec![];
        for path in below {
            // Who did not come here by what an earlier rule took away has hidden something else.
            for &tool in &parent.tainted {
                self.below(Rule::Consequence, &[tool], path.clone(), Fields::ALL);
            }
            let Some(node) = self.nodes.get_mut(&path) else {
                continue;
            };
            if node.touched_in != self.layer {
                self.nodes.remove(&path);
                continue;
            }
            let described = node.described_in == Some(self.layer);
            let goes_with_parent = |top: &Path| is_at_or_below(&path, top);
            if !is_opaque || !described || removed_by_others.iter().any(goes_with_parent) {
                node.tainted.extend(UNPRINCIPLED);
                removed_by_others.push(path.clone());
            }
            let kept_by_umoci = !described && node.made_in != self.layer;
            let rule = match is_opaque {
                true => Rule::OwnLayerOpaque,
                false => Rule::OwnLayerWhiteout,
            };
            if removed_by_others.contains(&path) {
                self.below(rule, &UNPRINCIPLED, path.clone(), Fields::ALL);
            }
            if kept_by_umoci {
                let (rule, tools) = (Rule::MarkAfterEntries, [Tool::Umoci]);
                self.at(rule, &tools, path, Fields::OF_ENTRY);
            }
        }
    }

    /// Makes the missing parents, replaces what is in the way, and marks them as this layer's.
    fn make_parents(&mut self, parent: &Resolved, tainted: &[Tool]) {
        if let Some(in_the_way) = &parent.no_directory {
            self.remove(in_the_way);
        }
        let names = split(&parent.path);
        for depth in 0..=names.len() {
            let path = names[..depth].join(&b'/');
            let layer = self.layer;
            if let Some(node) = self.nodes.get_mut(&path) {
                node.touched_in = layer;
                continue;
            }
            let mut implied = Attributes::plain(0o755);
            if self.is_set_gid(&names[..depth.saturating_sub(1)].join(&b'/')) {
                implied.mode |= SET_GID;
                let rule = Rule::SetGidParent;
                self.below(rule, &Tool::ALL, path.clone(), Fields::ATTRIBUTES);
            }
            if self.is_in_listed(&path) {
                let fields = Fields::ATTRIBUTES.and(Fields::XATTRS);
                self.below(Rule::DefaultAcl, &Tool::ALL, path.clone(), fields);
            }
            for &tool in tainted {
                self.below(Rule::Consequence, &[tool], path.clone(), Fields::ALL);
            }
            self.insert(path, Shape::Directory, implied, tainted.to_vec());
        }
    }

    /// Whether what is created at `path` inherits a default access list from its directory.
    fn is_in_listed(&self, path: &[u8]) -> bool {
        let names = split(path);
        let parent = names[..names.len().saturating_sub(1)].join(&b'/');
        let node = self.nodes.get(&parent);
        node.is_some_and(|node| self.with_list.contains(&node.inode))
    }

    fn is_set_gid(&self, path: &[u8]) -> bool {
        let node = self.nodes.get(path);
        node.is_some_and(|node| self.inodes[node.inode].mode & SET_GID != 0)
    }

    fn replace(&mut self, path: Path, shape: Shape, attributes: Attributes, tainted: Vec<Tool>) {
        self.remove(&path);
        for &tool in &tainted {
            self.below(Rule::Consequence, &[tool], path.clone(), Fields::ALL);
        }
        self.insert(path.clone(), shape, attributes, tainted);
        let layer = self.layer;
        if let Some(node) = self.nodes.get_mut(&path) {
            node.described_in = Some(layer);
        }
    }

    fn insert(&mut self, path: Path, shape: Shape, attributes: Attributes, tainted: Vec<Tool>) {
        let inode = self.inodes.len();
        self.inodes.push(attributes.clone());
        if shape == Shape::Directory {
            self.set_attributes(inode, attributes);
        }
        if self.is_in_listed(&path) {
            let fields = Fields::ATTRIBUTES.and(Fields::XATTRS);
            for tool in UNPRINCIPLED {
                let excuse = (inode, Rule::DefaultAcl, tool, fields);
                self.of_inodes.push(excuse);
            }
            if shape == Shape::Directory {
                self.with_list.insert(inode);
            }
        }
        let node = Node {
            shape,
            inode,
            made_in: self.layer,
            described_in: None,
            touched_in: self.layer,
            tainted,
        };
        self.nodes.insert(path, node);
    }

    fn remove(&mut self, top: &[u8]) {
        self.nodes.retain(|path, _| !is_at_or_below(path, top));
    }

    fn check_user_xattrs(&mut self, attributes: &Attributes, may_have_them: bool) {
        let has_some = |(name, _): &(String, _)| name.starts_with("user.");
        if !may_have_them && attributes.xattrs.iter().any(has_some) {
            self.refusal(Rule::UserXattrOnSpecial, &[Tool::Umoci, Tool::Storage]);
        }
    }

    /// Rules that look at what the inodes have in the end.
    fn judge_attributes(&mut self) {
        if !self.root_has_entry {
            self.at(Rule::RootWithoutEntry, &Tool::ALL, vec![], Fields::MTIME);
        }
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|(path, node)| (path.clone(), node.inode))
            .collect();
        for (path, inode) in nodes {
            let Attributes { mtime, xattrs, .. } = self.inodes[inode].clone();
            if mtime.0 < 0 {
                let rule = Rule::TimeBefore1970;
                self.at(rule, &UNPRINCIPLED, path.clone(), Fields::MTIME);
            }
            for (name, value) in xattrs {
                if value.0.is_empty() {
                    self.at(Rule::EmptyXattr, &Tool::ALL, path.clone(), Fields::XATTRS);
                }
                if name == "security.selinux" {
                    let tools = [Tool::Umoci, Tool::Storage];
                    self.at(Rule::SelinuxXattr, &tools, path.clone(), Fields::XATTRS);
                }
                if name.starts_with("trusted.") {
                    let tools = [Tool::Containerd];
                    self.at(Rule::TrustedXattr, &tools, path.clone(), Fields::XATTRS);
                }
            }
            for (flagged, rule, tool, fields) in self.of_inodes.clone() {
                if flagged == inode {
                    self.at(rule, &[tool], path.clone(), fields);
                }
            }
        }
    }

    /// After a tool was let have something else, it may stumble over that.
    fn note_taint(&mut self, tools: &[Tool]) {
        self.refusal(Rule::Consequence, tools);
    }

    fn refusal(&mut self, rule: Rule, tools: &[Tool]) {
        self.excuse(rule, tools, Scope::Refusal);
    }

    fn at(&mut self, rule: Rule, tools: &[Tool], path: Path, fields: Fields) {
        self.excuse(rule, tools, Scope::At(path, fields));
    }

    fn below(&mut self, rule: Rule, tools: &[Tool], path: Path, fields: Fields) {
        self.excuse(rule, tools, Scope::Below(path, fields));
    }

    fn excuse(&mut self, rule: Rule, tools: &[Tool], scope: Scope) {
        for &tool in tools {
            let scope = scope.clone();
            let excuse = Excuse { rule, tool, scope };
            if !self.excuses.contains(&excuse) {
                self.excuses.push(excuse);
            }
        }
    }
}

fn is_old_gnu_sparse(kind: &Kind) -> bool {
    let format = SparseFormat::OldGnu;
    matches!(kind, Kind::Sparse { format: found, .. } if *found == format)
}

/// Whether a piece of a sparse file begins or ends amid a block of 512 bytes, but for the file's end.
fn is_off_borders(kind: &Kind) -> bool {
    let Kind::Sparse { size, runs, .. } = kind else {
        return false;
    };
    let off = |(at, run): &(u64, Bytes)| {
        let end = at + run.0.len() as u64;
        !at.is_multiple_of(512) || !end.is_multiple_of(512) && end != *size
    };
    runs.iter().filter(|(_, run)| !run.0.is_empty()).any(off)
}
