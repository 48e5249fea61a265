//! Pods with `hostUsers: false`: the runtime maps the volume's owners into the pod's user namespace, with both engines.
//!
//! crun does here what it does for kubelet: containerd and runc of Debian 12 are older than such pods.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use common::{IMAGE, Scene};
use serde_json::{Value, json};

/// What user 0 of the container is outside.
const FIRST: u32 = 100_000;
const USERS: u32 = 65_536;

/// docs/semantics.md: "A pod with users of its own sees the image's owners as its own".
#[test]
fn a_pod_with_users_of_its_own_sees_the_images_owners_and_reads_what_root_may() {
    for engine in ["fuse", "erofs"] {
        let mut scene = Scene::new();
        scene.arguments = vec![format!("--engine={engine}")];
        scene.start();
        let target = scene.target("one");
        scene.publish(&target, &[("clipImage", IMAGE)]).unwrap();
        let script = "stat -c '%u:%g %a' /image/etc/private && cat /image/etc/private && id -u";

        let output = run(&scene, &target, script);
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said, "0:0 600\nonly root\n0\n", "{engine}: {output:?}");

        scene.unpublish(&target).unwrap();
        scene.assert_nothing_left();
    }
}

/// Runs a script in a container that has the volume at `/image` and users of its own.
fn run(scene: &Scene, volume: &Path, script: &str) -> Output {
    let bundle = scene.path("bundle");
    let _ = fs::remove_dir_all(&bundle);
    for folder in ["image", "bin", "dev", "proc"] {
        fs::create_dir_all(bundle.join("rootfs").join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", bundle.join("rootfs/bin/busybox")).unwrap();
    let config = config(volume, script);
    fs::write(bundle.join("config.json"), config.to_string()).unwrap();
    let crun = clip_testkit::runtimes::crun(&scene.path("wrapper")).unwrap();
    Command::new(crun)
        .args(["--cgroup-manager=disabled", "--root"])
        .arg(scene.path("crun"))
        .args(["run", "--bundle"])
        .arg(&bundle)
        .arg(format!("clip-users-{}", std::process::id()))
        .output()
        .expect("crun runs: `e2e/cluster/setup packages` installs it")
}

fn config(volume: &Path, script: &str) -> Value {
    let mapping = json!([{"containerID": 0, "hostID": FIRST, "size": USERS}]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "args": ["/bin/busybox", "sh", "-c", script],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
        },
        "root": {"path": "rootfs", "readonly": true},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {
                "destination": "/image",
                "type": "bind",
                "source": volume,
                "options": ["bind", "ro", "idmap"],
            },
        ],
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "user"}, {"type": "pid"}],
            "uidMappings": mapping,
            "gidMappings": mapping,
        },
    })
}
