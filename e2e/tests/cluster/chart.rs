//! What an admin does with the chart.

use std::process::Command;

use crate::kube::{Namespace, REGISTRY, eventually, kubectl, repository};
use serde_json::json;

#[test]
fn s11_repeating_the_installation_changes_nothing_and_disturbs_no_pod() {
    let ns = Namespace::new("upgrade");
    ns.clip_image(
        "app",
        json!({"image": format!("{REGISTRY}/demo/busybox:1")}),
    );
    ns.wait_ready("app");
    let before = workloads();
    install();
    assert_eq!(workloads(), before);
}

#[test]
fn s11_uninstalling_keeps_the_clipimages_and_installing_takes_them_up_again() {
    let ns = Namespace::new("uninstall");
    ns.clip_image(
        "app",
        json!({"image": format!("{REGISTRY}/demo/busybox:1")}),
    );
    ns.wait_ready("app");
    helm(&["uninstall", "clip", "-n", "clip-system", "--wait"]);
    eventually("nothing of the release runs", || {
        let left = kubectl(&["-n", "clip-system", "get", "pods", "-o", "name"])?;
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    let image = ns.get_clip_image("app");
    assert_eq!(image["status"]["observedGeneration"], 1, "{image:#}");
    install();
    ns.pod(
        "reader",
        json!({"clipImage": "app"}),
        "ls /image/bin/busybox; sleep 100000",
    );
    ns.wait_log("reader", "/image/bin/busybox");
    ns.wait_ready("app");
}

/// Generations of what the chart runs: they change with every change of the template.
fn workloads() -> String {
    let names = "jsonpath={range .items[*]}{.metadata.name} {.metadata.generation} {.metadata.uid}{\"\\n\"}{end}";
    kubectl(&[
        "-n",
        "clip-system",
        "get",
        "deployments,daemonsets,pods",
        "-o",
        names,
    ])
    .unwrap()
}

fn install() {
    run(Command::new(repository().join("e2e/deploy/install")).args(INSTALL_FLAGS));
}

/// As in `e2e/run`.
const INSTALL_FLAGS: [&str; 2] = ["--set", "csiNode.publishWait=5s"];

fn helm(words: &[&str]) {
    run(Command::new(repository().join("e2e/cluster/kx"))
        .arg("helm")
        .args(words));
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
