//! Archives from a folder instead of `ClipImage`s (`--clipimages-from DIR`): to try or debug the plugin without a
//! cluster. `clipImage: NAME` means the file `DIR/NAME.clip`.

use std::path::{Path, PathBuf};

use clip_crds::{Prefetch, VolumeSource};
use clip_registry::Digest;

use crate::archives::digest_of_file;
use crate::resolve::{ArchiveRef, Place, ResolveError, Verdict};

/// A folder of archives.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The archives in `path`.
    pub fn new(path: PathBuf) -> Folder {
        Folder { path }
    }

    /// The archive that the volume means.
    pub async fn look(&self, source: &VolumeSource) -> Result<Verdict, ResolveError> {
        let VolumeSource::ClipImage(name) = source else {
            return Err(ResolveError::NotFound {
                what: source.to_string(),
                hint: ": without Kubernetes (--clipimages-from) only the volume attribute clipImage is known".into(),
            });
        };
        let file = self.path.join(format!("{name}.clip"));
        let digest = digest_of(&file)
            .await
            .map_err(|error| ResolveError::NotFound {
                what: format!("archive {}", file.display()),
                hint: format!(
                    " or cannot be read ({error}): make it with `clip index IMAGE {}`",
                    file.display()
                ),
            })?;
        Ok(Verdict::Ready(ArchiveRef {
            digest,
            size: None,
            places: vec![Place::File(file)],
            prefetch: Prefetch::default(),
        }))
    }
}

async fn digest_of(file: &Path) -> std::io::Result<Digest> {
    let file = file.to_owned();
    tokio::task::spawn_blocking(move || digest_of_file(&file))
        .await
        .map_err(std::io::Error::other)?
}
