//! `clip cache ls|prune|verify`, beside mounts that use the cache.

use crate::{
    scene::Scene,
    verify::{CORRUPT, FITS, LATER, flip, json, published, text},
};
use std::path::PathBuf;

/// The directory of the layer in which something is cached.
fn layer(scene: &Scene) -> PathBuf {
    let list = json(&scene.ok(["cache", "ls", "--json"]));
    PathBuf::from(list["layers"][0]["dir"].as_str().unwrap())
}

#[test]
fn what_is_cached_is_listed_with_its_images_and_its_users() {
    let scene = Scene::new();
    let _published = published(&scene);
    assert_eq!(scene.run(["cache", "ls"]).code, LATER, "there is none");
    scene.ok(["cat", "image.clip", "/text"]);
    let list = || json(&scene.ok(["cache", "ls", "--json"]));
    let used = |list: &serde_json::Value| -> Vec<bool> {
        let layers = list["layers"].as_array().unwrap().iter();
        layers
            .map(|layer| layer["inUse"].as_bool().unwrap())
            .collect()
    };
    let found = list();
    assert!(used(&found).iter().all(|used| !used), "{found}");
    let first = &found["layers"][0];
    assert_eq!(first["spansCached"], first["spans"]);
    assert_eq!(first["cachedBytes"], first["layerBytes"]);
    assert!(first["lastUsed"].as_u64() > Some(1_700_000_000), "{found}");
    assert!(
        first["images"].as_array().unwrap().is_empty(),
        "its archive is not kept here"
    );

    std::fs::copy(
        scene.path("image.clip"),
        scene.state().join("archives/kept.clip"),
    )
    .unwrap();
    scene.dir("mnt");
    let _server = scene.mount(["image.clip", "mnt"]);
    let found = list();
    assert!(used(&found).iter().all(|&used| used), "{found}");
    let table = scene.ok(["cache", "ls"]).out;
    assert!(
        table.contains(" 100%") && table.contains(" yes "),
        "{table}"
    );
    let image = found["layers"][0]["images"][0].as_str().unwrap();
    assert!(table.contains(image), "{table}");
}

#[test]
fn pruning_leaves_what_is_in_use_unless_a_size_is_named() {
    let scene = Scene::new();
    let published = published(&scene);
    scene.ok(["cat", "image.clip", "/text"]);
    scene.dir("mnt");
    let server = scene.mount(["image.clip", "mnt"]);
    let file = server.path().join("text");
    let said = scene.ok(["cache", "prune"]);
    assert!(said.out.starts_with("Freed 0 B"), "{said:?}");
    let said = scene.ok(["cache", "prune", "--to", "0"]);
    assert!(!said.out.starts_with("Freed 0 B"), "{said:?}");
    let list = json(&scene.ok(["cache", "ls", "--json"]));
    assert_eq!(list["layers"][0]["spansCached"], 0, "{list}");
    published.proxy.forget();
    assert!(
        std::fs::read(&file).unwrap() == text(1),
        "it is fetched again"
    );
    assert!(!published.proxy.ranges().is_empty());
    drop(server);
    scene.ok(["cache", "prune"]);
    assert!(
        json(&scene.ok(["cache", "ls", "--json"]))["layers"]
            .as_array()
            .unwrap()
            .is_empty()
    );
    assert!(scene.ok(["cat", "image.clip", "/text"]).raw == text(1));
}

/// docs/semantics.md: "What is damaged on the disk is fetched again".
#[test]
fn what_verify_finds_damaged_is_fetched_again_by_a_running_mount() {
    let scene = Scene::new();
    let published = published(&scene);
    scene.ok(["cat", "image.clip", "/text"]);
    scene.dir("mnt");
    let server = scene.mount(["image.clip", "mnt"]);
    assert_eq!(scene.run(["cache", "verify", "image.clip"]).code, FITS);
    flip(&layer(&scene).join("data"), 100_000);
    let said = scene.run(["cache", "verify"]);
    assert_eq!(said.code, FITS, "{said:?}");
    assert!(
        said.out.contains("not checked"),
        "its archive is not kept here: {said:?}"
    );
    let said = scene.run(["cache", "verify", "image.clip"]);
    assert_eq!(said.code, CORRUPT, "{said:?}");
    published.proxy.forget();
    assert!(std::fs::read(server.path().join("text")).unwrap() == text(1));
    assert_eq!(
        published.proxy.ranges().len(),
        1,
        "the damaged span and no other"
    );
    assert_eq!(scene.run(["cache", "verify", "image.clip"]).code, FITS);
    // A mount notices by itself that bytes cannot be read: the file was cut.
    drop(server);
    let data = std::fs::File::options()
        .write(true)
        .open(layer(&scene).join("data"));
    let server = scene.mount(["image.clip", "mnt"]);
    data.unwrap().set_len(50_000).unwrap();
    assert!(std::fs::read(server.path().join("text")).unwrap() == text(1));
}
