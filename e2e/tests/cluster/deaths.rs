//! kill -9 of every process of ours: waiting, or starting a container again, is all that is needed. Afterwards pods,
//! kubelet and mount table are as they should be: nothing hangs, nothing leaks.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::kube::{Namespace, REGISTRY, eventually, kubectl};
use crate::node::{self, kill, mount_of, nothing_leaks, process, uid};

/// Looks for a name that nobody asked for before, which only the server can answer, and says what came of it: files that
/// were read once are read from the page cache even when the server is dead.
const WATCH: &str = "n=0; while :; do n=$((n + 1)); ls /image/etc/nobody-$n 2>/tmp/why; \
    grep -q 'No such file' /tmp/why && echo alive || cat /tmp/why; sleep 0.3; done";

/// Reads a file somewhere in the image at each turn, so that read-ahead does not help, and ends when a read fails.
const READ_ALL: &str = "find /image/usr/share /image/usr/lib -type f | shuf | while read -r file; do \
    cat \"$file\" >/dev/null || exit 1; echo alive; sleep 0.1; done";

#[test]
fn s11_a_killed_job_is_tried_again() {
    let ns = Namespace::new("kill-job");
    ns.clip_image(
        "big",
        json!({"image": format!("{REGISTRY}/demo/big-gzip:1")}),
    );
    kill(&process("clip index "));
    ns.wait_ready("big");
}

#[test]
fn s11_a_killed_operator_goes_on_where_it_was() {
    let ns = Namespace::new("kill-operator");
    ns.clip_image(
        "debian",
        json!({"image": format!("{REGISTRY}/demo/debian-min:1")}),
    );
    kill(&process("clip-operator --listen"));
    ns.wait_ready("debian");
}

#[test]
fn s11_the_death_of_clip_serve_is_noticed_by_no_reader() {
    let ns = reading("kill-serve", READ_ALL);
    for _ in 0..3 {
        kill(&process("/usr/bin/clip-serve "));
        reads_on(&ns);
    }
    nothing_stays(ns);
}

#[test]
fn s11_the_death_of_clip_csi_node_is_noticed_by_no_reader() {
    let ns = reading("kill-node", READ_ALL);
    let server = process("/usr/bin/clip-serve ");
    kill(&process("clip-csi-node --kubelet-dir"));
    let next = eventually("another clip-serve", || {
        match process("/usr/bin/clip-serve ") {
            next if next != server => Ok(next),
            same => Err(format!("still {same}: it outlived its parent")),
        }
    });
    assert_ne!(next, server);
    reads_on(&ns);
    a_new_pod_starts_soon(&ns);
    nothing_stays(ns);
}

#[test]
fn s11_the_death_of_the_keeper_is_noticed_by_nobody_and_the_next_one_keeps() {
    let ns = reading("kill-keeper", READ_ALL);
    let keeper = process("clip-keeper --socket");
    kill(&keeper);
    eventually("another keeper", || match process("clip-keeper --socket") {
        next if next != keeper => Ok(()),
        same => Err(format!("still {same}")),
    });
    reads_on(&ns);
    // The plugin looks for it every half second.
    std::thread::sleep(Duration::from_secs(2));
    kill(&process("clip-csi-node --kubelet-dir"));
    reads_on(&ns);
    nothing_stays(ns);
}

#[test]
fn s11_an_upgrade_of_the_node_plugin_is_noticed_by_no_reader() {
    let ns = reading("upgrade", READ_ALL);
    let plugin = process("clip-csi-node --kubelet-dir");
    for action in [
        &["rollout", "restart", "daemonset/clip-csi-node"][..],
        &[
            "delete",
            "pod",
            "-l",
            "app.kubernetes.io/component=csi-node",
            "--timeout=60s",
        ],
    ] {
        kubectl(&[&["-n", "clip-system"], action].concat()).unwrap();
        rolled_out();
        reads_on(&ns);
    }
    assert_ne!(process("clip-csi-node --kubelet-dir"), plugin);
    a_new_pod_starts_soon(&ns);
    nothing_stays(ns);
}

#[test]
fn s11_when_keeper_and_node_plugin_die_together_a_running_container_is_told_and_its_successor_reads()
 {
    let ns = reading("kill-both", WATCH);
    kill(&process("clip-keeper --socket"));
    kill(&process("clip-csi-node --kubelet-dir"));
    // A name that the kernel's EROFS has not read yet, or a FUSE that is gone.
    ns.kubectl(&[
        "exec",
        "reader",
        "--",
        "sh",
        "-c",
        "cat /image/usr/bin/* >/dev/null",
    ])
    .unwrap_err();
    a_new_pod_starts_soon(&ns);
    restart_container(&ns);
    ns.wait_log("reader", "alive");
    ns.wait_event_of("reader", "VolumeLost");
    nothing_stays(ns);
}

#[test]
fn s11_a_pod_whose_server_died_can_be_deleted_at_once() {
    let ns = reading("delete-dead", WATCH);
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

/// A namespace with ClipImage `app` and a pod `reader` that reads it with `script`. The node plugin is a fresh one: kubelet makes a
/// container that died several times wait longer each time.
fn reading(story: &str, script: &str) -> Namespace {
    fresh_node_plugin();
    let ns = Namespace::new(story);
    ns.clip_image(
        "app",
        json!({"image": format!("{REGISTRY}/demo/debian-min:1")}),
    );
    ns.wait_ready("app");
    ns.pod("reader", json!({"clipImage": "app"}), script);
    ns.wait_log("reader", "alive");
    ns
}

/// The container that began to read goes on, and no read of it failed.
fn reads_on(ns: &Namespace) {
    let lines = |log: &str| log.matches("alive").count();
    let before = lines(&ns.kubectl(&["logs", "reader"]).unwrap());
    eventually("the reader reads on", || {
        let log = ns.kubectl(&["logs", "reader"])?;
        match lines(&log) > before + 5 {
            true => Ok(()),
            false => Err(log),
        }
    });
    assert_eq!(restarts(&get_pod(ns, "reader")), Some(0));
}

fn rolled_out() {
    kubectl(&[
        "-n",
        "clip-system",
        "rollout",
        "status",
        "daemonset/clip-csi-node",
        "--timeout=60s",
    ])
    .unwrap();
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
    rolled_out();
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
    let before = restarts(&get_pod(ns, "reader"));
    let id = get_pod(ns, "reader")["status"]["containerStatuses"][0]["containerID"].clone();
    let id = id.as_str().unwrap().replace("containerd://", "");
    node::kill_container(&id);
    eventually("the container was started again", || {
        let pod = get_pod(ns, "reader");
        match restarts(&pod) > before && pod["status"]["containerStatuses"][0]["ready"] == true {
            true => Ok(()),
            false => Err(format!("{:#}", pod["status"])),
        }
    });
}

fn restarts(pod: &Value) -> Option<u64> {
    pod["status"]["containerStatuses"][0]["restartCount"].as_u64()
}

fn get_pod(ns: &Namespace, name: &str) -> Value {
    serde_json::from_str(&ns.kubectl(&["get", "pod", name, "-o", "json"]).unwrap()).unwrap()
}

fn nothing_stays(ns: Namespace) {
    drop(ns);
    nothing_leaks();
}
