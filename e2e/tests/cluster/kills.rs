//! kill -9 of every process of ours: waiting, or starting a container again, is all that is needed.

use crate::kube::{Namespace, REGISTRY, clip_mounts, eventually, kubectl, node, pids};
use serde_json::json;

fn kill(command: &str) {
    let found = eventually(&format!("a process {command}"), || match pids(command) {
        found if found.is_empty() => Err("none".to_owned()),
        found => Ok(found),
    });
    for pid in found {
        let _ = node(&["kill", "-9", &pid]);
    }
}

fn wait_node_plugin() {
    eventually("the node plugin is back", || {
        kubectl(&[
            "-n",
            "clip-system",
            "rollout",
            "status",
            "daemonset/clip-csi-node",
            "--timeout=60s",
        ])
    });
}

#[test]
fn s11_a_killed_job_is_tried_again() {
    let ns = Namespace::new("kill-job");
    ns.clip_image(
        "big",
        json!({"image": format!("{REGISTRY}/demo/big-gzip:1")}),
    );
    kill("/usr/bin/clip index\\|clip index\\|/clip index");
    ns.wait_ready("big");
}

#[test]
fn s11_a_killed_operator_goes_on_where_it_was() {
    let ns = Namespace::new("kill-operator");
    ns.clip_image(
        "debian",
        json!({"image": format!("{REGISTRY}/demo/debian-min:1")}),
    );
    kill("/usr/bin/clip-operator\\|/clip-operator\\|clip-operator");
    ns.wait_ready("debian");
}

#[test]
fn s11_a_killed_server_costs_running_pods_their_mount_and_a_new_container_heals_it() {
    let ns = Namespace::new("kill-serve");
    ns.clip_image(
        "debian",
        json!({"image": format!("{REGISTRY}/demo/debian-min:1")}),
    );
    ns.wait_ready("debian");
    // What was read once is answered by the kernel even without a server, so each turn reads another file.
    let script = "find /image/usr/share /image/usr/lib -type f | while read -r file; do \
                  cat \"$file\" >/dev/null || exit 1; echo alive; sleep 0.1; done";
    ns.pod("reader", json!({"clipImage": "debian"}), script);
    ns.wait_log("reader", "alive");
    kill("/usr/bin/clip-serve\\|/clip-serve\\|clip-serve");
    // The container ends when its read fails; kubelet starts it again, on the mended mount.
    eventually("the container was started again and reads", || {
        let restarts = ns.kubectl(&[
            "get",
            "pod",
            "reader",
            "-o",
            "jsonpath={.status.containerStatuses[0].restartCount}",
        ])?;
        let log = ns.kubectl(&["logs", "reader"])?;
        match restarts != "0" && log.contains("alive") {
            true => Ok(()),
            false => Err(format!("restarts {restarts}: {log}")),
        }
    });
    ns.pod(
        "new",
        json!({"clipImage": "debian"}),
        "cat /image/etc/os-release; sleep 100000",
    );
    ns.wait_log("new", "PRETTY_NAME");
}

#[test]
fn s11_a_killed_node_plugin_leaks_no_mount_and_hangs_no_kubelet() {
    let ns = Namespace::new("kill-node");
    ns.clip_image(
        "debian",
        json!({"image": format!("{REGISTRY}/demo/debian-min:1")}),
    );
    ns.wait_ready("debian");
    ns.pod(
        "before",
        json!({"clipImage": "debian"}),
        "cat /image/etc/os-release; sleep 100000",
    );
    ns.wait_log("before", "PRETTY_NAME");
    kill("/usr/bin/clip-csi-node\\|/clip-csi-node\\|clip-csi-node");
    wait_node_plugin();
    ns.pod(
        "after",
        json!({"clipImage": "debian"}),
        "cat /image/etc/os-release; sleep 100000",
    );
    ns.wait_log("after", "PRETTY_NAME");
    ns.kubectl(&["delete", "pod", "--all", "--timeout=60s"])
        .unwrap();
    eventually("all mounts gone", || match clip_mounts() {
        mounts if mounts.is_empty() => Ok(()),
        mounts => Err(mounts.join("\n")),
    });
    let left = node(&[
        "sh",
        "-c",
        "ls /var/lib/kubelet/plugins/csi.clip.dev/mounts 2>/dev/null || true",
    ])
    .unwrap();
    assert_eq!(left.trim(), "", "directories left behind");
}
