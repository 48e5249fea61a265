//! A pod that comes before its image is ready waits, and its events and the ClipImage say for what.

use serde_json::json;

use crate::kube::{Namespace, PRIVATE_REGISTRY, REGISTRY, condition, eventually, kubectl};

#[test]
fn s11_while_the_job_cannot_start_the_pods_events_say_why_and_then_it_starts_by_itself() {
    let ns = Namespace::new("no-node");
    let image = format!("{REGISTRY}/demo/busybox:1");
    let label = format!("{}/indexer", ns.0);
    let selector = json!({ label.clone(): "yes" });
    ns.clip_image(
        "busybox",
        json!({"image": image, "index": {"job": {"nodeSelector": selector}}}),
    );
    ns.pod(
        "early",
        json!({"clipImage": "busybox"}),
        "ls /image/bin/busybox && echo here; sleep 100000",
    );
    let message = ns.wait_reason("busybox", "JobPending");
    assert!(message.contains("cannot start"), "{message}");
    assert!(
        message.contains("didn't match Pod's node affinity/selector"),
        "{message}"
    );
    let events = ns.wait_event("FailedMount");
    for text in [
        "busybox is not ready",
        "cannot start",
        "JobPending",
        "will try again",
    ] {
        assert!(events.contains(text), "{text:?} is missing in:\n{events}");
    }
    kubectl(&["label", "node", "--all", &format!("{label}=yes")]).unwrap();
    ns.wait_log("early", "here");
    kubectl(&["label", "node", "--all", &format!("{label}-")]).unwrap();
}

#[test]
fn s11_a_pull_secret_that_is_missing_is_named_and_creating_it_is_enough() {
    let ns = Namespace::new("no-secret");
    ns.clip_image(
        "app",
        json!({"image": format!("{PRIVATE_REGISTRY}/demo/busybox:1"), "pullSecrets": [{"name": "regcred"}]}),
    );
    let message = ns.wait_reason("app", "JobPending");
    assert!(
        message.contains("secret \"regcred\" not found"),
        "{message}"
    );
    ns.kubectl(&[
        "create",
        "secret",
        "docker-registry",
        "regcred",
        &format!("--docker-server={PRIVATE_REGISTRY}"),
        "--docker-username=clip",
        "--docker-password=s3cret",
    ])
    .unwrap();
    ns.wait_ready("app");
}

#[test]
fn s11_a_registry_that_does_not_answer_is_said_plainly_and_tried_again() {
    let ns = Namespace::new("unreachable");
    ns.clip_image("app", json!({"image": "10.99.0.1:5999/demo/app:1"}));
    let message = ns.wait_reason("app", "RegistryUnreachable");
    for text in ["10.99.0.1:5999", "Check that", "tries again"] {
        assert!(message.contains(text), "{text:?} is missing in: {message}");
    }
    let image = ns.get_clip_image("app");
    assert_eq!(condition(&image, "Stalled").0, "", "waiting may help");
    assert_eq!(condition(&image, "Resolved").1, "RegistryUnreachable");
    ns.pod("early", json!({"clipImage": "app"}), "true");
    let events = ns.wait_event("FailedMount");
    assert!(events.contains("RegistryUnreachable"), "{events}");

    ns.kubectl(&["delete", "pod", "early", "--timeout=60s"])
        .unwrap();
    ns.kubectl(&["delete", "clipimage", "app", "--timeout=60s"])
        .unwrap();
    eventually("no Job and none of its pods stays", || {
        let left = ns.kubectl(&["get", "jobs,pods", "-o", "name"])?;
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}
