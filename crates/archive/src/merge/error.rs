//! Why layers cannot be merged, and at which entry.

use crate::{Entry, entry::EntryKind, limits};

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
        "layer {layer}: {path:?}: symbolic links send the image's entries through too many \
         directories (more than {} for each entry)",
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
    /// More text in names and link targets than an image may have.
    #[error(
        "layer {layer}: {path:?}: with it the image's names and link targets have more than {} bytes",
        limits::TREE_TEXT_MAX
    )]
    TooMuchText {
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

/// What a step needs of an entry: its attributes, and for errors its name.
pub(super) struct Context<'a> {
    pub layer: usize,
    pub entry: &'a Entry,
}

impl Context<'_> {
    pub fn hardlink_error(&self, problem: &'static str) -> MergeError {
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

    pub fn too_many_steps(&self) -> MergeError {
        MergeError::TooManySteps {
            layer: self.layer,
            path: lossy(&self.entry.path),
        }
    }

    pub fn too_many_nodes(&self) -> MergeError {
        MergeError::TooManyNodes {
            layer: self.layer,
            path: lossy(&self.entry.path),
        }
    }

    pub fn too_much_text(&self) -> MergeError {
        MergeError::TooMuchText {
            layer: self.layer,
            path: lossy(&self.entry.path),
        }
    }

    pub fn loop_error(&self) -> MergeError {
        MergeError::Loop {
            layer: self.layer,
            path: lossy(&self.entry.path),
        }
    }
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
