//! Paths inside an image, followed as the kernel would with the image as the root (path_resolution(7)).

use crate::mapped::Mapped;
use clip_archive::erofs::{FileType, Image, Inode, ReadError as TreeError};

/// Symbolic links followed for one path.
const LINKS_FOLLOWED_MAX: usize = 40;

/// Where a path leads.
#[derive(Debug, Clone, Copy)]
pub enum Resolved {
    /// To this node.
    Found(Inode),
    /// Nowhere.
    Missing,
    /// Through something that is no directory.
    NotADirectory,
    /// In circles.
    Loop,
}

/// Follows `path` from the root, symbolic links included; `follow_last` says whether a link at
/// the end is followed, too.
pub fn resolve(
    tree: &Image<Mapped>,
    path: &[u8],
    follow_last: bool,
) -> Result<Resolved, TreeError> {
    walk(tree, path, follow_last).map(|(resolved, _)| resolved)
}

/// The same, with the path that leads there without links and `..`.
pub fn walk(
    tree: &Image<Mapped>,
    path: &[u8],
    follow_last: bool,
) -> Result<(Resolved, Vec<u8>), TreeError> {
    let nowhere = |resolved| Ok((resolved, Vec::new()));
    let mut to_go: Vec<&[u8]> = components(path).collect();
    let mut entered = vec![tree.root()];
    // Of what was entered below the root.
    let mut names: Vec<&[u8]> = Vec::new();
    let mut links = 0;
    while let Some(name) = to_go.pop() {
        let at = *entered.last().unwrap_or(&tree.root());
        if tree.inode(at)?.kind != FileType::Directory {
            return nowhere(Resolved::NotADirectory);
        }
        if name == b".." {
            if entered.len() > 1 {
                entered.pop();
                names.pop();
            }
            continue;
        }
        let Some(nid) = tree.lookup(at, name)? else {
            return nowhere(Resolved::Missing);
        };
        if tree.inode(nid)?.kind != FileType::Symlink || (to_go.is_empty() && !follow_last) {
            entered.push(nid);
            names.push(name);
            continue;
        }
        links += 1;
        if links > LINKS_FOLLOWED_MAX {
            return nowhere(Resolved::Loop);
        }
        let target = tree.read_link(nid)?;
        if target.first() == Some(&b'/') {
            entered.truncate(1);
            names.clear();
        }
        to_go.extend(components(target));
    }
    let last = *entered.last().unwrap_or(&tree.root());
    let straight: Vec<_> = names.iter().flat_map(|name| [b"/", *name]).collect();
    Ok((Resolved::Found(tree.inode(last)?), straight.concat()))
}

/// The components of a path, last first.
fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.rsplit(|&b| b == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
}
