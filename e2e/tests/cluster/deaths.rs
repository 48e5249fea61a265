//! What pods, kubelet and mount table look like after a death in the node plugin: nothing hangs, nothing leaks.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::kube::{Namespace, REGISTRY, eventually, kubectl};
use crate::node::{self, kill, mount_of, nothing_leaks, process, uid};

/// Looks for a name that nobody asked for before, which only the server can answer, and says what came of it: files that
/// were read once are read from the page cache even when the server is dead.
const WATCH: &str = "n=0; while :; do n=$((n + 1)); ls /image/etc/nobody-$n 2>/tmp/why; \
    grep -q 'No such file' /tmp/why && echo alive || cat /tmp/why; sleep 0.3; done";

#[test]
fn s11_after_the_death_of_clip_serve_a_running_container_is_told_and_its_successor_reads() {
    let ns = reading("dead-serve");
    let server = process("/usr/bin/clip-serve ");
    kill(&server);
    // The keeper that makes this seamless is to come: until then the mount is dead for who holds it.
    ns.wait_log("reader", "not connected");
    a_new_pod_starts_soon(&ns);
    restart_container(&ns);
    ns.wait_log("reader", "alive");
    nothing_stays(ns);
}

#[test]
fn s11_after_the_death_of_clip_csi_node_a_running_container_is_told_and_its_successor_reads() {
    let ns = reading("dead-node");
    let (plugin, server) = (
        process("clip-csi-node --kubelet-dir"),
        process("/usr/bin/clip-serve "),
    );
    kill(&plugin);
    ns.wait_log("reader", "not connected");
    let next = eventually("another clip-serve", || {
        match process("/usr/bin/clip-serve ") {
            next if next != server => Ok(next),
            same => Err(format!("still {same}: it outlived its parent")),
        }
    });
    assert_ne!(next, server);
    a_new_pod_starts_soon(&ns);
    restart_container(&ns);
    ns.wait_log("reader", "alive");
    nothing_stays(ns);
}

#[test]
fn s11_a_replaced_node_plugin_takes_up_what_the_last_one_left() {
    let ns = reading("replaced");
    let delete = [
        "-n",
        "clip-system",
        "delete",
        "pod",
        "-l",
        "app.kubernetes.io/component=csi-node",
        "--timeout=60s",
    ];
    let begun = Instant::now();
    kubectl(&delete).unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "it stopped in {:?}",
        begun.elapsed()
    );
    kubectl(&[
        "-n",
        "clip-system",
        "rollout",
        "status",
        "daemonset/clip-csi-node",
        "--timeout=60s",
    ])
    .unwrap();
    a_new_pod_starts_soon(&ns);
    restart_container(&ns);
    ns.wait_log("reader", "alive");
    nothing_stays(ns);
}

#[test]
fn s11_a_pod_whose_server_died_can_be_deleted_at_once() {
    let ns = reading("delete-dead");
    let pod = get_pod(&ns, "reader");
    kill(&process("clip-csi-node --kubelet-dir"));
    ns.kubectl(&["delete", "pod", "reader", "--timeout=60s"])
        .unwrap();
    eventually("the dead mount is gone", || match mount_of(uid(&pod)) {
        None => Ok(()),
        Some(mount) => Err(mount.point),
    });
    nothing_stays(ns);
}

/// A namespace with ClipImage `app` and a pod `reader` that reads it. The node plugin is a fresh one: kubelet makes a
/// container that died several times wait longer each time.
fn reading(story: &str) -> Namespace {
    fresh_node_plugin();
    let ns = Namespace::new(story);
    ns.clip_image(
        "app",
        json!({"image": format!("{REGISTRY}/demo/debian-min:1")}),
    );
    ns.wait_ready("app");
    ns.pod("reader", json!({"clipImage": "app"}), WATCH);
    ns.wait_log("reader", "alive");
    ns
}

fn fresh_node_plugin() {
    let restarts = "jsonpath={.items[0].status.containerStatuses[0].restartCount}";
    let pods = [
        "-n",
        "clip-system",
        "get",
        "pods",
        "-l",
        "app.kubernetes.io/component=csi-node",
        "-o",
        restarts,
    ];
    if kubectl(&pods).unwrap() != "0" {
        let delete = [
            "-n",
            "clip-system",
            "delete",
            "pod",
            "-l",
            "app.kubernetes.io/component=csi-node",
        ];
        kubectl(&delete).unwrap();
    }
    kubectl(&[
        "-n",
        "clip-system",
        "rollout",
        "status",
        "daemonset/clip-csi-node",
        "--timeout=60s",
    ])
    .unwrap();
    process("/usr/bin/clip-serve ");
}

/// A hung kubelet starts nothing.
fn a_new_pod_starts_soon(ns: &Namespace) {
    let begun = Instant::now();
    ns.pod("next", json!({"clipImage": "app"}), WATCH);
    ns.wait_log("next", "alive");
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "it took {:?}",
        begun.elapsed()
    );
}

/// Ends the reader's container; kubelet starts another in the same pod, with the volume as it is now.
fn restart_container(ns: &Namespace) {
    let count = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
    let before = count(&get_pod(ns, "reader"));
    let id = get_pod(ns, "reader")["status"]["containerStatuses"][0]["containerID"].clone();
    let id = id.as_str().unwrap().replace("containerd://", "");
    node::kill_container(&id);
    eventually("the container was started again", || {
        let pod = get_pod(ns, "reader");
        match count(&pod) > before && pod["status"]["containerStatuses"][0]["ready"] == true {
            true => Ok(()),
            false => Err(format!("{:#}", pod["status"])),
        }
    });
}

fn get_pod(ns: &Namespace, name: &str) -> Value {
    serde_json::from_str(&ns.kubectl(&["get", "pod", name, "-o", "json"]).unwrap()).unwrap()
}

fn nothing_stays(ns: Namespace) {
    drop(ns);
    nothing_leaks();
}
