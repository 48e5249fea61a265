//! What a layer itself has put into the tree: its marks hide only what was there before
//! (layer.md: "whiteout files MUST only apply to resources in lower/parent layers").

use crate::{Entry, tree::NodeId};
use std::collections::{HashMap, HashSet};

/// Names and directories of the layer that is being applied.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// By directory, the names that the layer gave.
    names: HashMap<NodeId, HashSet<Vec<u8>>>,
    touched: HashMap<NodeId, Touched>,
}

/// How the layer tells of a directory in which it has something.
#[derive(Debug, Clone, Copy)]
pub(super) enum Touched {
    /// An entry describes it.
    Described,
    /// The first entry below it is of this time.
    Implied { mtime: i64, mtime_nsec: u32 },
}

impl Own {
    pub fn add_name(&mut self, parent: NodeId, name: &[u8]) {
        let names = self.names.entry(parent).or_default();
        if !names.contains(name) {
            names.insert(name.to_vec());
        }
    }

    pub fn has_name(&self, parent: NodeId, name: &[u8]) -> bool {
        let names = self.names.get(&parent);
        names.is_some_and(|names| names.contains(name))
    }

    pub fn describe(&mut self, directory: NodeId) {
        self.touched.insert(directory, Touched::Described);
    }

    pub fn imply(&mut self, directory: NodeId, by: &Entry) {
        let (mtime, mtime_nsec) = (by.mtime, by.mtime_nsec);
        let implied = Touched::Implied { mtime, mtime_nsec };
        self.touched.entry(directory).or_insert(implied);
    }

    pub fn touched(&self, directory: NodeId) -> Option<Touched> {
        self.touched.get(&directory).copied()
    }
}
