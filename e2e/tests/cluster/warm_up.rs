//! Images that nodes have before any pod.

use std::mem::ManuallyDrop;

use serde_json::json;

use crate::kube::{Namespace, PRIVATE_REGISTRY, REGISTRY, kubectl};
use crate::node::{self, process};
use crate::registries::secret;

/// The label by which the story chooses its node.
const LABEL: &str = "clip.dev/warm-up-story";

/// A registry that is reached and says nothing; it goes on when this is dropped.
struct Silenced(String);

impl Silenced {
    fn registry() -> Self {
        let pid = process("/registry.yml");
        node::send("STOP", &pid);
        Self(pid)
    }
}

impl Drop for Silenced {
    fn drop(&mut self) {
        node::send("CONT", &self.0);
    }
}

#[test]
fn s11_a_first_pod_reads_all_of_an_image_that_its_node_was_warmed_up_with_while_the_registry_is_silent()
 {
    let ns = Namespace::new("warm");
    // The pods' own image has to be on the node.
    ns.clip_image(
        "other",
        json!({"image": format!("{REGISTRY}/demo/busybox:1")}),
    );
    ns.pod(
        "before",
        json!({"clipImage": "other"}),
        "echo here; sleep 100000",
    );
    ns.wait_log("before", "here");
    ns.clip_image(
        "app",
        json!({
            "image": format!("{REGISTRY}/demo/debian-min:1"),
            // Pieces of another size: none that other stories have brought to this node.
            "index": {"maxSpan": "768Ki"},
            "warmUp": {"nodeSelector": {LABEL: "yes"}},
        }),
    );
    ns.wait_ready("app");
    kubectl(&["label", "node", "--all", &format!("{LABEL}=yes")]).unwrap();
    let events = ns.wait_event_of("app", "WarmedUp");
    assert!(events.contains(" MB in "), "{events}");

    let silenced = Silenced::registry();
    ns.pod(
        "reader",
        json!({"clipImage": "app"}),
        "find /image -type f | xargs cat | wc -c && echo read; sleep 100000",
    );
    ns.wait_log("reader", "read");
    drop(silenced);
    kubectl(&["label", "node", "--all", &format!("{LABEL}-")]).unwrap();
}

#[test]
fn s11_a_private_image_is_warmed_up_with_the_secret_that_an_admin_lets_nodes_read_and_no_other() {
    // As the chart was installed: `e2e/run`.
    let ns = ManuallyDrop::new(Namespace("default".to_owned()));
    for name in ["warm-up", "not-for-nodes"] {
        ns.apply(&secret(name));
        ns.clip_image(
            name,
            json!({
                "image": format!("{PRIVATE_REGISTRY}/demo/alpine-like:1"),
                // Pieces of sizes that nobody else has.
                "index": {"maxSpan": if name == "warm-up" { "640Ki" } else { "896Ki" }},
                "pullSecrets": [{"name": name}],
                "warmUp": {},
            }),
        );
    }
    ns.wait_event_of("warm-up", "WarmedUp");
    let events = ns.wait_event_of("not-for-nodes", "WarmUpFailed");
    assert!(
        events.contains("may not read the pull secret default/not-for-nodes"),
        "{events}"
    );
    for kind in ["clipimages", "secrets"] {
        ns.kubectl(&["delete", kind, "warm-up", "not-for-nodes"])
            .unwrap();
    }
}
