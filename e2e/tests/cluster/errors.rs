//! What goes wrong says what to do, and leaves nothing behind.

use crate::kube::{Namespace, PRIVATE_REGISTRY, REGISTRY, clip_mounts, condition};
use serde_json::json;

#[test]
fn s11_a_wrong_image_name_is_said_plainly_and_correcting_it_is_enough() {
    let ns = Namespace::new("typo");
    ns.clip_image(
        "app",
        json!({"image": format!("{REGISTRY}/demo/no-such-image:1")}),
    );
    let message = ns.wait_reason("app", "ImageNotFound");
    assert!(
        message.contains("no-such-image") && message.contains("Check spec.image"),
        "{message}"
    );
    assert_eq!(condition(&ns.get_clip_image("app"), "Stalled").0, "True");
    let described = ns.kubectl(&["describe", "clipimage", "app"]).unwrap();
    assert!(
        described.contains("ImageNotFound") && described.contains("Events:"),
        "{described}"
    );
    ns.clip_image(
        "app",
        json!({"image": format!("{REGISTRY}/demo/alpine-like:1")}),
    );
    ns.wait_ready("app");
}

#[test]
fn s11_a_tag_that_does_not_exist_is_an_image_not_found() {
    let ns = Namespace::new("tag");
    ns.clip_image(
        "app",
        json!({"image": format!("{REGISTRY}/demo/alpine-like:nope")}),
    );
    let message = ns.wait_reason("app", "ImageNotFound");
    assert!(message.contains("nope"), "{message}");
}

#[test]
fn s11_missing_and_wrong_credentials_are_told_apart_from_a_missing_image() {
    let ns = Namespace::new("login");
    ns.clip_image(
        "without",
        json!({"image": format!("{PRIVATE_REGISTRY}/demo/alpine-like:1")}),
    );
    ns.apply(&json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "wrong"}, "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": json!({"auths": {PRIVATE_REGISTRY: {"username": "clip", "password": "wrong"}}}).to_string()},
    }));
    ns.clip_image("wrong", json!({"image": format!("{PRIVATE_REGISTRY}/demo/alpine-like:1"), "pullSecrets": [{"name": "wrong"}]}));
    let without = ns.wait_reason("without", "Unauthorized");
    assert!(without.contains("spec.pullSecrets"), "{without}");
    let wrong = ns.wait_reason("wrong", "Unauthorized");
    assert!(wrong.contains("Secret wrong"), "{wrong}");
}

#[test]
fn s11_an_unknown_volume_attribute_is_refused_with_the_nearest_valid_name() {
    let ns = Namespace::new("attribute");
    ns.pod("typo", json!({"clipimage": "app"}), "true");
    let events = ns.wait_event("FailedMount");
    assert!(
        events.contains("clipimage") && events.contains("clipImage"),
        "{events}"
    );
}

#[test]
fn s11_a_pod_that_names_a_missing_clipimage_is_told_so_and_starts_once_it_exists() {
    let ns = Namespace::new("missing");
    ns.pod(
        "early",
        json!({"clipImage": "later"}),
        "echo here; sleep 100000",
    );
    let events = ns.wait_event("FailedMount");
    assert!(events.contains("later"), "{events}");
    assert!(
        clip_mounts().iter().all(|mount| !mount.contains("/pods/")),
        "nothing is mounted for it"
    );
    ns.clip_image(
        "later",
        json!({"image": format!("{REGISTRY}/demo/alpine-like:1")}),
    );
    ns.wait_log("early", "here");
}
