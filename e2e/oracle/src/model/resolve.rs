//! Where a member's path leads, through the symbolic links that are there when its turn comes.

use super::{Model, Shape};
use crate::{paths::Path, unpackers::Tool};

/// As in path_resolution(7).
const LINKS_FOLLOWED_MAX: usize = 40;

/// Where a path's directory is.
#[derive(Default)]
pub(super) struct Resolved {
    pub path: Path,
    /// Components that are not there.
    pub missing: Vec<Path>,
    /// Symbolic links on the way.
    pub links: Vec<Path>,
    /// A component that is no directory.
    pub no_directory: Option<Path>,
    pub tainted: Vec<Tool>,
}

pub(super) struct Looped;

impl Model {
    /// The directory that `names` lead to.
    pub(super) fn resolve(&self, names: &[&[u8]]) -> Result<Resolved, Looped> {
        let mut to_go: Vec<Vec<u8>> = names.iter().rev().map(|name| name.to_vec()).collect();
        let mut at = Resolved::default();
        let mut entered: Vec<Vec<u8>> = vec![];
        while let Some(name) = to_go.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    entered.pop();
                    continue;
                }
                _ => entered.push(name),
            }
            let path = entered.join(&b'/');
            let Some(node) = self.nodes.get(&path) else {
                at.missing.push(path);
                continue;
            };
            at.tainted.extend(&node.tainted);
            match &node.shape {
                Shape::Directory => {}
                Shape::File | Shape::Special => {
                    at.no_directory.get_or_insert(path);
                }
                Shape::Link(target) => {
                    at.links.push(path);
                    if at.links.len() > LINKS_FOLLOWED_MAX {
                        return Err(Looped);
                    }
                    entered.pop();
                    if target.starts_with(b"/") {
                        entered.clear();
                    }
                    to_go.extend(target.rsplit(|&byte| byte == b'/').map(<[u8]>::to_vec));
                }
            }
        }
        at.path = entered.join(&b'/');
        Ok(at)
    }
}
