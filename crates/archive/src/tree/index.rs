//! Finding a name of a directory among those of all directories: one hash table for the whole tree.

use super::NodeId;
use std::hash::{BuildHasher, Hasher, RandomState};

/// No position.
pub(super) const NONE: u32 = u32::MAX;

/// The table knows the first so many names of a tree: most are never looked for, and those that are, not soon.
///
/// ```text
/// chains   │ 7 │ NONE │ 5 │ ...      by the hash's low bits: the latest name that has them
/// links    │ ... │ 5: (hash, 2) │ ... by the name's position: which name had them before
/// ```
#[derive(Debug, Default)]
pub(super) struct Index {
    chains: Vec<u32>,
    links: Vec<Link>,
    /// Its key is random: who writes an archive must not be able to choose names that meet.
    hasher: RandomState,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    hash: u32,
    next: u32,
}

/// What a name in a chain is.
pub(super) enum Judged {
    It,
    Another,
    Gone,
}

impl Index {
    pub fn hash(&self, directory: NodeId, name: &[u8]) -> u32 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u32(directory);
        hasher.write(name);
        hasher.finish() as u32
    }

    /// How many names the table knows.
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// Makes room for `names` in all.
    pub fn reserve(&mut self, names: usize) {
        if names <= self.chains.len() {
            return;
        }
        self.chains.clear();
        self.chains.resize(names.next_power_of_two(), NONE);
        for at in 0..self.links.len() {
            self.links[at].next = self.lead(self.links[at].hash, at as u32);
        }
    }

    /// Adds the name that stands at [`Self::len`].
    pub fn push(&mut self, directory: NodeId, name: &[u8]) {
        let hash = self.hash(directory, name);
        let at = self.links.len() as u32;
        let next = self.lead(hash, at);
        self.links.push(Link { hash, next });
    }

    /// The name with this hash that `judge` takes for the one that is looked for. What is gone is forgotten on the way, so
    /// that names that come and go do not pile up.
    pub fn find(&mut self, hash: u32, judge: impl Fn(u32) -> Judged) -> Option<u32> {
        let chain = self.chain(hash);
        let mut before = NONE;
        let mut at = *self.chains.get(chain)?;
        while let Some(&Link { hash: there, next }) = self.links.get(at as usize) {
            match judge(at) {
                Judged::It if there == hash => return Some(at),
                Judged::Gone => match self.links.get_mut(before as usize) {
                    Some(before) => before.next = next,
                    None => self.chains[chain] = next,
                },
                _ => before = at,
            }
            at = next;
        }
        None
    }

    fn chain(&self, hash: u32) -> usize {
        hash as usize & self.chains.len().wrapping_sub(1)
    }

    /// Puts a name at the head of its chain, and returns which was there.
    fn lead(&mut self, hash: u32, at: u32) -> u32 {
        let chain = self.chain(hash);
        std::mem::replace(&mut self.chains[chain], at)
    }
}
