//! A container runtime's own unpacking of an image is the judge of what a volume shows.

use serde_json::json;

use crate::kube::{Namespace, REGISTRY, node};

/// Left out: what the runtime puts into every container, and the times of folders into which it does.
const COMPARE: &str = r#"
    look() {
        cd "$1"
        find . -xdev \( -path ./image -o -path ./proc -o -path ./sys -o -path ./dev -o -path ./run -o -path ./tmp \
            -o -path ./etc/hosts -o -path ./etc/hostname -o -path ./etc/resolv.conf \) -prune \
            -o -type d -printf '%p %M %U %G\n' -o -printf '%p %M %U %G %n %s %T@ %l\n' | sort
        find . -xdev \( -path ./image -o -path ./proc -o -path ./sys -o -path ./dev -o -path ./run -o -path ./tmp \
            -o -path ./etc/hosts -o -path ./etc/hostname -o -path ./etc/resolv.conf \) -prune \
            -o -type f -print0 | sort -z | xargs -0 sha256sum
    }
    look / >/tmp/unpacked
    look /image >/tmp/mounted
    wc -l </tmp/mounted
    diff /tmp/unpacked /tmp/mounted && echo all the same
    echo compared
    exec sleep 1000000"#;

#[test]
fn s3_s4_s6_s11_a_volume_shows_what_the_container_runtime_unpacks() {
    let image = format!("{REGISTRY}/demo/python-app:1");
    let ns = Namespace::new("judge");
    ns.clip_image("app", json!({ "image": image }));
    ns.wait_ready("app");
    ns.apply(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "judge"},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main", "image": image, "command": ["bash", "-c", COMPARE],
                "volumeMounts": [{"name": "image", "mountPath": "/image", "readOnly": true}],
            }],
            "volumes": [{
                "name": "image",
                "csi": {"driver": "csi.clip.dev", "readOnly": true, "volumeAttributes": {"clipImage": "app"}},
            }],
        },
    }));
    let log = ns.wait_log("judge", "compared");
    let lines: u64 = log.lines().next().unwrap().trim().parse().unwrap();
    assert!(log.contains("all the same"), "{log}");
    assert!(lines > 10_000, "{lines} lines");
    // Other stories show that nobody pulls it.
    drop(ns);
    node(&["ctr", "images", "rm", "--sync", &image]).unwrap();
}
