//! S1 to S3: what is in an archive, what is not, and that it is always the same.

use crate::scene::{Scene, publish};
use clip_archive::Archive;
use clip_testkit::{
    guard::run,
    images,
    layout::{self, Flaw, Layer},
};
use std::{path::Path, process::Command};

#[test]
fn s1_archives_are_smaller_than_the_seeds_promise() {
    let scene = Scene::new();
    for (name, limit) in [("alpine-like", 60_000), ("debian-min", 712_000)] {
        let archive = scene.index_layout(&images::image(name).unwrap(), &format!("{name}.clip"));
        let size = archive.metadata().unwrap().len();
        assert!(size < limit, "{name}: {size} bytes, the limit is {limit}");
    }
}

#[test]
fn s1_no_file_can_be_recovered_from_an_archive() {
    let scene = Scene::new();
    // Text that compresses a little, so that the seek windows hold some of it.
    let text = |seed| {
        let noise = layout::noise(64 << 10, seed);
        noise
            .iter()
            .flat_map(|byte| format!("{byte:03} ").into_bytes())
            .collect::<Vec<u8>>()
    };
    let files: Vec<Vec<u8>> = (1..=20).map(text).collect();
    let layer = files
        .iter()
        .enumerate()
        .fold(Layer::new(), |layer, (at, content)| {
            layer.file(&format!("secret-{at}"), content)
        });
    let layout = layout::write(&scene.dir("layout"), vec![layer], Flaw::None).unwrap();
    let path = scene.index_layout(&layout, "image.clip");
    let bytes = std::fs::read(&path).unwrap();
    let archive = Archive::open(bytes.as_slice()).unwrap();

    let content_len: usize = files.iter().map(Vec::len).sum();
    assert!(bytes.len() < content_len / 20, "{} bytes", bytes.len());
    let windows = archive.windows(0).unwrap();
    assert!(
        !windows.is_empty(),
        "the test needs seek points in the middle"
    );
    let mut scraps = bytes.clone();
    for window in &windows {
        let mut history = [0; clip_archive::section::WINDOW_LEN];
        window.expand(&mut history);
        scraps.extend_from_slice(&history);
    }
    // Not one file is there, whole or but for a piece.
    for (at, content) in files.iter().enumerate() {
        let found = content
            .chunks(1024)
            .filter(|piece| scraps.windows(piece.len()).any(|scrap| scrap == *piece))
            .count();
        assert!(
            found * 10 < content.len() / 1024,
            "{found} KiB of secret-{at} are in the archive"
        );
    }
}

#[test]
fn s2_the_header_says_what_where_and_which() {
    let scene = Scene::new();
    let published = publish(&images::image("python-app").unwrap());
    scene.ok(["index", &published.reference, "image.clip"]);
    let file = std::fs::read(scene.path("image.clip")).unwrap();
    assert_eq!(
        file[..9],
        [0x89, 0x43, 0x4C, 0x49, 0x50, 0x0D, 0x0A, 0x1A, 0x0A]
    );
    assert_eq!(file[9], clip_archive::header::FORMAT_VERSION);
    assert_eq!(file[42..54], *b"oci\0\0\0\0\0\0\0\0\0");
    let number = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap());
    assert_eq!((number(18), number(34)), (54, 54 + number(10)));
    assert_eq!(
        number(34) + number(26),
        file.len() as u64,
        "one file, nothing behind it"
    );

    let json: serde_json::Value =
        serde_json::from_str(&scene.ok(["inspect", "--json", "image.clip"]).out).unwrap();
    let manifest = run(Command::new("skopeo")
        .args(["inspect", "--raw", "--tls-verify=false"])
        .arg(format!(
            "docker://{}/team/app:1",
            published.registry.address()
        )))
    .unwrap();
    let digest = layout::digest_of(manifest.as_bytes());
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(json["storageType"], "oci");
    assert_eq!(json["registry"], published.proxy.address());
    assert_eq!(json["repository"], "team/app");
    assert_eq!(json["manifestDigest"], digest, "pinned");
    assert_eq!(json["config"]["config"]["Cmd"][0], "python3");
    let layers = json["layers"].as_array().unwrap();
    assert_eq!(layers.len(), manifest["layers"].as_array().unwrap().len());
    for (ours, theirs) in layers.iter().zip(manifest["layers"].as_array().unwrap()) {
        assert_eq!(
            (&ours["digest"], &ours["size"]),
            (&theirs["digest"], &theirs["size"])
        );
    }
    assert!(
        json["seekPoints"].as_u64().unwrap() > 50,
        "{}",
        json["seekPoints"]
    );

    // S3: the same again, whatever the number of processors.
    let mut once_more = Command::new("taskset");
    once_more.args([
        "-c",
        "0",
        crate::scene::CLIP,
        "index",
        &published.reference,
        "again.clip",
    ]);
    run(once_more
        .current_dir(scene.dir.path())
        .env("HOME", scene.path("home")))
    .unwrap();
    assert!(
        std::fs::read(scene.path("again.clip")).unwrap() == file,
        "two runs gave different archives"
    );
}

#[test]
fn s3_the_same_layout_gives_the_same_bytes() {
    let scene = Scene::new();
    let layout = images::image("alpine-like").unwrap();
    let read = |path: &Path| std::fs::read(path).unwrap();
    let first = read(&scene.index_layout(&layout, "first.clip"));
    assert!(read(&scene.index_layout(&layout, "second.clip")) == first);
}

/// docs/semantics.md: "`/proc`, `/sys`, `/dev` and what is below them is left out".
#[test]
fn s5_runtime_directories_are_left_out_or_empty_and_their_namesakes_stay() {
    let scene = Scene::new();
    let layer = Layer::new()
        .file("proc/cpuinfo", "x")
        .file("sys/kernel/x", "x")
        .file("dev/shm/x", "x")
        .file("process/x", "x")
        .file("usr/dev/x", "x")
        .file("developers", "x");
    let layout = layout::write(&scene.dir("layout"), vec![layer], Flaw::None).unwrap();
    let source = format!("oci:{}:latest", layout.display());
    let said = scene.ok(["index", "--verbose", &source, "omit.clip"]);
    for path in ["/proc/cpuinfo", "/sys/kernel/x", "/dev/shm/x"] {
        assert!(
            said.err
                .contains(&format!("Left out runtime path {path}\n")),
            "{}",
            said.err
        );
    }
    assert_eq!(
        scene.ok(["ls", "omit.clip"]).out,
        "developers\nprocess\nusr\n"
    );
    assert_eq!(scene.ok(["ls", "omit.clip", "/usr/dev"]).out, "x\n");

    scene.ok(["index", "--runtime-dirs", "empty", &source, "empty.clip"]);
    assert_eq!(
        scene.ok(["ls", "empty.clip"]).out,
        "dev\ndevelopers\nproc\nprocess\nsys\nusr\n"
    );
    for dir in ["/proc", "/sys", "/dev"] {
        assert_eq!(scene.ok(["ls", "empty.clip", dir]).out, "");
    }
}
