//! Compares what the unpackers made with what our views show, excuse by excuse.

use crate::{
    paths::is_at_or_below,
    rules::{Excuse, Fields, Rule, Scope},
    stack::unescape,
    unpackers::{Found, Seen, Tool, Tree},
};
use std::collections::{BTreeMap, BTreeSet};

/// What a comparison came to.
#[derive(Debug, Default)]
pub struct Verdict {
    /// One line each; none is what we want.
    pub differences: Vec<String>,
    /// The rules without which there would be differences, or without which a refusal would be one.
    pub rules_used: BTreeSet<(Rule, Tool)>,
    /// How each tool was compared.
    pub compared: BTreeMap<Tool, Compared>,
    /// Paths compared with some tool, all fields.
    pub paths: usize,
}

/// How far a tool's tree was compared with ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Compared {
    /// Every path; only times or attributes of some were excused.
    Whole,
    /// Some paths were left out altogether.
    Partly,
    /// The tool refused the stack.
    ToolRefused,
    /// We refused the stack, and so did the tool, or a rule says why only we do.
    WeRefused,
}

/// Compares. `ours` is the reason why our side refused the stack, if it did.
pub fn judge(excuses: &[Excuse], refusal: Option<&str>, seen: &Seen) -> Verdict {
    let mut verdict = Verdict::default();
    if let Some(reason) = refusal {
        verdict.judge_our_refusal(excuses, reason, seen);
        return verdict;
    }
    let [fuse, erofs] = seen.views() else {
        verdict
            .differences
            .push("there should be two views".to_owned());
        return verdict;
    };
    verdict.check_view("FUSE", fuse);
    verdict.compare_views(fuse, erofs);
    for (tool, tree) in seen.unpacked() {
        let mine: Vec<&Excuse> = excuses
            .iter()
            .filter(|excuse| excuse.tool == tool)
            .collect();
        verdict.compare_tool(tool, tree, fuse, &mine);
    }
    verdict
}

impl Verdict {
    fn judge_our_refusal(&mut self, excuses: &[Excuse], reason: &str, seen: &Seen) {
        let may_refuse = excuses
            .iter()
            .find(|excuse| excuse.scope == Scope::OurRefusal);
        for (tool, tree) in seen.unpacked() {
            self.compared.insert(tool, Compared::WeRefused);
            match may_refuse {
                _ if !tree.error.is_empty() => {}
                Some(excuse) => drop(self.rules_used.insert((excuse.rule, tool))),
                None => self.differences.push(format!(
                    "{} unpacks this, we refuse it: {reason}",
                    tool.name()
                )),
            }
        }
    }

    fn compare_tool(&mut self, tool: Tool, theirs: &Tree, ours: &Tree, excuses: &[&Excuse]) {
        if !theirs.error.is_empty() {
            self.compared.insert(tool, Compared::ToolRefused);
            match excuses.iter().find(|e| e.scope == Scope::Refusal) {
                Some(excuse) => drop(self.rules_used.insert((excuse.rule, tool))),
                None => self.differences.push(format!(
                    "{} refuses this, we show it: {}",
                    tool.name(),
                    theirs.error
                )),
            }
            return;
        }
        let comparison = Comparison {
            tool,
            from: theirs.from,
            to: theirs.to,
            theirs: Listing::new(theirs, excuses),
            ours: Listing::new(ours, excuses),
        };
        comparison.run(excuses, self);
    }

    /// The two views show the same in everything.
    fn compare_views(&mut self, fuse: &Tree, erofs: &Tree) {
        let by_path = |tree: &Tree| -> BTreeMap<String, Found> {
            let entries = tree.entries().iter().cloned();
            let without_inode = entries.map(|found| Found { inode: 0, ..found });
            without_inode
                .map(|found| (found.path.clone(), found))
                .collect()
        };
        let (fuse, erofs) = (by_path(fuse), by_path(erofs));
        let paths: BTreeSet<_> = fuse.keys().chain(erofs.keys()).collect();
        for path in paths {
            if fuse.get(path) != erofs.get(path) {
                self.differences.push(format!(
                    "{path}: the views differ\n  FUSE  {:?}\n  EROFS {:?}",
                    fuse.get(path),
                    erofs.get(path)
                ));
            }
        }
    }

    /// What holds for every tree: link counts are those of the names, and S5.
    fn check_view(&mut self, view: &str, tree: &Tree) {
        let mut names = BTreeMap::<u64, u64>::new();
        let mut subdirectories = BTreeMap::<&str, u64>::new();
        for found in tree.entries() {
            *names.entry(found.inode).or_default() += 1;
            if found.kind == "d" && found.path != "." {
                let parent = found
                    .path
                    .rsplit_once('/')
                    .map_or(".", |(parent, _)| parent);
                *subdirectories.entry(parent).or_default() += 1;
            }
            if is_runtime_path(&found.path) {
                self.differences
                    .push(format!("{}: should be left out (S5)", found.path));
            }
        }
        for found in tree.entries() {
            let right = match found.kind.as_str() {
                "d" => 2 + subdirectories.get(found.path.as_str()).unwrap_or(&0),
                _ => names[&found.inode],
            };
            if found.nlink != right {
                self.differences.push(format!(
                    "{}: {view} shows {} links, there are {right}",
                    found.path, found.nlink
                ));
            }
        }
    }
}

/// A tree without what is not compared: runtime directories (S5) and excused paths.
struct Listing<'a> {
    by_path: BTreeMap<&'a str, &'a Found>,
    /// The first of the paths left that have the same inode.
    first_names: BTreeMap<u64, &'a str>,
    left_out: BTreeSet<Rule>,
}

impl<'a> Listing<'a> {
    fn new(tree: &'a Tree, excuses: &[&Excuse]) -> Self {
        let mut listing = Self {
            by_path: BTreeMap::new(),
            first_names: BTreeMap::new(),
            left_out: BTreeSet::new(),
        };
        for found in tree.entries() {
            if is_runtime_path(&found.path) {
                continue;
            }
            match covering(excuses, &found.path, Fields::ALL) {
                Some(rule) => drop(listing.left_out.insert(rule)),
                None => drop(listing.by_path.insert(&found.path, found)),
            }
        }
        for (path, found) in &listing.by_path {
            listing.first_names.entry(found.inode).or_insert(path);
        }
        listing
    }
}

struct Comparison<'a> {
    tool: Tool,
    from: i64,
    to: i64,
    theirs: Listing<'a>,
    ours: Listing<'a>,
}

impl Comparison<'_> {
    fn run(&self, excuses: &[&Excuse], verdict: &mut Verdict) {
        let left_out: BTreeSet<Rule> = self
            .theirs
            .left_out
            .union(&self.ours.left_out)
            .copied()
            .collect();
        let compared = match left_out.is_empty() {
            true => Compared::Whole,
            false => Compared::Partly,
        };
        verdict.compared.insert(self.tool, compared);
        let used = left_out.into_iter().map(|rule| (rule, self.tool));
        verdict.rules_used.extend(used);
        // Directories whose permissions are not the same on both sides: what is below is open to others.
        let mut other_permissions: Vec<&str> = vec![];
        let (theirs, ours) = (&self.theirs.by_path, &self.ours.by_path);
        let paths: BTreeSet<&str> = theirs.keys().chain(ours.keys()).copied().collect();
        for path in paths {
            let (Some(theirs), Some(ours)) = (theirs.get(path), ours.get(path)) else {
                let what = match ours.contains_key(path) {
                    true => "should not be there",
                    false => "is missing",
                };
                self.report(verdict, path, what.to_owned());
                continue;
            };
            verdict.paths += 1;
            let permissions = |found: &Found| (found.mode, found.owner, found.xattrs.clone());
            if permissions(theirs) != permissions(ours) {
                other_permissions.push(path);
            }
            let is_excepted = other_permissions
                .iter()
                .any(|top| *top == "." || is_at_or_below(path.as_bytes(), top.as_bytes()));
            for (field, set, their, our) in self.fields(theirs, ours) {
                if their == our || field == "access" && is_excepted {
                    continue;
                }
                match self.excused(excuses, path, set, theirs) {
                    Some(rule) => drop(verdict.rules_used.insert((rule, self.tool))),
                    None => self.report(
                        verdict,
                        path,
                        format!("{field} is {our}, should be {their}"),
                    ),
                }
            }
        }
    }

    fn report(&self, verdict: &mut Verdict, path: &str, what: String) {
        let line = format!("{path}: {what} ({})", self.tool.name());
        verdict.differences.push(line);
    }

    fn excused(
        &self,
        excuses: &[&Excuse],
        path: &str,
        set: Fields,
        theirs: &Found,
    ) -> Option<Rule> {
        let by_clock = set == Fields::MTIME
            && theirs.kind == "d"
            && (self.from..=self.to).contains(&theirs.mtime.0);
        match by_clock {
            true => Some(Rule::Clock),
            false => covering(excuses, path, set),
        }
    }

    /// Every field with its set, and both sides for people.
    fn fields(&self, theirs: &Found, ours: &Found) -> [(&'static str, Fields, String, String); 11] {
        let [theirs, ours] =
            [(theirs, &self.theirs), (ours, &self.ours)].map(|(found, listing)| {
                let same_as = match found.kind.as_str() {
                    "d" => "",
                    _ => listing.first_names.get(&found.inode).copied().unwrap_or(""),
                };
                [
                    found.kind.clone(),
                    format!("{:04o}", found.mode),
                    format!("{}:{}", found.owner.0, found.owner.1),
                    found.size.to_string(),
                    format!("{}:{}", found.rdev.0, found.rdev.1),
                    found.target.clone(),
                    found.content.clone(),
                    same_as.to_owned(),
                    format!("{}.{:09}", found.mtime.0, found.mtime.1),
                    format!("{:?}", found.xattrs.clone().unwrap_or_default()),
                    found.access.clone(),
                ]
            });
        let names = [
            "type",
            "mode",
            "owner",
            "size",
            "device",
            "target",
            "content",
            "first name",
            "mtime",
            "xattrs",
            "access",
        ];
        let mut sides = names.into_iter().zip(theirs.into_iter().zip(ours));
        std::array::from_fn(|_| match sides.next() {
            Some((name, (theirs, ours))) => {
                let set = match name {
                    "mtime" => Fields::MTIME,
                    "xattrs" => Fields::XATTRS,
                    _ => Fields::ATTRIBUTES,
                };
                (name, set, theirs, ours)
            }
            None => unreachable!("eleven names, eleven fields"),
        })
    }
}

/// The rule that lets `fields` of `path` differ.
fn covering(excuses: &[&Excuse], path: &str, fields: Fields) -> Option<Rule> {
    let path = match path {
        "." => vec![],
        _ => unescape(path)?,
    };
    let covers = |excuse: &&&Excuse| match &excuse.scope {
        Scope::At(at, set) => *at == path && set.hold(fields),
        Scope::Below(top, set) => is_at_or_below(&path, top) && set.hold(fields),
        Scope::Refusal | Scope::OurRefusal => false,
    };
    excuses.iter().find(covers).map(|excuse| excuse.rule)
}

fn is_runtime_path(path: &str) -> bool {
    let first = path.split('/').next().unwrap_or_default();
    ["proc", "sys", "dev"].contains(&first)
}
