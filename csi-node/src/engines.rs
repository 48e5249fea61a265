//! Who serves the tree of an image: our FUSE server, or the kernel's own EROFS over it (docs/design/0010).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::ValueEnum;
use rustix::io::Errno;

use crate::syscalls::MountError;

/// What the administrator chose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// `erofs` where the kernel can, else `fuse`.
    #[default]
    Auto,
    /// FUSE: on every kernel.
    Fuse,
    /// The kernel's EROFS: names and attributes never leave the kernel.
    Erofs,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Engine::Auto => "auto",
            Engine::Fuse => "fuse",
            Engine::Erofs => "erofs",
        })
    }
}

/// The choice, and what this node's kernel made of it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Engines {
    chosen: Engine,
    /// The first mount shows it.
    kernel_cannot: Arc<AtomicBool>,
}

impl Engines {
    /// Nothing has been tried yet.
    pub fn new(chosen: Engine) -> Engines {
        Engines {
            chosen,
            kernel_cannot: Arc::default(),
        }
    }

    /// Whether the kernel is to serve the next tree.
    pub fn wants_kernel(&self) -> bool {
        self.chosen != Engine::Fuse && !self.kernel_cannot.load(Ordering::Relaxed)
    }

    /// What a try of the kernel's EROFS means. With `auto` FUSE serves what the kernel does not, and a kernel that cannot
    /// serve any image is not asked again.
    pub fn judge(&self, tried: Result<(), MountError>) -> Result<(), MountError> {
        match (tried, self.chosen) {
            (Err(error), Engine::Auto) => {
                if is_of_the_kernel(&error) {
                    tracing::warn!(%error, "this node's kernel does not serve images itself; FUSE does. With engine `fuse` it is not tried");
                    self.kernel_cannot.store(true, Ordering::Relaxed);
                } else {
                    tracing::warn!(%error, "the kernel does not serve this image; FUSE does");
                }
                Ok(())
            }
            (tried, _) => tried,
        }
    }
}

/// Whether every other image would fail alike: there is no EROFS (ENODEV), it wants block devices (ENOTBLK: before Linux
/// 6.12, or for files on a filesystem like tmpfs), or lacks a feature, or no overlay can be put on it (EINVAL, EOPNOTSUPP).
/// All else may be gone the next time: a full disk, too many open files.
fn is_of_the_kernel(error: &MountError) -> bool {
    let MountError::Kernel { source, .. } = error else {
        return false;
    };
    let errno = Errno::from_io_error(source);
    [Errno::NODEV, Errno::NOTBLK, Errno::INVAL, Errno::OPNOTSUPP]
        .into_iter()
        .any(|cannot| errno == Some(cannot))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed_with(errno: Errno) -> Result<(), MountError> {
        Err(MountError::Kernel {
            point: "/tree".into(),
            source: errno.into(),
        })
    }

    #[test]
    fn auto_tries_once_and_goes_on_with_fuse() {
        let engines = Engines::new(Engine::Auto);
        assert!(engines.wants_kernel());
        engines.judge(Ok(())).unwrap();
        assert!(engines.wants_kernel());
        engines.judge(failed_with(Errno::NODEV)).unwrap();
        assert!(!engines.wants_kernel());
    }

    #[test]
    fn what_may_pass_is_tried_again_with_the_next_image() {
        let engines = Engines::new(Engine::Auto);
        engines.judge(failed_with(Errno::NOSPC)).unwrap();
        assert!(engines.wants_kernel());
    }

    #[test]
    fn who_names_an_engine_gets_it_or_an_error() {
        assert!(!Engines::new(Engine::Fuse).wants_kernel());
        let engines = Engines::new(Engine::Erofs);
        engines.judge(failed_with(Errno::NODEV)).unwrap_err();
        assert!(engines.wants_kernel());
    }
}
