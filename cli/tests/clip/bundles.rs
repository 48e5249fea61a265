//! S10: a container is made from the archive's own runtime configuration, on a writable overlay or read-only, and
//! taken away again. What the runtimes think of the bundle is the judge.

use crate::{
    scene::{PATIENCE, Published, Scene, process, publish, serving},
    transcript::Transcript,
};
use clip_fs::mount_points;
use clip_testkit::{
    guard::{Mounted, Running, run, wait_until},
    images,
    layout::{self, Flaw, Layer},
    proxy::Mood,
};
use expect_test::expect_file;
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use std::{
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// What a default container of Docker's may do, as the kernel writes it.
const DOCKERS_CAPABILITIES: &str = "00000000a80425fb";

/// An image from Debian packages in a registry, and an archive of it.
pub struct Stage {
    /// Temporary files of every `clip` here: what is left in it was left behind. First: it is mounted in the scene.
    pub temporary: Mounted,
    pub scene: Scene,
    pub published: Published,
}

impl Stage {
    pub fn new() -> Stage {
        let scene = Scene::new();
        let base = images::image("debian-min").unwrap();
        let layer = Layer::new()
            .entry(tar::EntryType::Directory, "./", 0o711, b"")
            .file(
                "etc/passwd",
                "root:x:0:0:root:/root:/bin/bash\napp:x:1000:1001::/home/app:/bin/sh\n",
            )
            .file("etc/group", "root:x:0:\napp:x:1001:\nvideo:x:44:app\n")
            .entry(
                tar::EntryType::Regular,
                "usr/local/bin/entry",
                0o755,
                b"#!/bin/sh\necho \"entry: $*\"\nexec \"$@\"\n",
            )
            .entry(tar::EntryType::Directory, "srv/app", 0o777, b"")
            .entry(
                tar::EntryType::Regular,
                "usr/local/bin/read-as-owner",
                0o4755,
                &std::fs::read("/bin/cat").unwrap(),
            )
            .entry(tar::EntryType::Regular, "etc/only-root", 0o600, b"secret\n");
        let config = json!({
            "User": "app", "WorkingDir": "/srv/app", "Env": ["GREETING=hi there"],
            "Entrypoint": ["/usr/local/bin/entry"],
            "Cmd": ["sh", "-c", "id; env | sort; pwd; echo hi >x; cat x"],
        });
        let layout = layout::on_top(&scene.dir("layout"), &base, layer, config).unwrap();
        let published = publish(&layout);
        scene.ok(["index", &published.reference, "image.clip"]);
        let temporary = Mounted::mount("tmpfs", &scene.dir("tmp"), "mode=0755").unwrap();
        Stage {
            temporary,
            scene,
            published,
        }
    }

    /// `clip` with these arguments.
    pub fn clip<A: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = self.scene.clip(args);
        command.env("TMPDIR", self.temporary.path());
        command
    }

    /// runc and crun: what to call them, and the program.
    pub fn runtimes(&self) -> [(&'static str, String); 2] {
        let crun = clip_testkit::runtimes::crun(&self.scene.path("crun")).unwrap();
        [
            ("runc", "runc".to_owned()),
            ("crun", path(&crun).to_owned()),
        ]
    }

    /// No process, no mount and no file of a container is left.
    pub fn assert_nothing_left(&self) {
        wait_until("the end of all processes", PATIENCE, || {
            serving(&self.scene).is_empty()
        })
        .unwrap_or_else(|error| {
            let left = serving(&self.scene);
            let mut ps = Command::new("ps");
            ps.args(["-o", "pid,ppid,stat,wchan:30,args", "-p"]);
            let ps = ps.arg(left.join(",")).output().unwrap();
            panic!("{error}:\n{}", String::from_utf8_lossy(&ps.stdout))
        });
        let scene = self.scene.dir.path();
        let mounts = mount_points::all()
            .unwrap()
            .into_iter()
            .map(|mount| mount.path);
        let ours = mounts.filter(|path| path.starts_with(scene) && path != self.temporary.path());
        assert_eq!(ours.collect::<Vec<_>>(), Vec::<PathBuf>::new());
        let files = std::fs::read_dir(self.temporary.path()).unwrap();
        let files: Vec<_> = files.map(|entry| entry.unwrap().file_name()).collect();
        assert!(files.is_empty(), "{files:?}");
    }

    /// Makes a bundle of the archive with these flags.
    fn bundle(&self, name: &str, flags: &[&str]) -> Made<'_> {
        let dir = self.temporary.path().join(name);
        let mut command = self.clip(["bundle"]);
        command.args(flags).arg("image.clip").arg(&dir);
        run(&mut command).unwrap();
        Made { stage: self, dir }
    }
}

/// A bundle, taken away by the test or when it fails.
struct Made<'a> {
    stage: &'a Stage,
    dir: PathBuf,
}

impl Made<'_> {
    fn spec(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.dir.join("config.json")).unwrap()).unwrap()
    }

    /// What its container says under runc; its exit code must be 0.
    fn run(&self) -> String {
        self.run_under("runc")
    }

    /// The same under another runtime.
    fn run_under(&self, runtime: &str) -> String {
        let scene = &self.stage.scene;
        // Unique on the machine, as the names of cgroups must be.
        let name = scene.dir.path().file_name().unwrap();
        let mut command = Command::new(runtime);
        command.arg("--root").arg(scene.path("containers"));
        run(command.args(["run", "--bundle"]).arg(&self.dir).arg(name)).unwrap()
    }

    fn umount(&self, flags: &[&str]) {
        run(self.stage.clip(["umount"]).args(flags).arg(&self.dir)).unwrap();
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for mounted in ["rootfs", ".clip-bundle/image"] {
                drop(Mounted::at(self.dir.join(mounted)));
            }
        }
    }
}

/// What the image's own command says.
fn expected() -> String {
    let environment = [
        "GREETING=hi there",
        "HOME=/home/app",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PWD=/srv/app",
    ];
    let mut lines = vec![
        "entry: sh -c id; env | sort; pwd; echo hi >x; cat x",
        "uid=1000(app) gid=1001(app) groups=1001(app),44(video)",
    ];
    lines.extend(environment);
    lines.extend(["/srv/app", "hi"]);
    lines.join("\n") + "\n"
}

/// docs/semantics.md: "who the user is, the image's own `/etc/passwd` and `/etc/group` say".
#[test]
fn s10_runc_and_crun_start_what_the_archive_says_on_both_engines() {
    let stage = Stage::new();
    for engine in ["fuse", "erofs"] {
        let made = stage.bundle(engine, &["--engine", engine]);
        let image = mount_points::at(&made.dir.join(".clip-bundle/image"))
            .unwrap()
            .unwrap();
        assert!(
            image.is_clip() && image.fs_type.contains(engine),
            "{image:?}"
        );
        for (name, runtime) in stage.runtimes() {
            assert_eq!(made.run_under(&runtime), expected(), "{name} on {engine}");
        }
        let written = made.dir.join(".clip-bundle/upper/srv/app/x");
        assert_eq!(std::fs::read_to_string(&written).unwrap(), "hi\n");
        made.umount(&[]);
        assert!(
            mount_points::at(&made.dir.join("rootfs"))
                .unwrap()
                .is_none()
        );
        assert!(
            written.exists() && made.dir.join("config.json").exists(),
            "only unmounted"
        );
        made.umount(&["--remove"]);
        assert!(!made.dir.exists());
    }
    stage.assert_nothing_left();
}

#[test]
fn s10_a_bundle_outlives_its_server() {
    let stage = Stage::new();
    for engine in ["fuse", "erofs"] {
        let made = stage.bundle(engine, &["--engine", engine]);
        for _ in 0..2 {
            kill(process(&stage.scene, "server").unwrap(), Signal::SIGKILL).unwrap();
            assert_eq!(made.run(), expected(), "{engine}");
        }
        made.umount(&["--remove"]);
        stage.assert_nothing_left();
    }
}

/// docs/semantics.md: "A container's root has the owner and mode of the image's root".
#[test]
fn s10_a_container_may_what_dockers_may() {
    let stage = Stage::new();
    let script = "
        grep CapBnd /proc/self/status; read-as-owner /etc/only-root; stat -c '%a %U' / /srv/app; hostname
        test -c /dev/null && echo x >/dev/null && test -d /dev/pts && test -d /sys/kernel && echo mounts
        if cat /proc/kcore 2>/dev/null | head -c 1 | grep -q .; then echo kcore; fi
        if echo 1 2>/dev/null >/proc/sys/kernel/domainname; then echo sysctl; fi";
    let made = stage.bundle("b", &[]);
    let mut spec = made.spec();
    assert_eq!(spec["root"]["path"], "rootfs");
    spec["process"]["args"] = json!(["sh", "-c", script]);
    std::fs::write(made.dir.join("config.json"), spec.to_string()).unwrap();
    assert_eq!(
        made.run(),
        format!("CapBnd:\t{DOCKERS_CAPABILITIES}\nsecret\n711 root\n777 root\napp\nmounts\n")
    );
    let mode = std::fs::metadata(&made.dir).unwrap().permissions().mode();
    assert_eq!(
        mode & 0o777,
        0o700,
        "nobody else reaches the image's set-user-ID programs"
    );
    made.umount(&["--remove"]);
    stage.assert_nothing_left();
}

#[test]
fn s5_s10_a_read_only_bundle_has_no_upper_directory_and_needs_no_runtime_directories() {
    let stage = Stage::new();
    // No /proc, /sys, /dev in the archive; and what hides a mount point's folder.
    let made = stage.bundle("b", &["--read-only", "--workdir", "/not/there/before"]);
    assert!(!made.dir.join(".clip-bundle/upper").exists());
    let script = "pwd; stat -c %a /; if touch /srv/app/x 2>/dev/null; then echo written; fi; echo kept >/dev/shm/x; cat /dev/shm/x; ls -d /proc/self";
    let mut spec = made.spec();
    spec["process"]["args"] = json!(["sh", "-c", script]);
    std::fs::write(made.dir.join("config.json"), spec.to_string()).unwrap();
    for (_, runtime) in stage.runtimes() {
        assert_eq!(
            made.run_under(&runtime),
            "/not/there/before\n711\nkept\n/proc/self\n"
        );
    }
    made.umount(&["--remove"]);
    stage.assert_nothing_left();
}

#[test]
fn a_read_only_bundle_does_not_mount_on_a_link_that_leads_nowhere() {
    let scene = Scene::new();
    let busybox = std::fs::read("/bin/busybox").unwrap();
    let base = layout::write(&scene.dir("base"), Vec::new(), Flaw::None).unwrap();
    let program = Layer::new()
        .entry(tar::EntryType::Regular, "bin/sh", 0o755, &busybox)
        .link("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf");
    let config = json!({ "Cmd": ["/bin/sh", "-c", "echo runs"] });
    let layout = layout::on_top(&scene.dir("layout"), &base, program, config).unwrap();
    scene.index_layout(&layout, "image.clip");
    for flags in [&["--read-only"][..], &[]] {
        let said = run(scene.clip(["run"]).args(flags).arg("image.clip")).unwrap();
        assert_eq!(said, "runs\n");
    }
}

#[test]
fn a_directory_of_any_name_is_good_for_a_bundle() {
    let stage = Stage::new();
    for flags in [&[][..], &["--read-only", "--workdir", "/srv"]] {
        let made = stage.bundle("a,b:c\\d e", flags);
        let mut spec = made.spec();
        spec["process"]["args"] = json!(["pwd"]);
        std::fs::write(made.dir.join("config.json"), spec.to_string()).unwrap();
        assert!(made.run().starts_with("/srv"));
        made.umount(&["--remove"]);
        assert!(!made.dir.exists());
    }
    stage.assert_nothing_left();
}

#[test]
fn a_bundle_needs_a_registry_only_for_what_is_not_cached() {
    let stage = Stage::new();
    stage.scene.ok(["profile", "apply", "--all", "image.clip"]);
    stage.published.proxy.set(Mood::HangUp);
    let made = stage.bundle("b", &[]);
    assert_eq!(made.run(), expected());
    made.umount(&["--remove"]);
    stage.assert_nothing_left();
}

#[test]
fn a_bundle_whose_server_and_keeper_were_killed_is_taken_away_like_any_other() {
    let stage = Stage::new();
    for engine in ["fuse", "erofs"] {
        let made = stage.bundle(engine, &["--engine", engine]);
        // The keeper first: it would start another server.
        for role in ["keeper", "server"] {
            kill(process(&stage.scene, role).unwrap(), Signal::SIGKILL).unwrap();
        }
        wait_until("their end", PATIENCE, || serving(&stage.scene).is_empty()).unwrap();
        made.umount(&["--remove"]);
        assert!(!made.dir.exists());
    }
    stage.assert_nothing_left();
}

#[test]
fn of_two_bundles_at_once_in_one_directory_one_is_made() {
    let stage = Stage::new();
    let dir = stage.temporary.path().join("b");
    let start = || {
        let mut command = stage.clip(["bundle", "image.clip"]);
        command.arg(&dir).spawn().unwrap()
    };
    let mut both = [start(), start()];
    let codes = both.each_mut().map(|child| child.wait().unwrap().code());
    assert!(
        codes.contains(&Some(0)) && codes.contains(&Some(1)),
        "{codes:?}"
    );
    let made = Made { stage: &stage, dir };
    assert_eq!(made.run(), expected());
    made.umount(&["--remove"]);
    stage.assert_nothing_left();
}

#[test]
fn whenever_making_a_bundle_is_killed_it_can_be_taken_away() {
    let stage = Stage::new();
    // Everything is in the cache, so that all moments are much the same each time.
    stage.bundle("first", &[]).umount(&["--remove"]);
    let dir = stage.temporary.path().join("b");
    for moment in 0..12 {
        let mut command = stage.clip(["bundle", "image.clip"]);
        let mut process = Running(command.arg(&dir).spawn().unwrap());
        std::thread::sleep(Duration::from_millis(25) * moment);
        process.0.kill().unwrap();
        process.0.wait().unwrap();
        // Its server may still be about to mount.
        wait_until("the end of the bundle", PATIENCE, || {
            let _ = run(stage.clip(["umount", "--remove"]).arg(&dir));
            !dir.exists() && serving(&stage.scene).is_empty()
        })
        .unwrap();
        stage.assert_nothing_left();
    }
}

#[test]
fn on_a_full_disk_nothing_is_left_of_a_bundle() {
    let stage = Stage::new();
    let full = Mounted::mount("tmpfs", &stage.scene.dir("full"), "size=4k").unwrap();
    let refused = run(stage
        .clip(["bundle", "image.clip"])
        .arg(full.path().join("b")))
    .unwrap_err();
    assert!(refused.to_string().contains("No space left"), "{refused}");
    assert_eq!(std::fs::read_dir(full.path()).unwrap().count(), 0);
    drop(full);
    stage.assert_nothing_left();
}

#[test]
fn a_registry_that_hangs_keeps_no_bundle_waiting() {
    let stage = Stage::new();
    stage.published.proxy.set(Mood::Silent);
    let dir = stage.temporary.path().join("b");
    let mut command = stage.clip(["bundle", "--read-timeout", "1", "image.clip"]);
    let refused = run(command.arg(&dir)).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("cannot read /etc/passwd of the image"),
        "{refused}"
    );
    assert!(!dir.exists());
    stage.assert_nothing_left();
}

#[test]
fn taking_a_bundle_away_deletes_nothing_through_a_mount() {
    let stage = Stage::new();
    let precious = stage.scene.dir("precious");
    std::fs::write(precious.join("file"), "kept").unwrap();
    let made = stage.bundle("b", &[]);
    let inside = made.dir.join(".clip-bundle/upper/bound");
    std::fs::create_dir(&inside).unwrap();
    let _bound = Mounted::at(&inside);
    run(Command::new("mount")
        .arg("--bind")
        .arg(&precious)
        .arg(&inside))
    .unwrap();
    symlink(&precious, made.dir.join(".clip-bundle/upper/link")).unwrap();
    let refused = run(stage.clip(["umount", "--remove"]).arg(&made.dir)).unwrap_err();
    assert!(
        refused.to_string().contains("bound: unmount it first"),
        "{refused}"
    );
    run(Command::new("umount").arg(&inside)).unwrap();
    made.umount(&["--remove"]);
    assert_eq!(
        std::fs::read_to_string(precious.join("file")).unwrap(),
        "kept"
    );
    stage.assert_nothing_left();
}

#[test]
fn a_state_directory_on_an_overlay_is_good_enough() {
    // As in a pod: the root of a container is an overlay. Not every kernel stacks EROFS on it and an overlay on that.
    let stage = Stage::new();
    let base = stage.scene.dir("overlay");
    for name in ["lower", "upper", "work", "merged"] {
        std::fs::create_dir(base.join(name)).unwrap();
    }
    let options = ["lowerdir=lower", "upperdir=upper", "workdir=work"].join(",");
    let merged = base.join("merged");
    let _overlay = Mounted::at(&merged);
    run(Command::new("mount")
        .current_dir(&base)
        .args(["-t", "overlay", "overlay", "-o", &options])
        .arg(&merged))
    .unwrap();
    let made = stage.bundle("b", &["--engine", "auto", "--state-dir", path(&merged)]);
    assert_eq!(made.run(), expected());
    made.umount(&["--remove"]);

    // What is written cannot lie there; reading can.
    let refused = run(stage.clip(["bundle", "image.clip"]).arg(merged.join("b"))).unwrap_err();
    assert!(
        refused.to_string().contains("in a pod an emptyDir"),
        "{refused}"
    );
    assert!(!merged.join("b").exists());
    let made = Made {
        stage: &stage,
        dir: merged.join("read-only"),
    };
    run(stage
        .clip(["bundle", "--read-only", "image.clip"])
        .arg(&made.dir))
    .unwrap();
    made.umount(&["--remove"]);
    drop(_overlay);
    stage.assert_nothing_left();
}

#[test]
fn s10_what_cannot_be_made_is_said() {
    let scene = Scene::new();
    let layer = Layer::new().file("etc/passwd", "app:x:1000:1000::/:\n");
    let layout = layout::write(&scene.dir("layout"), vec![layer], Flaw::None).unwrap();
    scene.index_layout(&layout, "image.clip");
    let bare = layout::on_top(&scene.dir("bare"), &layout, Layer::new(), json!({})).unwrap();
    scene.index_layout(&bare, "bare.clip");
    scene.index_layout(&artifact(&scene), "artifact.clip");
    scene.dir("empty");
    std::fs::write(scene.dir("full").join("file"), "").unwrap();
    std::fs::write(scene.path("file"), "").unwrap();

    // The first look makes the state directory.
    scene.ok(["ls", "image.clip"]);

    let mut t = Transcript::new(&scene);
    t.heading("images of which no container can be made");
    t.fail(1, "bundle bare.clip b");
    t.fail(1, "bundle artifact.clip b");
    t.fail(1, "bundle nowhere.clip b");
    t.heading("users that the image does not have");
    t.fail(1, "bundle --user nobody image.clip b");
    t.fail(1, "bundle --user app:wheel image.clip b");
    t.fail(1, "bundle --user app: image.clip b");
    t.fail(2, "bundle --env NOT_SET_ANYWHERE image.clip b");
    t.heading("directories that are in use");
    t.fail(1, "bundle image.clip full");
    t.fail(1, "bundle image.clip file");
    assert_eq!(t.run("bundle image.clip b"), 0, "{}", t.text);
    t.fail(1, "bundle image.clip b");
    t.heading("taking it away");
    t.fail(1, "umount --remove empty");
    t.fail(1, "umount --remove missing");
    assert_eq!(t.run("umount b"), 0, "{}", t.text);
    t.fail(1, "bundle image.clip b");
    assert_eq!(t.run("umount --remove b"), 0, "{}", t.text);
    t.heading("running");
    t.fail(125, "run --user nobody image.clip");
    t.fail(125, "run --runtime nowhere image.clip");
    t.fail(125, "run --runtime ./nowhere image.clip");
    t.fail(125, "run nowhere.clip");
    expect_file!["../golden/errors-bundles.txt"].assert_eq(&t.text);
}

/// A file that somebody pushed with ORAS.
fn artifact(scene: &Scene) -> PathBuf {
    let dir = scene.dir("artifact");
    let empty = "application/vnd.oci.empty.v1+json";
    let config = layout::add_blob(&dir, b"{}", empty).unwrap();
    let mut file = layout::add_blob(&dir, b"content", "text/plain").unwrap();
    file["annotations"] = json!({ "org.opencontainers.image.title": "file" });
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [file] });
    let manifest = layout::add_json(&dir, &manifest, media_type).unwrap();
    layout::tag_latest(&dir, manifest).unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
