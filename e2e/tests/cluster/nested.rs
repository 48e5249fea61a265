//! S10: a worker pod starts a container from a volume.

use crate::kube::{Namespace, repository};

#[test]
fn s4_s5_s10_a_worker_starts_a_container_from_a_volume() {
    let ns = Namespace::new("nested");
    let example =
        |name: &str| std::fs::read_to_string(repository().join("examples").join(name)).unwrap();
    ns.apply_text(&example("clipimage.yaml"));
    ns.wait_ready("python-app");
    ns.apply_text(&example("nested.yaml"));
    let log = ns.wait_log("worker", "the worker reads");
    assert!(log.contains("nested: written"), "{log}");
    assert!(log.contains("the worker reads 36"), "{log}");
    assert!(!log.contains("the image was changed"), "{log}");
}
