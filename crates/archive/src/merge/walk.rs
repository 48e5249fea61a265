//! Following a path through an image, its symbolic links included, without leaving the root.

use super::ROOT;
use crate::tree::NodeId;

/// Symbolic links followed for one path before we call it a loop; Linux' limit (path_resolution(7)).
pub(super) const LINKS_FOLLOWED_MAX: usize = 40;

/// Too many symbolic links.
pub(super) struct Looped;

/// A walk through the image: components still to go, and those entered so far, so that `..` in a
/// link's target can go back without leaving the root. What is not a directory has no node.
pub(super) struct Walk<'a> {
    to_go: Vec<&'a [u8]>,
    pub entered: Vec<(&'a [u8], Option<NodeId>)>,
    pub links_followed: usize,
    /// Components looked at.
    pub steps: u64,
}

impl<'a> Walk<'a> {
    pub fn new(path: &'a [u8]) -> Self {
        Self {
            to_go: components_reversed(path).collect(),
            entered: vec![],
            links_followed: 0,
            steps: 0,
        }
    }

    /// Where the walk is, if that exists.
    pub fn directory(&self) -> Option<NodeId> {
        self.entered.last().map_or(Some(ROOT), |(_, node)| *node)
    }

    /// The next component that is a name; `.` and `..` are dealt with.
    pub fn next_name(&mut self) -> Option<&'a [u8]> {
        loop {
            let name = self.to_go.pop()?;
            self.steps += 1;
            match name {
                b".." => drop(self.entered.pop()),
                b"." => {}
                _ => return Some(name),
            }
        }
    }

    /// Goes on through a symbolic link that stands where the last name led.
    pub fn follow(&mut self, target: &'a [u8]) -> Result<(), Looped> {
        self.links_followed += 1;
        if self.links_followed > LINKS_FOLLOWED_MAX {
            return Err(Looped);
        }
        if target.first() == Some(&b'/') {
            self.entered.clear();
        }
        self.to_go.extend(components_reversed(target));
        Ok(())
    }
}

fn components_reversed(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.rsplit(|&b| b == b'/').filter(|name| !name.is_empty())
}

/// Parent and name.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}
