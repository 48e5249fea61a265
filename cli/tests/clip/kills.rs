//! kill -9 of `clip` at any moment: repeating the command is all that is needed.

use crate::scene::{Scene, engine_is_erofs, is_mounted, serving};
use clip_testkit::{
    guard::{Mounted, Running, hang, wait_until},
    images,
    layout::{self, Flaw, Layer},
};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

#[test]
fn s3_a_killed_index_leaves_nothing_and_can_be_repeated() {
    let scene = Scene::new();
    let source = format!(
        "oci:{}:latest",
        images::image("alpine-like").unwrap().display()
    );
    let started = Instant::now();
    scene.ok(["index", &source, "reference.clip"]);
    let whole = started.elapsed();
    let reference = std::fs::read(scene.path("reference.clip")).unwrap();
    let out = scene.dir("out");
    let index = || {
        let mut command = scene.clip(["index", &source, "out/image.clip"]);
        command.stderr(Stdio::null()).spawn().unwrap()
    };
    // Spread over the whole run and a little beyond, each moment without and with an older file in its place.
    let moments = 12;
    for moment in 0..2 * moments {
        let mut run = Running(index());
        std::thread::sleep(whole.mul_f64(1.2) * (moment % moments) / moments);
        run.0.kill().unwrap();
        run.0.wait().unwrap();
        let left: Vec<_> = std::fs::read_dir(&out)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        match left.as_slice() {
            [] => assert!(moment < moments, "the older file is gone"),
            [name] if name == "image.clip" => {
                assert!(
                    std::fs::read(out.join(name)).unwrap() == reference,
                    "a partial archive"
                );
            }
            _ => panic!("left behind: {left:?}"),
        }
        if moment + 1 == moments {
            scene.ok(["index", &source, "out/image.clip"]);
        } else if moment < moments {
            let _ = std::fs::remove_file(out.join("image.clip"));
        }
    }
    scene.ok(["index", &source, "out/image.clip"]);
    assert!(std::fs::read(out.join("image.clip")).unwrap() == reference);
}

/// An archive `image.clip` of an image with `file` alone, and the directory `mnt` to mount it at.
fn scene_with_one_file() -> (Scene, PathBuf) {
    let scene = Scene::new();
    let layer = Layer::new().file("file", "content");
    let layout = layout::write(&scene.dir("layout"), vec![layer], Flaw::None).unwrap();
    scene.index_layout(&layout, "image.clip");
    let dir = scene.dir("mnt");
    (scene, dir)
}

#[test]
fn s9_a_mount_whose_server_was_killed_can_be_unmounted_and_mounted_again() {
    let (scene, dir) = scene_with_one_file();
    let mut server = scene.mount(["image.clip", "mnt"]);
    server.kill();
    let error = std::fs::read(dir.join("file")).unwrap_err();
    // Who asks the dead connection is told so; the kernel's own EROFS has found that it cannot read.
    let expected = match engine_is_erofs() {
        true => nix::libc::EIO,
        false => nix::libc::ENOTCONN,
    };
    assert_eq!(error.raw_os_error(), Some(expected));
    let said = scene.run(["mount", "image.clip", "mnt"]);
    assert_eq!(said.code, 1);
    assert!(
        said.err.contains("clip umount mnt"),
        "the remedy: {}",
        said.err
    );
    scene.ok(["umount", "mnt"]);
    assert!(!is_mounted(&dir));
    let again = scene.mount(["image.clip", "mnt"]);
    assert_eq!(
        std::fs::read(again.path().join("file")).unwrap(),
        b"content"
    );
}

/// A server learns late that its mount is gone. It must not take away what has been mounted there in the meantime.
#[test]
fn s9_a_server_that_ends_leaves_the_next_mount_at_its_place() {
    let (scene, dir) = scene_with_one_file();
    let mut first = scene.mount(["--engine", "fuse", "image.clip", "mnt"]);
    hang(first.pid()).unwrap();
    umount2(&dir, MntFlags::MNT_DETACH).unwrap();
    let second = scene.mount(["--engine", "fuse", "image.clip", "mnt"]);
    kill(Pid::from_raw(first.pid() as i32), Signal::SIGCONT).unwrap();
    assert_eq!(first.wait(), Some(0));
    let read = std::fs::read(second.path().join("file"));
    assert_eq!(read.unwrap(), b"content");
}

#[test]
fn s9_a_mount_in_the_background_lives_until_it_is_unmounted() {
    let (scene, dir) = scene_with_one_file();
    let _mounted = Mounted::at(&dir);
    // Flags in every way that people write them.
    for flags in [["mount", "--background"], ["mount", "-vb"], ["-v", "mount"]] {
        let mut args = flags.to_vec();
        if flags[1] == "mount" {
            args.push("-b");
        }
        args.extend(["--", "image.clip", "mnt"]);
        let said = scene.ok(args);
        assert!(
            said.err
                .contains("Mounted at mnt; unmount with `clip umount mnt`"),
            "{}",
            said.err
        );
        assert_eq!(std::fs::read(dir.join("file")).unwrap(), b"content");
        let processes = || serving(&scene);
        assert_eq!(processes().len(), 2, "{:?}", processes());
        scene.ok(["umount", "mnt"]);
        wait_until("their end", Duration::from_secs(20), || {
            processes().is_empty()
        })
        .unwrap();
    }
}

#[test]
fn s9_ctrl_c_unmounts() {
    let (scene, dir) = scene_with_one_file();
    for signal in [
        nix::sys::signal::Signal::SIGINT,
        nix::sys::signal::Signal::SIGTERM,
    ] {
        let mut server = scene.mount(["image.clip", "mnt"]);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(server.pid() as i32), signal).unwrap();
        assert_eq!(server.wait(), Some(0), "{}", server.log());
        assert!(!is_mounted(&dir));
    }
}
