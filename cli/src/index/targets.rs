//! Which images are indexed, and into which files.

use crate::failure::Failure;
use clip_engine::registry::ImageSource;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

/// One image that is to be indexed.
#[derive(Debug)]
pub struct Target {
    /// As the user wrote it.
    pub image: String,
    /// What was meant.
    pub source: ImageSource,
    /// The archive to write, if any.
    pub file: Option<PathBuf>,
}

impl Target {
    /// `image`, into `file`. An impossible file is found before an hour of work, not after.
    pub fn new(image: &str, file: Option<&Path>) -> Result<Target, Failure> {
        let source = image
            .parse()
            .map_err(|error| Failure::permanent("InvalidReference", error))?;
        file.map(check_file).transpose()?;
        Ok(Target {
            image: image.to_owned(),
            source,
            file: file.map(Path::to_owned),
        })
    }
}

/// Each of `images` into a file of its own in `dir`, named after it. An image named twice is there once.
pub fn in_folder(images: &[String], dir: &Path) -> Result<Vec<Target>, Failure> {
    if !dir.is_dir() {
        return Err(no_folder(dir));
    }
    let mut targets: Vec<Target> = Vec::new();
    let mut taken: HashMap<PathBuf, usize> = HashMap::new();
    for image in images {
        let mut target = Target::new(image, None)?;
        let file = dir.join(file_name(&target.source));
        if let Some(&other) = taken.get(&file) {
            let other: &Target = &targets[other];
            if other.source == target.source {
                continue;
            }
            return Err(Failure::local(format!(
                "the archives of {} and {image} would both be {}: index one of them without --dir",
                other.image,
                file.display()
            )));
        }
        check_file(&file)?;
        taken.insert(file.clone(), targets.len());
        target.file = Some(file);
        targets.push(target);
    }
    Ok(targets)
}

/// `team_app_1.2.clip` for `registry/team/app:1.2`, `app_1.2.clip` for `oci:some/where/app:1.2`.
fn file_name(source: &ImageSource) -> String {
    let (name, version) = match source {
        ImageSource::Registry(reference) => {
            let digest = reference.digest().map(ToString::to_string);
            let tag = reference.tag().map(ToOwned::to_owned);
            (reference.repository().to_owned(), digest.or(tag))
        }
        ImageSource::Layout { dir, tag } => {
            // Of `.` and `..` only the file system knows the name.
            let dir = dir.canonicalize().unwrap_or_else(|_| dir.clone());
            let name = dir.file_name().unwrap_or_default().to_string_lossy();
            (name.into_owned(), tag.clone())
        }
    };
    let text = [Some(name), version].into_iter().flatten();
    let text = text.collect::<Vec<_>>().join("_");
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let text: String = text
        .chars()
        .map(|c| if plain(c) { c } else { '_' })
        .collect();
    format!("{text}.clip")
}

fn check_file(path: &Path) -> Result<(), Failure> {
    if path.is_dir() {
        return Err(Failure::local(format!(
            "{} is a directory: name a file in it, like {}/image.clip, or say --dir {}",
            path.display(),
            path.display(),
            path.display()
        )));
    }
    if path.exists() && !path.is_file() {
        return Err(Failure::local(format!(
            "{} is not a regular file and will not be replaced: name another file",
            path.display()
        )));
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !parent.is_dir() {
        return Err(no_folder(parent));
    }
    nix::unistd::access(parent, nix::unistd::AccessFlags::W_OK).map_err(|error| {
        Failure::local(format!(
            "nothing can be written in {} ({}): name a file elsewhere",
            parent.display(),
            error.desc()
        ))
    })
}

fn no_folder(dir: &Path) -> Failure {
    Failure::local(format!(
        "the directory {} does not exist: create it with `mkdir -p {}`",
        dir.display(),
        dir.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::file_name;

    #[test]
    fn files_are_named_after_images() {
        for (image, file) in [
            ("alpine", "library_alpine_latest.clip"),
            ("127.0.0.1:5000/team/app:1.2", "team_app_1.2.clip"),
            ("oci:some/where/app:1.2", "app_1.2.clip"),
            ("oci:some/where/my app", "my_app.clip"),
        ] {
            assert_eq!(file_name(&image.parse().unwrap()), file);
        }
        let digest = format!("app@sha256:{}", "0a".repeat(32));
        let file = format!("library_app_sha256_{}.clip", "0a".repeat(32));
        assert_eq!(file_name(&digest.parse().unwrap()), file);
    }
}
