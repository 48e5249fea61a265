//! Judge four: `fsck.erofs` (erofs-utils 1.8 or newer), which checks the structure by its own rules
//! and unpacks the image.
//!
//! Found in the folder that `CLIP_TOOLS` names, else in the tools cache; elsewhere the tests say so
//! and pass. Unpacking needs root.

use crate::kernel::{view, write_files};
use crate::trees::{Tree, any_tree, everything};
use crate::view::{Detail, View, assert_same, expected};
use clip_archive::erofs::FileType;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, TestRunner};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

#[test]
fn fsck_accepts_and_unpacks_generated_trees() {
    let mut runner = TestRunner::new(Config::default());
    for _ in 0..30 {
        judge(
            &any_tree().new_tree(&mut runner).unwrap().current(),
            Unpack::All,
        );
    }
}

#[test]
fn fsck_accepts_a_tree_with_everything() {
    judge(&everything(), Unpack::Nothing); // one file has 5 GiB
}

#[derive(PartialEq)]
enum Unpack {
    All,
    Nothing,
}

fn judge(tree: &Tree, unpack: Unpack) {
    let Some(fsck) = find_fsck() else {
        return eprintln!("skipped: no fsck.erofs in $CLIP_TOOLS or the tools cache");
    };
    let scratch = tempfile::tempdir().unwrap();
    let devices = write_files(scratch.path(), tree);
    let mut command = Command::new(fsck);
    command
        .current_dir(&scratch)
        .args(devices.iter().map(|device| format!("--device={device}")));
    let unpack = unpack == Unpack::All && nix::unistd::geteuid().is_root();
    if unpack {
        command.args(["--extract=out", "--preserve"]);
    }
    let output = command.arg("image").output().unwrap();
    let messages = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&messages)
    );
    if unpack {
        extend_trailing_holes(&scratch.path().join("out"), &expected(tree));
        let seen = view(&scratch.path().join("out"));
        assert_same("fsck.erofs", &unpackable(seen), &unpackable(expected(tree)));
    }
}

/// fsck.erofs 1.8.6 seeks over holes when it unpacks, and leaves out the one at a file's end. What
/// is missing is added as zeros; had it been data, the contents would differ.
fn extend_trailing_holes(out: &Path, expected: &View) {
    for (path, seen) in expected {
        let Detail::File(size, _) = seen.detail else {
            continue;
        };
        let path = out.join(OsStr::from_bytes(path));
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.len() < size {
            let times = fs::FileTimes::new().set_modified(metadata.modified().unwrap());
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_len(size).unwrap();
            file.set_times(times).unwrap();
        }
    }
}

fn find_fsck() -> Option<PathBuf> {
    let usable = |folder: PathBuf| Some(folder.join("fsck.erofs")).filter(|file| file.exists());
    if let Some(folder) = env::var_os("CLIP_TOOLS") {
        return usable(folder.into());
    }
    let cache = env::var_os("CLIP_CACHE_DIR").map(PathBuf::from);
    let cache = cache.or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cache/clip")))?;
    let versions = fs::read_dir(cache.join("tools"))
        .ok()?
        .filter_map(Result::ok);
    versions.filter_map(|version| usable(version.path())).max()
}

/// Without what an unpacked tree cannot show: modes of symbolic links, times that the file system
/// below cannot store, and extended attributes (1.8 follows symbolic links when it sets them).
fn unpackable(mut view: View) -> View {
    let storable = i64::from(i32::MIN) + 1..i64::from(i32::MAX);
    for seen in view.values_mut() {
        seen.xattrs.clear();
        if seen.kind == FileType::Symlink {
            seen.mode = 0o777;
        }
        if !storable.contains(&seen.mtime.0) {
            seen.mtime = (0, 0);
        }
    }
    view
}
