//! S9: mounting without being root, through fusermount3.

use crate::scene::{CLIP, Scene};
use clip_testkit::{
    guard::run,
    layout::{self, Flaw, Layer},
};
use std::{
    os::unix::fs::{PermissionsExt, chown},
    process::Command,
};

const NOBODY: u32 = 65534;

/// Runs in mount and process namespaces of its own, where `/dev/fuse` is open to all as udev makes it elsewhere, and
/// whose end is the end of all processes and mounts in it.
const AS_ROOT: &str = "
    mknod fuse c 10 229 && chmod 666 fuse && mount --bind fuse /dev/fuse
    PREPARE
    exec setpriv --reuid=65534 --regid=65534 --clear-groups sh -euc \"$0\"";
const AS_NOBODY: &str = "
    ./clip mount --background image.clip mnt
    cat mnt/file
    findmnt -no FSTYPE,OPTIONS mnt
    ./clip umount mnt
    findmnt mnt || ls mnt | wc -l
    ls home/.cache/clip";

/// Reads what is in no cache after each kill -9 of the server, and waits for the end of both processes.
const AS_NOBODY_KILLING: &str = "
    ./clip mount --background image.clip mnt
    for name in 1 2 3; do
        kill -9 $(grep -slzx CLIP_ROLE=server /proc/[0-9]*/environ | cut -d/ -f3)
        cat mnt/$name
    done
    findmnt -no FSTYPE mnt
    ./clip umount mnt
    while grep -sqz ^CLIP_ROLE= /proc/[0-9]*/environ; do sleep 0.01; done
    ls mnt | wc -l";

/// As on a minimal system, where `/etc` has little. The end of the namespace ends the mount.
const AS_NOBODY_WITHOUT_MTAB: &str = "
    ./clip mount --background image.clip mnt
    ./clip umount mnt 2>&1 || true";

#[test]
fn s9_anybody_can_mount_and_unmount() {
    let said = as_nobody("true", AS_NOBODY);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "content");
    assert!(lines[1].starts_with("fuse"), "{said}");
    let options = lines[1].split_whitespace().nth(1).unwrap();
    for option in ["ro", "nosuid", "nodev"] {
        assert!(options.split(',').any(|found| found == option), "{said}");
    }
    assert_eq!(lines[2], "0", "unmounted: {said}");
    assert_eq!(
        lines[3..],
        ["archives", "layers", "trees"],
        "state is in the user's own cache"
    );
}

#[test]
fn s9_anybodys_mount_outlives_its_server() {
    let said = as_nobody("true", AS_NOBODY_KILLING);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..3], ["one", "two", "three"], "{said}");
    assert!(lines[3].starts_with("fuse"), "{said}");
    assert_eq!(lines[4..], ["0"], "unmounted: {said}");
}

#[test]
fn s9_without_mtab_unmounting_names_the_remedy() {
    let etc = "mkdir etc && cp /etc/passwd /etc/group etc && mount --bind etc /etc";
    let said = as_nobody(etc, AS_NOBODY_WITHOUT_MTAB);
    assert!(
        said.contains("as root, `ln -s /proc/self/mounts /etc/mtab`"),
        "{said}"
    );
}

/// What `script` says as somebody who is not root, beside an archive and an empty directory, after `prepare` as root.
fn as_nobody(prepare: &str, script: &str) -> String {
    let scene = Scene::new();
    let layer = Layer::new()
        .file("file", "content\n")
        .file("1", "one\n")
        .file("2", "two\n")
        .file("3", "three\n");
    let layout = layout::write(&scene.dir("layout"), vec![layer], Flaw::None).unwrap();
    scene.index_layout(&layout, "image.clip");
    std::fs::set_permissions(scene.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    for path in [scene.path("home"), scene.dir("mnt")] {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    // So that `oci:` layouts and the program can be read by others, wherever the build lies.
    std::fs::copy(CLIP, scene.path("clip")).unwrap();

    let as_root = AS_ROOT.replace("PREPARE", prepare);
    run(Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "--fork",
            "--kill-child",
            "--pid",
            "--mount-proc",
        ])
        .args(["sh", "-euc", &as_root, script])
        .current_dir(scene.dir.path())
        .env("HOME", scene.path("home"))
        .env_remove("CLIP_STATE_DIR")
        .env_remove("XDG_CACHE_HOME"))
    .unwrap()
}
