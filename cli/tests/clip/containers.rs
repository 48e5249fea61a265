//! S4, S5: runc starts containers on a mounted image: under a writable overlay, and read-only with runc's own mounts on
//! the empty runtime directories.

use crate::scene::{Scene, Server};
use clip_testkit::{
    guard::{Mounted, run},
    images,
    layout::{self, Flaw, Layer},
};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// A bundle for runc, with a state directory of its own. The container is deleted with it.
struct Container<'a> {
    scene: &'a Scene,
    name: String,
    spec: Value,
}

impl<'a> Container<'a> {
    /// A container on `root` that runs `script`, otherwise as `runc spec` has it.
    fn new(scene: &'a Scene, root: &Path, script: &str) -> Container<'a> {
        let name = format!(
            "clip-test-{}-{}",
            std::process::id(),
            scene.left_behind().len()
        );
        std::fs::create_dir(scene.path(&name)).unwrap();
        run(Command::new("runc")
            .arg("spec")
            .current_dir(scene.path(&name)))
        .unwrap();
        let spec = std::fs::read(scene.path(&name).join("config.json")).unwrap();
        let mut spec: Value = serde_json::from_slice(&spec).unwrap();
        spec["root"] = json!({ "path": root, "readonly": false });
        spec["process"]["terminal"] = json!(false);
        spec["process"]["args"] = json!(["/bin/sh", "-euc", script]);
        spec["linux"]["cgroupsPath"] = json!(format!("/{name}"));
        Container { scene, name, spec }
    }

    fn bind(&mut self, from: &Path, to: &str) {
        let mount =
            json!({ "source": from, "destination": to, "type": "bind", "options": ["bind", "ro"] });
        self.spec["mounts"].as_array_mut().unwrap().push(mount);
    }

    /// Runs it to its end; what it printed.
    fn run(self) -> String {
        let bundle = self.scene.path(&self.name);
        std::fs::write(bundle.join("config.json"), self.spec.to_string()).unwrap();
        run(self
            .runc()
            .args(["run", "--bundle"])
            .arg(bundle)
            .arg(&self.name))
        .unwrap()
    }

    fn runc(&self) -> Command {
        let mut runc = Command::new("runc");
        runc.arg("--root").arg(self.scene.path("runc"));
        runc
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        // Gone already unless something failed.
        let _ = self.runc().args(["delete", "--force", &self.name]).output();
    }
}

/// Directories for an overlay on `lower`; upper and work lie on a tmpfs of their own.
struct Overlay {
    merged: Mounted,
    _upper: Mounted,
}

fn overlay(scene: &Scene, lower: &Path) -> Overlay {
    let upper = Mounted::mount("tmpfs", &scene.dir("writable"), "mode=0755").unwrap();
    for name in ["upper", "work"] {
        std::fs::create_dir(upper.path().join(name)).unwrap();
    }
    let merged = scene.dir("merged");
    let base = upper.path().display();
    let options = format!(
        "lowerdir={},upperdir={base}/upper,workdir={base}/work",
        lower.display()
    );
    Overlay {
        merged: Mounted::mount("overlay", &merged, &options).unwrap(),
        _upper: upper,
    }
}

fn mount_layout(scene: &Scene, layout: &Path, index_flags: &[&str]) -> Server {
    let source = format!("oci:{}:latest", layout.display());
    let mut index = vec!["index"];
    index.extend(index_flags);
    index.extend([source.as_str(), "image.clip"]);
    scene.ok(index);
    scene.dir("mnt");
    scene.mount(["-o", "suid,dev", "image.clip", "mnt"])
}

fn hosts(scene: &Scene) -> PathBuf {
    let hosts = scene.path("hosts");
    std::fs::write(&hosts, "10.0.0.1 bound.test\n").unwrap();
    hosts
}

#[test]
fn s4_s5_runc_runs_debian_under_a_writable_overlay() {
    let scene = Scene::new();
    let server = mount_layout(&scene, &images::image("debian-min").unwrap(), &[]);
    let overlay = overlay(&scene, server.path());
    let script = "
        cat /etc/debian_version >/dev/null; id -u; cat /proc/1/comm; test -c /dev/null; ls /sys | grep -c kernel
        echo changed >/etc/motd; cat /etc/motd; rm /etc/issue; test ! -e /etc/issue
        mkdir -p /new/deep && mv /new/deep /moved && touch /usr/bin/made && cat /etc/hosts && perl -e 'print 6*7, qq(\\n)'
        su -s /bin/sh nobody -c 'id -un'";
    let mut container = Container::new(&scene, overlay.merged.path(), script);
    container.bind(&hosts(&scene), "/etc/hosts");
    container.bind(&scene.path("image.clip"), "/mount/points/that/nobody/made");
    container.spec["process"]["capabilities"] = all_sets(&[
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_DAC_OVERRIDE",
        "CAP_CHOWN",
        "CAP_FOWNER",
    ]);
    assert_eq!(
        container.run(),
        "0\nsh\n1\nchanged\n10.0.0.1 bound.test\n42\nnobody\n"
    );
    assert!(
        server.path().join("etc/issue").exists(),
        "the image is as it was"
    );
    assert!(!server.path().join("moved").exists());
}

#[test]
fn s4_s5_runc_runs_on_a_read_only_root_with_its_mounts_on_empty_directories() {
    let scene = Scene::new();
    let alpine = images::image("alpine-like").unwrap();
    let server = mount_layout(&scene, &alpine, &["--runtime-dirs", "empty"]);
    let script = "
        id -u; cat /proc/1/comm; test -c /dev/null && test -d /dev/pts && test -d /dev/mqueue && test -d /sys/fs/cgroup
        cat /etc/hostname; cat /mnt/file
        if touch /etc/x 2>/dev/null; then echo writable; else echo read-only; fi
        echo kept >/dev/shm/x && cat /dev/shm/x";
    let mut container = Container::new(&scene, server.path(), script);
    container.spec["root"]["readonly"] = json!(true);
    std::fs::write(scene.dir("data").join("file"), "bound\n").unwrap();
    container.bind(&hosts(&scene), "/etc/hostname");
    container.bind(&scene.path("data"), "/mnt");
    assert_eq!(
        container.run(),
        "0\nsh\n10.0.0.1 bound.test\nbound\nread-only\nkept\n"
    );
}

#[test]
fn s4_directories_that_no_layer_lists_carry_mounts_and_can_be_walked() {
    let scene = Scene::new();
    let busybox = std::fs::read("/bin/busybox").unwrap();
    // Not one directory entry, on either layer; the second replaces nothing of the first.
    let program = |layer: Layer| {
        layer
            .entry(tar::EntryType::Regular, "bin/busybox", 0o755, &busybox)
            .entry(tar::EntryType::Regular, "bin/sh", 0o755, &busybox)
    };
    let layers = vec![
        program(Layer::new()).file("a/b/c/d/e/file", "deep\n"),
        Layer::new()
            .file("a/b/other/file", "upper\n")
            .file("mount/here/keep", ""),
    ];
    let layout = layout::write(&scene.dir("layout"), layers, Flaw::None).unwrap();
    let server = mount_layout(&scene, &layout, &[]);
    let overlay = overlay(&scene, server.path());
    let script = "
        cd /a/b/c/d/e && cat file && cd ../../../other && busybox pwd && cat file && cd ../../.. && busybox pwd
        busybox stat -c '%a %u:%g %n' /a /a/b /a/b/c/d/e; busybox cat /mount/here/file"
        .replace("cat ", "busybox cat ")
        .replace("busybox busybox", "busybox");
    let mut container = Container::new(&scene, overlay.merged.path(), &script);
    std::fs::write(scene.dir("data").join("file"), "bound\n").unwrap();
    container.bind(&scene.path("data"), "/mount/here");
    assert_eq!(
        container.run(),
        "deep\n/a/b/other\nupper\n/\n755 0:0 /a\n755 0:0 /a/b\n755 0:0 /a/b/c/d/e\nbound\n"
    );
}

fn all_sets(names: &[&str]) -> Value {
    json!({ "bounding": names, "effective": names, "permitted": names })
}
