//! Everything that is done with a layer's decoded bytes.

use crate::{
    hash::Sha256,
    layer::{FileLayer, LayerContent, LayerError, LayerInfo},
    stage::Work,
    tar::{TarError, TarWalker, Walked},
};
use clip_archive::{Digest, Entry, EntryKind, Segment, merge::is_runtime_path};

/// A layer's content, as far as it is decoded.
#[derive(Debug)]
pub enum Content {
    /// A tar.
    Tar(Box<TarContent>),
    /// One file; its bytes are of no interest.
    File(FileLayer),
}

/// The hash and the walk of a tar.
#[derive(Debug)]
pub struct TarContent {
    hash: Sha256,
    walker: TarWalker,
    top: Option<Vec<u8>>,
}

impl Content {
    pub fn new(content: LayerContent) -> Self {
        match content {
            LayerContent::Tar { top } => Self::Tar(Box::new(TarContent {
                hash: Sha256::new(),
                walker: TarWalker::new(),
                top,
            })),
            LayerContent::File(file) => Self::File(file),
        }
    }

    /// The diffID, checked, and the entries.
    pub fn finish(self, info: &LayerInfo) -> Result<(Digest, Walked), LayerError> {
        let layer = info.digest;
        match self {
            Self::Tar(tar) => {
                let diff_id = as_promised(info, tar.hash.digest())?;
                let walked = tar.walker.finish();
                let walked = walked.map_err(|source| LayerError::Tar { layer, source })?;
                match tar.top.and_then(|top| outside(&walked, top)) {
                    Some((path, top)) => Err(LayerError::Outside { layer, path, top }),
                    None => Ok((diff_id, walked)),
                }
            }
            // The blob's digest has been checked, and it is the content's.
            Self::File(file) => Ok((as_promised(info, layer)?, file.walked(info.size))),
        }
    }
}

impl Work for Content {
    type Error = TarError;

    fn take(&mut self, decoded: &[u8]) -> Result<(), TarError> {
        match self {
            Self::Tar(tar) => {
                tar.hash.update(decoded);
                tar.walker.push(decoded)
            }
            Self::File(_) => Ok(()),
        }
    }
}

fn as_promised(info: &LayerInfo, found: Digest) -> Result<Digest, LayerError> {
    match info.diff_id {
        Some(expected) if expected != found => Err(LayerError::DiffId {
            layer: info.digest,
            expected,
            found,
        }),
        _ => Ok(found),
    }
}

/// The first entry that does not lie at or below `top`.
fn outside(walked: &Walked, top: Vec<u8>) -> Option<(String, String)> {
    let is_inside = |path: &[u8]| {
        let rest = path.strip_prefix(top.as_slice());
        top.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    };
    let paths = walked.entries.iter().map(|entry| &entry.path);
    let stray = paths
        .chain(&walked.runtime_paths)
        .find(|path| !is_inside(path))?;
    let text = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    Some((text(stray), text(&top)))
}

impl FileLayer {
    fn walked(self, size: u64) -> Walked {
        if is_runtime_path(&self.path) {
            return Walked {
                entries: vec![],
                runtime_paths: vec![self.path],
            };
        }
        let whole = Segment {
            logical: 0,
            length: size,
            tar_offset: 0,
        };
        let segments = if size == 0 { vec![] } else { vec![whole] };
        Walked {
            entries: vec![Entry {
                path: self.path,
                kind: EntryKind::File { size, segments },
                mode: self.mode,
                uid: 0,
                gid: 0,
                mtime: self.mtime,
                mtime_nsec: self.mtime_nsec,
                xattrs: vec![],
            }],
            runtime_paths: vec![],
        }
    }
}
