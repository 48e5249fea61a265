//! Judge three: the Linux kernel. It mounts the image, with the layers' tars as devices.
//!
//! Needs root and EROFS on plain files (Linux 6.12); elsewhere the tests say so and pass. Every
//! mount lives in a mount namespace of its own thread and is gone with it.

use crate::trees::{Tree, add, any_tree, empty_tree, everything, file, write};
use crate::view::{
    Detail, Seen, View, assert_same, expected, join, layer_bytes, layer_data, name_inodes, windows,
};
use clip_archive::erofs::FileType;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, TestRunner};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

#[test]
fn the_kernel_sees_a_tree_with_everything() {
    judge(vec![everything()]);
}

#[test]
fn the_kernel_sees_generated_trees() {
    let mut runner = TestRunner::new(Config::default());
    judge(
        (0..40)
            .map(|_| any_tree().new_tree(&mut runner).unwrap().current())
            .collect(),
    );
}

#[test]
fn the_kernel_tells_127_layers_apart() {
    let mut tree = empty_tree(&[4096; 127]);
    for layer in 0..127 {
        add(
            &mut tree,
            0,
            format!("{layer}").as_bytes(),
            file(layer, 3000, 1024),
        );
    }
    judge(vec![tree]);
}

/// Mounts each tree and compares what is seen.
fn judge(trees: Vec<Tree>) {
    let own_namespace = || {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
    };
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().to_owned();
    let judging = std::thread::spawn(move || {
        if let Err(errno) = own_namespace() {
            return eprintln!("skipped: mounting needs root ({errno})");
        }
        for (i, tree) in trees.iter().enumerate() {
            let directory = root.join(i.to_string());
            fs::create_dir(&directory).unwrap();
            if let Err(errno) = mount_and_compare(&directory, tree) {
                return eprintln!("skipped: no EROFS on plain files here ({errno})");
            }
            fs::remove_dir_all(&directory).unwrap();
        }
    });
    judging.join().unwrap();
}

fn mount_and_compare(directory: &Path, tree: &Tree) -> Result<(), Errno> {
    // Short names, relative to this thread's own working directory: all options of mount(2) must
    // fit one page.
    std::env::set_current_dir(directory).unwrap();
    let devices = write_files(Path::new(""), tree);
    fs::create_dir("mnt").unwrap();
    let options: Vec<String> = devices
        .iter()
        .map(|device| format!("device={device}"))
        .collect();
    let options = options.join(",");
    let mounted = mount(
        Some("image"),
        "mnt",
        Some("erofs"),
        MsFlags::MS_RDONLY,
        Some(&*options),
    );
    match mounted {
        Err(errno @ (Errno::ENODEV | Errno::ENOTBLK)) => return Err(errno),
        mounted => mounted.unwrap(),
    }
    let seen = view(Path::new("mnt"));
    std::env::set_current_dir("/").unwrap();
    unmount(&directory.join("mnt"));
    assert_same("the kernel", &seen, &expected(tree));
    Ok(())
}

/// A program that another test starts has copies of our descriptors until its exec(2): the mount is busy for that moment.
fn unmount(dir: &Path) {
    let begun = Instant::now();
    while let Err(errno) = umount2(dir, MntFlags::empty()) {
        let is_patient = errno == Errno::EBUSY && begun.elapsed() < Duration::from_secs(10);
        assert!(is_patient, "{}: {errno}", dir.display());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Writes the image as `image` and the layers as `0`, `1`, ...; returns the layers' names.
pub fn write_files(directory: &Path, tree: &Tree) -> Vec<String> {
    fs::write(directory.join("image"), write(tree).unwrap()).unwrap();
    let layers = tree.layer_tar_sizes.iter().enumerate();
    let names = layers.map(|(layer, &size)| {
        let name = layer.to_string();
        let device = File::create(directory.join(&name)).unwrap();
        device.set_len(size).unwrap();
        for run in layer_data(size) {
            device
                .write_all_at(&layer_bytes(layer, run.clone()), run.start)
                .unwrap();
        }
        name
    });
    names.collect()
}

/// Everything that can be seen below the directory `root` by system calls.
pub fn view(root: &Path) -> View {
    let mut view = View::new();
    let mut pending = vec![vec![]];
    while let Some(path) = pending.pop() {
        let file = root.join(OsStr::from_bytes(&path));
        let metadata = fs::symlink_metadata(&file).unwrap();
        let (major, minor) = (
            nix::sys::stat::major(metadata.rdev()),
            nix::sys::stat::minor(metadata.rdev()),
        );
        let kind = metadata.file_type();
        let (kind, detail) = if kind.is_dir() {
            for entry in fs::read_dir(&file).unwrap() {
                let entry = entry.unwrap();
                pending.push(join(&path, entry.file_name().as_bytes()));
            }
            (FileType::Directory, Detail::Nothing)
        } else if kind.is_symlink() {
            let target = fs::read_link(&file).unwrap();
            (
                FileType::Symlink,
                Detail::Link(target.into_os_string().into_vec()),
            )
        } else if kind.is_char_device() {
            (
                FileType::CharDevice,
                Detail::Device(major as u32, minor as u32),
            )
        } else if kind.is_block_device() {
            (
                FileType::BlockDevice,
                Detail::Device(major as u32, minor as u32),
            )
        } else if kind.is_fifo() {
            (FileType::Fifo, Detail::Nothing)
        } else {
            let opened = File::open(&file).unwrap();
            let read = |window: std::ops::Range<u64>| {
                let mut bytes = vec![0; (window.end - window.start) as usize];
                opened.read_exact_at(&mut bytes, window.start).unwrap();
                bytes
            };
            let windows = windows(metadata.len()).into_iter();
            (
                FileType::Regular,
                Detail::File(metadata.len(), windows.map(read).collect()),
            )
        };
        let names = xattr::list(&file).unwrap();
        let values = names.map(|name| {
            let value =
                xattr::get(&file, &name).unwrap_or_else(|e| panic!("{name:?} of {file:?}: {e}"));
            (
                name.into_vec(),
                value.expect("a listed attribute has a value"),
            )
        });
        let seen = Seen {
            kind,
            mode: (metadata.mode() & 0o7777) as u16,
            owner: (metadata.uid(), metadata.gid()),
            mtime: (metadata.mtime(), metadata.mtime_nsec() as u32),
            nlink: metadata.nlink() as u32,
            same_as: metadata.ino().to_be_bytes().to_vec(),
            xattrs: values.collect(),
            detail,
        };
        view.insert(path, seen);
    }
    name_inodes(view)
}
