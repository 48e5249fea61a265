//! kill -9 of `clip` at any moment: repeating the command is all that is needed.

use crate::scene::{Scene, engine_is_erofs, is_mounted, publish, serving};
use clip_testkit::{
    guard::{Mounted, Running, hang, wait_until},
    images,
    layout::{self, Flaw, Layer},
    proxy::Mood,
};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    path::PathBuf,
    process::{Command, Stdio},
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

/// docs/semantics.md: "Whoever reads can be killed while it waits."
#[test]
fn s8_whoever_waits_for_a_registry_that_is_silent_can_be_killed() {
    let scene = Scene::new();
    let names = ["cat", "tail", "direct", "mapped", "program"];
    let layer = (0..).zip(names).fold(Layer::new(), |layer, (seed, name)| {
        layer.file(name, layout::noise(300_001, seed))
    });
    let layout = layout::write(&scene.dir("layout"), vec![layer], Flaw::None).unwrap();
    let published = publish(&layout);
    let reference = &published.reference;
    // Each file in spans of its own: nobody waits for what another has asked for.
    scene.ok(["index", "--max-span", "65536", reference, "image.clip"]);
    scene.dir("mnt");
    let mounted = scene.mount(["image.clip", "mnt"]);
    published.proxy.set(Mood::Silent);
    let file = |name: &str| mounted.path().join(name).display().to_string();
    let shell = |command: String| {
        let mut shell = Command::new("bash");
        shell.args(["-c", &format!("exec {command}")]);
        Running(
            shell
                .stderr(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .unwrap(),
        )
    };
    let read_mapped = format!(
        "import mmap; file = open('{}'); mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)[200000]",
        file("mapped")
    );
    let readers = [
        shell(format!("cat {}", file("cat"))),
        // The last page alone, which nothing is read ahead of.
        shell(format!("tail -c 1 {}", file("tail"))),
        shell(format!("dd if={} bs=64k iflag=direct", file("direct"))),
        shell(format!("python3 -c \"{read_mapped}\"")),
        shell(format!("/lib64/ld-linux-x86-64.so.2 {}", file("program"))),
    ];
    // Long enough for each to begin. One that has not is killed as well.
    std::thread::sleep(Duration::from_secs(2));
    for (name, mut reader) in names.into_iter().zip(readers) {
        if name == "direct" && engine_is_erofs() {
            assert!(!reader.0.wait().unwrap().success(), "refused");
            continue;
        }
        assert!(
            reader.0.try_wait().unwrap().is_none(),
            "{name} does not wait"
        );
        reader.0.kill().unwrap();
        wait_until(
            &format!("the end of {name}"),
            Duration::from_secs(20),
            || reader.0.try_wait().unwrap().is_some(),
        )
        .unwrap();
    }
    published.proxy.set(Mood::Relay);
    for (seed, name) in (0..).zip(names) {
        let read = std::fs::read(mounted.path().join(name)).unwrap();
        assert!(read == layout::noise(300_001, seed), "{name}");
    }
}

/// docs/semantics.md: "any other signal then fails the read with EINTR".
#[test]
fn s8_a_signal_fails_a_read_past_the_page_cache_that_waits() {
    if engine_is_erofs() {
        // It has no such reads.
        return;
    }
    let scene = Scene::new();
    let layer = Layer::new().file("file", layout::noise(8192, 0));
    let layout = layout::write(&scene.dir("layout"), vec![layer], Flaw::None).unwrap();
    let published = publish(&layout);
    scene.ok(["index", &published.reference, "image.clip"]);
    scene.dir("mnt");
    let mounted = scene.mount(["image.clip", "mnt"]);
    published.proxy.set(Mood::Silent);
    // read(2) by itself: Python's repeats what was interrupted.
    let script = "import ctypes, mmap, os, signal, sys\n\
        libc = ctypes.CDLL(None, use_errno=True)\n\
        buffer = ctypes.c_char.from_buffer(mmap.mmap(-1, 4096))\n\
        signal.signal(signal.SIGALRM, lambda *_: None)\n\
        signal.alarm(1)\n\
        file = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)\n\
        print(libc.read(file, ctypes.byref(buffer), 4096), os.strerror(ctypes.get_errno()))";
    let mut reader = Command::new("timeout");
    reader.args(["60", "python3", "-c", script]);
    let read = reader.arg(mounted.path().join("file")).output().unwrap();
    let said = String::from_utf8_lossy(&read.stdout);
    assert_eq!(said, "-1 Interrupted system call\n", "{read:?}");
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
