//! What an admin does with the chart.

use serde_json::json;

use crate::kube::{Namespace, REGISTRY, eventually, kubectl, node, repository};

#[test]
fn s11_repeating_the_installation_changes_nothing() {
    let before = workloads();
    install(&values());
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
    let values = values();
    node(&["helm", "uninstall", "clip", "-n", "clip-system", "--wait"]).unwrap();
    eventually("nothing of the release runs", || {
        let left = kubectl(&["-n", "clip-system", "get", "pods", "-o", "name"])?;
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    let image = ns.get_clip_image("app");
    assert_eq!(image["status"]["observedGeneration"], 1, "{image:#}");

    install(&values);
    ns.pod(
        "reader",
        json!({"clipImage": "app"}),
        "ls /image/bin/busybox; sleep 100000",
    );
    ns.wait_log("reader", "/image/bin/busybox");
    ns.wait_ready("app");
}

/// What the chart runs, with generations: they change with every change of a template.
fn workloads() -> String {
    let each = "jsonpath={range .items[*]}{.metadata.name} {.metadata.generation} {.metadata.uid}{\"\\n\"}{end}";
    let kinds = "deployments,daemonsets,pods";
    kubectl(&["-n", "clip-system", "get", kinds, "-o", each]).unwrap()
}

/// The values with which the chart is installed.
fn values() -> String {
    node(&[
        "helm",
        "get",
        "values",
        "clip",
        "-n",
        "clip-system",
        "-o",
        "json",
    ])
    .unwrap()
}

fn install(values: &str) {
    let chart = repository().join("charts/clip");
    let upgrade = r#"printf %s "$1" | helm upgrade --install clip "$2" -n clip-system --wait --timeout 3m -f -"#;
    node(&["sh", "-c", upgrade, "sh", values, chart.to_str().unwrap()]).unwrap();
}
