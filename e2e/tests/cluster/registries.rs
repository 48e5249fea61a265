//! Private registries, and archives published beside the image.

use crate::kube::{Namespace, PRIVATE_REGISTRY, REGISTRY, node};
use serde_json::{Value, json};

/// A pull secret for the private registry.
pub fn secret(name: &str) -> Value {
    let config = json!({"auths": {PRIVATE_REGISTRY: {"username": "clip", "password": "s3cret"}}});
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": config.to_string()},
    })
}

#[test]
fn s11_a_private_image_is_indexed_and_read_with_the_namespaces_own_secrets() {
    let ns = Namespace::new("private");
    ns.apply(&secret("regcred"));
    ns.clip_image("app", json!({"image": format!("{PRIVATE_REGISTRY}/demo/debian-min:1"), "pullSecrets": [{"name": "regcred"}]}));
    ns.wait_ready("app");
    let script = "sha256sum /image/bin/bash && echo read; sleep 100000";
    ns.pod_with(
        "reader",
        json!({"clipImage": "app"}),
        script,
        json!({"nodePublishSecretRef": {"name": "regcred"}}),
    );
    ns.wait_log("reader", "read");
}

#[test]
fn s11_an_archive_is_published_as_an_oci_artifact_when_asked() {
    let ns = Namespace::new("publish");
    let repository = format!("{REGISTRY}/demo/alpine-like");
    ns.clip_image(
        "app",
        json!({
            "image": format!("{repository}:1"),
            "publish": {"type": "Registry", "registry": {"repository": format!("{repository}-index")}},
        }),
    );
    let image = ns.wait_ready("app");
    let locations = image["status"]["artifacts"][0]["locations"].to_string();
    let start = locations
        .find(&format!("{repository}-index@sha256:"))
        .unwrap_or_else(|| panic!("{locations}"));
    let pushed = locations[start..].split('"').next().unwrap();
    let manifest = node(&[
        "skopeo",
        "inspect",
        "--raw",
        "--tls-verify=false",
        &format!("docker://{pushed}"),
    ])
    .unwrap();
    assert!(
        manifest.contains("application/vnd.clip.archive.v1"),
        "{manifest}"
    );
}
