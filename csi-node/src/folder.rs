//! Archives from a folder instead of `ClipImage`s (`--clipimages-from DIR`): to try or debug the plugin without a
//! cluster. `clipImage: NAME` means the file `DIR/NAME.clip`. A file `DIR/NAME.warm-up` stands for `spec.warmUp`; its
//! content, if it has any, for the pull secret.

use std::path::{Path, PathBuf};

use clip_crds::{Prefetch, VolumeSource};
use clip_registry::Digest;

use crate::archives::digest_of_file;
use crate::resolve::{ArchiveRef, Place, ResolveError, Verdict};
use crate::warm_up::wishes::{ImageId, Wish, Wishes};

/// A folder of archives.
#[derive(Clone, Debug)]
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

    /// The images that are to be warmed up. A folder that cannot be read has none.
    pub async fn wishes(&self) -> Wishes {
        let mut wishes = Wishes::new();
        for (name, file) in self.warm_up_files().unwrap_or_default() {
            let found = self.look(&VolumeSource::ClipImage(name.clone())).await;
            let Ok(Verdict::Ready(archive)) = found else {
                continue;
            };
            let has_secret = std::fs::metadata(&file).is_ok_and(|found| found.len() > 0);
            let pull_secrets = has_secret.then(|| file.display().to_string());
            let wish = Wish {
                archive,
                pull_secrets: pull_secrets.into_iter().collect(),
                uid: None,
            };
            let namespace = String::new();
            wishes.insert(ImageId { namespace, name }, wish);
        }
        wishes
    }

    /// By the names of their images.
    fn warm_up_files(&self) -> std::io::Result<Vec<(String, PathBuf)>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let path = entry?.path();
            if path.extension().is_some_and(|found| found == "warm-up")
                && let Some(name) = path.file_stem().and_then(|name| name.to_str())
            {
                files.push((name.to_owned(), path));
            }
        }
        Ok(files)
    }
}

async fn digest_of(file: &Path) -> std::io::Result<Digest> {
    let file = file.to_owned();
    tokio::task::spawn_blocking(move || digest_of_file(&file))
        .await
        .map_err(std::io::Error::other)?
}
