//! Images that nodes have before any pod.

use serde_json::json;

use crate::kube::{Namespace, REGISTRY, kubectl};
use crate::node::{self, process};

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
