//! A small file of an image, whole: what a program must know of an image beside its archive.

use crate::open_image::OpenedImage;
use clip_archive::erofs::{FileType, ReadError};
use clip_fs::{ImageFsError, Resolved};

/// Why a file cannot be read whole.
#[derive(Debug, thiserror::Error)]
pub enum ImageFileError {
    /// The expanded tree is damaged.
    #[error("cannot look for {path}: the expanded tree is damaged: {source}")]
    Tree {
        /// Inside the image.
        path: String,
        /// Why.
        source: ReadError,
    },
    /// It is a directory, a device, or lies behind links in a circle.
    #[error("{path} of the image is not a regular file")]
    NotAFile {
        /// Inside the image.
        path: String,
    },
    /// It is larger than anything that is meant to be there.
    #[error("{path} of the image has {size} bytes, more than the {limit} that are read")]
    TooLarge {
        /// Inside the image.
        path: String,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// Its content could not be had.
    #[error("cannot read {path} of the image: {source}")]
    Read {
        /// Inside the image.
        path: String,
        /// Why.
        source: ImageFsError,
    },
}

impl OpenedImage {
    /// The content of the file at `path`, which may have `limit` bytes at most; none if there is nothing. Links are
    /// followed inside the image. Waits at most the read timeout for what must be fetched.
    pub async fn read_file(
        &self,
        path: &str,
        limit: u64,
    ) -> Result<Option<Vec<u8>>, ImageFileError> {
        let resolved = self.fs.resolve(path.as_bytes(), true);
        let path = path.to_owned();
        let inode = match resolved {
            Ok(Resolved::Found(inode)) if inode.kind == FileType::Regular => inode,
            Ok(Resolved::Missing | Resolved::NotADirectory) => return Ok(None),
            Ok(_) => return Err(ImageFileError::NotAFile { path }),
            Err(source) => return Err(ImageFileError::Tree { path, source }),
        };
        let size = inode.size;
        if size > limit {
            return Err(ImageFileError::TooLarge { path, size, limit });
        }
        let content = self.fs.read(inode.nid, 0, size as usize).await;
        content
            .map(Some)
            .map_err(|source| ImageFileError::Read { path, source })
    }
}
