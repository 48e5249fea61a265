//! Which engine serves a mount.

use crate::scene::Scene;
use clip_fs::mount_points;
use clip_testkit::{
    guard::{Mounted, run},
    layout::{self, Flaw, Layer},
};
use std::process::Command;

/// More than a page of mount(2)'s options can name as devices, and as many as Docker allows.
const LAYERS: usize = 127;

fn scene(layers: usize) -> Scene {
    let scene = Scene::new();
    let layer = |number: usize| Layer::new().file(&format!("file-{number}"), number.to_string());
    let layers = (0..layers).map(layer).collect();
    let layout = layout::write(&scene.dir("layout"), layers, Flaw::None).unwrap();
    scene.index_layout(&layout, "image.clip");
    scene.dir("mnt");
    scene
}

/// What the mount table says of a mount with `--engine`: type and source.
fn mounted_as(scene: &Scene, engine: &str) -> (String, String) {
    scene.ok([
        "mount",
        "--background",
        "--engine",
        engine,
        "image.clip",
        "mnt",
    ]);
    let _mounted = Mounted::at(scene.path("mnt"));
    let mount = mount_points::at(&scene.path("mnt")).unwrap().unwrap();
    // By a program: what this process opens, a child of another test may hold a moment longer.
    let content = run(Command::new("cat").arg(scene.path("mnt/file-0")));
    assert_eq!(content.unwrap(), "0");
    scene.ok(["umount", "mnt"]);
    (mount.fs_type, mount.source)
}

#[test]
fn each_engine_is_what_it_says_and_auto_takes_the_kernels_own() {
    let scene = scene(1);
    let (fuse, source) = mounted_as(&scene, "fuse");
    assert!(fuse.starts_with("fuse"), "{fuse}");
    assert!(source.starts_with("clip:sha256:"), "{source}");
    let erofs = ("erofs".to_owned(), source);
    assert_eq!(mounted_as(&scene, "erofs"), erofs);
    assert_eq!(mounted_as(&scene, "auto"), erofs);
    // Nothing of the hidden connection is left.
    let connections = mount_points::all().unwrap().into_iter();
    let ours =
        |mount: &mount_points::MountPoint| mount.path.to_string_lossy().contains("clip-connection");
    assert_eq!(connections.filter(ours).count(), 0);
}

#[test]
fn an_image_with_as_many_layers_as_there_can_be_is_mounted_by_the_kernel() {
    let scene = scene(LAYERS);
    let _server = scene.mount(["--engine", "erofs", "image.clip", "mnt"]);
    for number in 0..LAYERS {
        let content = std::fs::read_to_string(scene.path(&format!("mnt/file-{number}")));
        assert_eq!(content.unwrap(), number.to_string());
    }
}

#[test]
fn where_the_kernel_cannot_it_is_said_and_auto_goes_on_with_fuse() {
    let scene = scene(1);
    // Without the right to mount by fsopen(2), as on a kernel without it.
    let unable = |engine: &str| {
        let mut mount = scene.clip([
            "mount",
            "--background",
            "--engine",
            engine,
            "image.clip",
            "mnt",
        ]);
        // The kernel opens the tree by its link in a directory of the helper's, which it cannot make.
        mount.env("TMPDIR", "/proc/self");
        crate::scene::said(mount.output().unwrap())
    };
    let said = unable("erofs");
    assert_eq!(said.code, 1);
    assert!(
        said.err.contains("--engine fuse works everywhere"),
        "{said:?}"
    );
    assert_eq!(unable("auto").code, 0);
    let mount = mount_points::at(&scene.path("mnt")).unwrap().unwrap();
    assert!(mount.fs_type.starts_with("fuse"), "{mount:?}");
    scene.ok(["umount", "mnt"]);
}
