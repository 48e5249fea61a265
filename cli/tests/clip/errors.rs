//! Everything that people get wrong: one plain sentence that names the remedy, the right exit code, nothing left behind.

use crate::{
    scene::{CLIP, Scene, is_mounted, publish, said},
    transcript::Transcript,
};
use clip_testkit::{
    images,
    layout::{self, Flaw, Layer},
    proxy::{Mood, Proxy},
    registry::TestRegistry,
};
use expect_test::expect_file;
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Trying again cannot help.
const PERMANENT: i32 = 42;
const USAGE: i32 = 2;
const OTHER: i32 = 1;

fn tiny(scene: &Scene, name: &str, flaw: Flaw) -> PathBuf {
    let layer = Layer::new()
        .file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
        .dir("empty");
    layout::write(&scene.dir(name), vec![layer], flaw).unwrap()
}

fn docker_config(scene: &Scene, registry: &str, user_and_password: &str) {
    let encoded = said(
        Command::new("sh")
            .args(["-c", "printf %s \"$0\" | base64 -w0", user_and_password])
            .output()
            .unwrap(),
    );
    let config = format!(
        r#"{{"auths":{{"{registry}":{{"auth":"{}"}}}}}}"#,
        encoded.out
    );
    std::fs::write(scene.path("docker.json"), config).unwrap();
}

#[test]
fn s9_wrong_image_names_are_told_apart() {
    let scene = Scene::new();
    let published = publish(&tiny(&scene, "layout", Flaw::None));
    let mut t = Transcript::new(&scene);
    t.call(published.proxy.address(), "127.0.0.1:5000");
    t.heading("names that cannot be");
    t.fail(PERMANENT, "index Not_An_Image out.clip");
    t.fail(PERMANENT, "index 127.0.0.1:5000/app@sha256:12 out.clip");
    t.heading("names that do not exist");
    let registry = published.proxy.address();
    t.fail(PERMANENT, &format!("index {registry}/no/such:1 out.clip"));
    t.fail(PERMANENT, &format!("index {registry}/team/app:2 out.clip"));
    t.fail(PERMANENT, "index oci:nowhere out.clip");
    t.fail(PERMANENT, "index oci:layout:nope out.clip");
    t.heading("a platform that the image does not have");
    t.fail(
        PERMANENT,
        &format!("index --platform linux/s390x {registry}/team/app:1 out.clip"),
    );
    t.fail(USAGE, "index --platform amiga oci:layout:latest out.clip");
    t.heading("an image to mount or to look into");
    t.fail(OTHER, "ls nowhere.clip");
    t.fail(OTHER, "ls Not_An_Image");
    expect_file!["../golden/errors-names.txt"].assert_eq(&t.text);
}

#[test]
fn s9_registries_that_refuse_or_do_not_answer() {
    let scene = Scene::new();
    let layout = tiny(&scene, "layout", Flaw::None);
    let closed = TestRegistry::start_with_auth("alice", "secret").unwrap();
    images::push_as(&layout, &closed, "team/app:1", Some(("alice", "secret"))).unwrap();
    let image = format!("{}/team/app:1", closed.address());
    let mut t = Transcript::new(&scene);
    t.call(closed.address(), "127.0.0.1:5000");
    t.heading("no credentials, wrong ones, a configuration that is none, the right ones");
    t.fail(PERMANENT, &format!("index {image} out.clip"));
    docker_config(&scene, closed.address(), "alice:wrong");
    t.fail(
        PERMANENT,
        &format!("index --docker-config docker.json {image} out.clip"),
    );
    std::fs::write(scene.path("broken.json"), "{").unwrap();
    t.fail(
        PERMANENT,
        &format!("index --docker-config broken.json {image} out.clip"),
    );
    t.fail(
        PERMANENT,
        &format!("index --docker-config missing.json {image} out.clip"),
    );
    docker_config(&scene, closed.address(), "alice:secret");
    assert_eq!(
        t.run(&format!(
            "index --docker-config docker.json {image} out.clip"
        )),
        0,
        "{}",
        t.text
    );
    std::fs::remove_file(scene.path("out.clip")).unwrap();
    t.heading("nobody listens");
    t.fail(OTHER, "index 127.0.0.1:1/team/app:1 out.clip");
    t.heading("the registry hangs up");
    let proxy = Proxy::before(closed.address()).unwrap();
    proxy.set(Mood::HangUp);
    t.call(proxy.address(), "127.0.0.1:5001");
    t.fail(
        OTHER,
        &format!("index {}/team/app:1 out.clip", proxy.address()),
    );
    expect_file!["../golden/errors-registries.txt"].assert_eq(&t.text);
}

#[test]
fn s9_a_registry_without_tls_is_spoken_to_only_when_allowed() {
    let scene = Scene::new();
    let registry = TestRegistry::start().unwrap();
    images::push(&tiny(&scene, "layout", Flaw::None), &registry, "team/app:1").unwrap();
    let port = registry.address().rsplit(':').next().unwrap().to_owned();
    std::fs::write(scene.path("hosts"), "127.0.0.1 registry.test\n").unwrap();
    let mut t = Transcript::new(&scene);
    t.call(port.clone(), "5000");
    // A name for the loopback address that does not say so, in a mount namespace of its own.
    let run = |t: &mut Transcript<'_>, words: &str| {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-c"])
            .arg("mount --bind hosts /etc/hosts && exec \"$@\"")
            .args(["sh", CLIP])
            .args(words.split(' '))
            .current_dir(scene.dir.path())
            .env("HOME", scene.path("home"));
        let said = said(command.output().unwrap());
        t.note(words, &format!("{}exit {}\n", said.err, said.code));
        said.code
    };
    let image = format!("registry.test:{port}/team/app:1");
    assert_eq!(
        run(&mut t, &format!("index {image} out.clip")),
        PERMANENT,
        "{}",
        t.text
    );
    assert!(!scene.path("out.clip").exists());
    let allowed = format!("index --plain-http=registry.test:{port} {image} out.clip");
    assert_eq!(run(&mut t, &allowed), 0, "{}", t.text);
    expect_file!["../golden/errors-plain-http.txt"].assert_eq(&t.text);
}

#[test]
fn s2_files_that_are_no_archives_of_ours() {
    let scene = Scene::new();
    let layout = tiny(&scene, "layout", Flaw::None);
    let good = std::fs::read(scene.index_layout(&layout, "good.clip")).unwrap();
    std::fs::write(scene.path("foreign.clip"), "hello, world\n".repeat(99)).unwrap();
    std::fs::write(scene.path("empty.clip"), "").unwrap();
    std::fs::write(scene.path("truncated.clip"), &good[..good.len() - 9]).unwrap();
    let with = |at: usize, byte: u8| {
        let mut file = good.clone();
        file[at] = byte;
        file
    };
    std::fs::write(scene.path("origin.clip"), with(9, 1)).unwrap();
    std::fs::write(scene.path("newer.clip"), with(9, 200)).unwrap();
    std::fs::write(scene.path("damaged.clip"), with(100, good[100] ^ 1)).unwrap();
    scene.dir("mnt");
    scene.dir("state");
    let mut t = Transcript::new(&scene);
    for file in [
        "foreign",
        "empty",
        "truncated",
        "origin",
        "newer",
        "damaged",
    ] {
        t.fail(OTHER, &format!("mount {file}.clip mnt"));
    }
    t.fail(OTHER, "mount --background truncated.clip mnt");
    t.fail(OTHER, "cat truncated.clip /etc/passwd");
    t.fail(OTHER, "inspect foreign.clip");
    t.fail(OTHER, "inspect missing.clip");
    t.fail(OTHER, "mount missing.clip mnt");
    assert!(!is_mounted(&scene.path("mnt")));
    expect_file!["../golden/errors-archives.txt"].assert_eq(&t.text);
}

#[test]
fn s9_mount_points_that_will_not_do() {
    let scene = Scene::new();
    let layout = tiny(&scene, "layout", Flaw::None);
    scene.index_layout(&layout, "image.clip");
    scene.dir("mnt");
    std::fs::write(scene.dir("full").join("precious"), "").unwrap();
    std::fs::write(scene.path("file"), "").unwrap();
    scene.dir("state");
    let mut t = Transcript::new(&scene);
    t.fail(OTHER, "mount image.clip missing");
    t.fail(OTHER, "mount image.clip full");
    t.fail(OTHER, "mount image.clip file");
    t.fail(OTHER, "mount --background image.clip full");
    t.fail(OTHER, "umount mnt");
    t.fail(OTHER, "umount missing");
    t.heading("a second mount at the same place, while a file of the first is open");
    let server = scene.mount(["image.clip", "mnt"]);
    let open = std::fs::File::open(server.path().join("etc/passwd")).unwrap();
    t.fail(OTHER, "mount image.clip mnt");
    t.fail(OTHER, "umount mnt");
    drop(open);
    assert_eq!(t.run("umount mnt"), 0, "{}", t.text);
    assert!(!is_mounted(&scene.path("mnt")));
    expect_file!["../golden/errors-mounts.txt"].assert_eq(&t.text);
}

#[test]
fn s9_outputs_that_cannot_be_written() {
    let scene = Scene::new();
    tiny(&scene, "layout", Flaw::None);
    scene.dir("folder");
    let mut t = Transcript::new(&scene);
    t.fail(OTHER, "index oci:layout:latest missing/out.clip");
    t.fail(OTHER, "index oci:layout:latest folder");
    t.fail(OTHER, "index oci:layout:latest /dev/null");
    t.fail(OTHER, "index oci:layout:latest /proc/out.clip");
    t.fail(USAGE, "index oci:layout:latest");
    t.fail(USAGE, "index");
    t.fail(USAGE, "frobnicate");
    t.heading("files inside an image");
    scene.index_layout(&scene.path("layout"), "image.clip");
    t.fail(
        OTHER,
        "cat --state-dir /proc/nowhere image.clip /etc/passwd",
    );
    scene.dir("state");
    t.fail(OTHER, "cat image.clip /etc/shadow");
    t.fail(OTHER, "cat image.clip /etc");
    t.fail(OTHER, "ls image.clip /etc/passwd/x");
    expect_file!["../golden/errors-files.txt"].assert_eq(&t.text);
}

#[test]
fn s3_images_whose_parts_do_not_fit() {
    let scene = Scene::new();
    tiny(&scene, "wrong-diff-ids", Flaw::WrongDiffIds);
    tiny(&scene, "unknown-layers", Flaw::UnknownLayerType);
    tiny(&scene, "schema1", Flaw::DockerSchema1);
    let mut t = Transcript::new(&scene);
    t.heading("the configuration names another diffID");
    t.fail(PERMANENT, "index oci:wrong-diff-ids:latest out.clip");
    t.heading("layers in a format that nobody knows");
    t.fail(PERMANENT, "index oci:unknown-layers:latest out.clip");
    t.heading("a manifest from before 2016");
    t.fail(PERMANENT, "index oci:schema1:latest out.clip");
    t.heading("the registry's disk has rotted");
    let published = publish(&tiny(&scene, "layout", Flaw::None));
    t.call(published.proxy.address(), "127.0.0.1:5000");
    flip_a_bit_of_the_layer(&published.registry.storage(), &scene.path("layout"));
    t.fail(OTHER, &format!("index {} out.clip", published.reference));
    expect_file!["../golden/errors-images.txt"].assert_eq(&t.text);
}

/// Changes one bit in the registry's copy of the layer, which is the layout's largest blob but for JSON.
fn flip_a_bit_of_the_layer(storage: &Path, layout: &Path) {
    for blob in std::fs::read_dir(layout.join("blobs/sha256")).unwrap() {
        let blob = blob.unwrap();
        let mut content = std::fs::read(blob.path()).unwrap();
        if content.starts_with(&[0x1F, 0x8B]) {
            let name = blob.file_name().into_string().unwrap();
            let stored = storage.join("docker/registry/v2/blobs/sha256");
            // The modification time of the gzip header: decodes as before, but is not what was pushed.
            content[4] ^= 1;
            std::fs::write(stored.join(&name[..2]).join(&name).join("data"), content).unwrap();
        }
    }
}
