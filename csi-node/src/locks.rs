//! One operation at a time for each target: a second one is turned away, not queued, as the CSI specification asks
//! (`ABORTED`); kubelet repeats it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// The targets that are being worked on.
#[derive(Clone, Debug, Default)]
pub struct TargetLocks {
    held: Arc<Mutex<HashSet<PathBuf>>>,
}

/// The right to work on one target; given back when dropped.
#[derive(Debug)]
pub struct Held {
    locks: TargetLocks,
    target: PathBuf,
}

/// Somebody else works on the target.
#[derive(Debug, thiserror::Error)]
#[error("another operation on {} is in progress; try again", .0.display())]
pub struct Busy(PathBuf);

impl TargetLocks {
    /// Takes the target, or tells that it is taken.
    pub fn hold(&self, target: &Path) -> Result<Held, Busy> {
        if self.lock().insert(target.to_owned()) {
            Ok(Held {
                locks: self.clone(),
                target: target.to_owned(),
            })
        } else {
            Err(Busy(target.to_owned()))
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.held
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.locks.lock().remove(&self.target);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_held_once_and_free_again_after_the_drop() {
        let locks = TargetLocks::default();
        let held = locks.hold(Path::new("/a")).unwrap();
        assert!(locks.hold(Path::new("/a")).is_err());
        assert!(locks.hold(Path::new("/b")).is_ok());
        drop(held);
        assert!(locks.hold(Path::new("/a")).is_ok());
    }
}
