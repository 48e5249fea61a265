//! `clip verify`: an archive is shown to be its image's or not, a cache to be intact or not, and the last line says what
//! to do about it.

use crate::{
    scene::{Published, Said, Scene, publish},
    transcript::Transcript,
};
use clip_archive::{
    Archive, ArchiveWriter, Digest, LayerSection, SpanDigest, SpanKind, write::ImageInfo,
};
use clip_testkit::{
    images,
    layout::{self, Flaw, Layer},
    proxy::Mood,
    registry::TestRegistry,
};
use expect_test::expect_file;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

pub const FITS: i32 = 0;
pub const LATER: i32 = 1;
const USAGE: i32 = 2;
const DIFFERS: i32 = 3;
pub const CORRUPT: i32 = 4;
const NEVER: i32 = 42;

/// Text that compresses a little: seek points have windows.
pub fn text(seed: u64) -> Vec<u8> {
    let noise = layout::noise(256 << 10, seed);
    let words = noise
        .iter()
        .flat_map(|byte| format!("{byte:03} ").into_bytes());
    words.collect()
}

/// An image of two layers, the lower with about ten spans, behind a proxy, and the archive `image.clip`.
pub fn published(scene: &Scene) -> Published {
    let layers = vec![
        Layer::new().file("text", text(1)).dir("empty"),
        Layer::new().file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
    ];
    let layout = layout::write(&scene.dir("layout"), layers, Flaw::None).unwrap();
    let published = publish(&layout);
    scene.ok([
        "index",
        "--max-span",
        "65536",
        &published.reference,
        "image.clip",
    ]);
    published.proxy.forget();
    published
}

pub fn archive(scene: &Scene) -> Archive {
    Archive::open(std::fs::read(scene.path("image.clip")).unwrap()).unwrap()
}

pub fn json(said: &Said) -> Value {
    serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"))
}

/// Writes `name` with what the archive `image.clip` says, changed by `change`, and consistent in itself.
fn forge(scene: &Scene, name: &str, change: impl FnOnce(&mut Vec<LayerSection>, &mut ImageInfo)) {
    let archive = archive(scene);
    let head = archive.head().clone();
    let section = |(index, layer): (usize, &clip_archive::LayerRef)| {
        let mut seek = archive.seek_table(index).unwrap();
        seek.windows = archive.windows(index).unwrap();
        LayerSection {
            digest: layer.digest,
            diff_id: layer.diff_id,
            size: layer.size,
            media_type: layer.media_type.clone(),
            entries: archive.entries(index).unwrap(),
            seek,
        }
    };
    let mut sections = head.layers.iter().enumerate().map(section).collect();
    let mut info = ImageInfo {
        registry: head.registry,
        repository: head.repository,
        tag: head.tag,
        manifest_digest: head.manifest_digest,
        platform: head.platform,
        config: head.config,
        runtime_dirs: head.runtime_dirs,
        indexer: head.indexer,
    };
    change(&mut sections, &mut info);
    let mut writer = ArchiveWriter::new();
    sections
        .iter()
        .for_each(|section| writer.add_layer(section));
    std::fs::write(scene.path(name), writer.finish(info)).unwrap();
}

/// The file in which the registry keeps a blob.
fn stored(registry: &TestRegistry, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    let blobs = registry.storage().join("docker/registry/v2/blobs/sha256");
    blobs.join(&hex[..2]).join(hex).join("data")
}

pub fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn an_archive_is_shown_to_be_the_archive_of_its_image() {
    let scene = Scene::new();
    let published = published(&scene);
    let mut t = Transcript::new(&scene);
    t.call(published.proxy.address(), "127.0.0.1:5000");
    assert_eq!(t.run("verify image.clip"), FITS, "{}", t.text);
    let asked = published.proxy.asked();
    for layer in &archive(&scene).head().layers {
        let blob = format!("/v2/team/app/blobs/{}", layer.digest);
        let gets: Vec<_> = asked.iter().filter(|asked| asked.path == blob).collect();
        assert_eq!(gets.len(), 1, "each layer is streamed once: {asked:?}");
    }
    t.heading("no layer, or one");
    published.proxy.forget();
    assert_eq!(t.run("verify --quick image.clip"), FITS, "{}", t.text);
    let layer = archive(&scene).head().layers[0].digest;
    let fetched = published.proxy.asked();
    assert!(
        !fetched
            .iter()
            .any(|asked| asked.path.contains(&layer.hex())),
        "{fetched:?}"
    );
    assert_eq!(t.run("verify --layer 1 image.clip"), FITS, "{}", t.text);
    assert_eq!(
        t.run(&format!("verify --layer {layer} image.clip")),
        FITS,
        "{}",
        t.text
    );
    t.heading("an image in a layout");
    scene.ok(["index", "oci:layout:latest", "layout.clip"]);
    assert_eq!(t.run("verify layout.clip"), FITS, "{}", t.text);
    t.heading("what cannot be");
    t.fail(LATER, "verify missing.clip");
    t.fail(LATER, "verify --layer 2 image.clip");
    t.fail(USAGE, "verify --quick --cache image.clip");
    t.fail(USAGE, "verify");
    expect_file!["../golden/verify.txt"].assert_eq(&t.text);
}

#[test]
fn real_images_of_every_layer_fit_their_archives() {
    let scene = Scene::new();
    for name in ["alpine-like", "python-app"] {
        let file = format!("{name}.clip");
        scene.index_layout(&images::image(name).unwrap(), &file);
        let said = scene.run(["verify", "--json", &file]);
        assert_eq!(said.code, FITS, "{said:?}");
        let json = json(&said);
        let layers = json["layers"].as_array().unwrap();
        assert!(layers.iter().all(|layer| layer["status"] == "ok"), "{json}");
        let spans: u64 = layers
            .iter()
            .map(|layer| layer["spansChecked"].as_u64().unwrap())
            .sum();
        let inspected = scene.ok(["inspect", "--json", &file]);
        let inspected: Value = serde_json::from_str(&inspected.out).unwrap();
        assert_eq!(spans, inspected["seekPoints"].as_u64().unwrap());
    }
}

#[test]
fn a_layer_that_is_used_twice_is_fetched_once() {
    let scene = Scene::new();
    let layer = || Layer::new().file("same", text(3));
    let layout = layout::write(&scene.dir("layout"), vec![layer(), layer()], Flaw::None).unwrap();
    let published = publish(&layout);
    scene.ok(["index", &published.reference, "image.clip"]);
    published.proxy.forget();
    let said = scene.ok(["verify", "--json", "image.clip"]);
    let json = json(&said);
    assert_eq!(json["layers"][0]["digest"], json["layers"][1]["digest"]);
    assert_eq!(json["layers"][1]["bytesFetched"], 0);
    let digest = json["layers"][0]["digest"].as_str().unwrap();
    let asked = published.proxy.asked();
    assert_eq!(
        asked
            .iter()
            .filter(|asked| asked.path.ends_with(digest))
            .count(),
        1
    );
}

#[test]
fn a_flipped_bit_in_any_part_of_an_archive_is_noticed() {
    let scene = Scene::new();
    let _published = published(&scene);
    let good = std::fs::read(scene.path("image.clip")).unwrap();
    let archive = archive(&scene);
    let head_len = u64::from_le_bytes(good[10..18].try_into().unwrap()) as usize;
    let sections_at = 54 + head_len;
    let mut places = vec![
        ("magic", 0..9),
        ("lengths and positions", 10..42),
        ("storage type", 42..54),
        ("the head's digest", 62..94),
        ("the head", 94..sections_at),
    ];
    for layer in &archive.head().layers {
        let part = |part: &clip_archive::head::Part| {
            let start = sections_at + part.offset as usize;
            start..start + part.len as usize
        };
        places.push(("entries", part(&layer.entries)));
        places.push(("spans", part(&layer.spans)));
        places.push(("windows", part(&layer.windows)));
    }
    for (name, place) in places {
        // The first bytes of a frame hold bits that change nothing; its content is behind them.
        for at in [place.start + place.len() / 2, place.end - 2, place.end - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(scene.path("bad.clip"), bad).unwrap();
            let said = scene.run(["verify", "--quick", "--json", "bad.clip"]);
            let expected = match name {
                "storage type" => NEVER,
                _ => DIFFERS,
            };
            assert_eq!(said.code, expected, "{name}, byte {at}: {said:?}");
        }
    }
    for len in [0, 9, 53, 54, 60, good.len() / 2, good.len() - 1] {
        std::fs::write(scene.path("bad.clip"), &good[..len]).unwrap();
        let said = scene.run(["verify", "--quick", "bad.clip"]);
        assert_eq!(said.code, DIFFERS, "{len} bytes: {said:?}");
    }
    let mut newer = good.clone();
    newer[9] = 200;
    std::fs::write(scene.path("newer.clip"), newer).unwrap();
    assert_eq!(scene.run(["verify", "newer.clip"]).code, NEVER);
}

#[test]
fn an_archive_that_lies_is_told_what_about() {
    let scene = Scene::new();
    let published = published(&scene);
    let mut t = Transcript::new(&scene);
    t.call(published.proxy.address(), "127.0.0.1:5000");
    t.heading("the digest of span 2");
    forge(&scene, "span.clip", |sections, _| {
        sections[0].seek.spans[2].digest = SpanDigest::of(b"something else");
    });
    t.fail(DIFFERS, "verify span.clip");
    t.heading("a seek window: only who resumes there can notice");
    let mut spans_with_window = 0;
    forge(&scene, "window.clip", |sections, _| {
        let seek = &mut sections[0].seek;
        let window = &mut seek.windows[3];
        window.bytes.iter_mut().for_each(|byte| *byte ^= 0xFF);
        let uses = |kind| matches!(kind, SpanKind::GzipBlock { window: 3, .. });
        spans_with_window = seek.spans.iter().filter(|span| uses(span.kind)).count();
    });
    assert_eq!(spans_with_window, 1);
    t.fail(DIFFERS, "verify window.clip");
    t.heading("an entry");
    forge(&scene, "entry.clip", |sections, _| {
        sections[1].entries[0].uid = 0xBAD
    });
    t.fail(DIFFERS, "verify entry.clip");
    t.heading("an entry less");
    forge(&scene, "fewer.clip", |sections, _| {
        drop(sections[0].entries.pop())
    });
    t.fail(DIFFERS, "verify fewer.clip");
    t.heading("the diffID");
    forge(&scene, "diff-id.clip", |sections, _| {
        sections[0].diff_id = Digest::of(b"x")
    });
    t.fail(DIFFERS, "verify diff-id.clip");
    t.heading("the layers' order");
    forge(&scene, "order.clip", |sections, _| sections.reverse());
    t.fail(DIFFERS, "verify --quick order.clip");
    t.heading("a layer less");
    forge(&scene, "layer.clip", |sections, _| drop(sections.pop()));
    t.fail(DIFFERS, "verify --quick layer.clip");
    t.heading("the configuration");
    forge(&scene, "config.clip", |_, info| {
        info.config = b"{}".to_vec()
    });
    t.fail(DIFFERS, "verify --quick config.clip");
    t.heading("the manifest's digest");
    forge(&scene, "manifest.clip", |_, info| {
        info.manifest_digest = Digest::of(b"x");
    });
    t.fail(NEVER, "verify --quick manifest.clip");
    expect_file!["../golden/verify-archives.txt"].assert_eq(&t.text);

    let json = json(&scene.run(["verify", "--json", "span.clip"]));
    assert_eq!(
        (&json["status"], &json["reason"]),
        (&"differs".into(), &"ArchiveMismatch".into())
    );
    let bad = json["layers"][0]["spansBad"].as_array().unwrap();
    let spans = archive(&scene).seek_table(0).unwrap().spans;
    let start: u64 = spans[..2].iter().map(|span| span.tar_len).sum();
    assert_eq!(bad.len(), 1);
    assert_eq!(
        (&bad[0]["span"], &bad[0]["unpackedOffset"]),
        (&2.into(), &start.into())
    );
    assert_eq!(
        bad[0]["found"],
        spans[2].digest.to_string(),
        "what the image really holds"
    );
}

#[test]
fn an_image_that_is_not_what_its_digests_say_is_told_from_an_archive_that_lies() {
    let scene = Scene::new();
    let published = published(&scene);
    let head = archive(&scene).head().clone();
    let mut t = Transcript::new(&scene);
    t.call(published.proxy.address(), "127.0.0.1:5000");
    t.heading(
        "a layer rots on the registry's disk: it unpacks as before, but is not what was pushed",
    );
    let layer = stored(&published.registry, &head.layers[0].digest);
    flip(&layer, 4);
    t.fail(DIFFERS, "verify image.clip");
    flip(&layer, 4);
    t.heading("a layer is cut short");
    let content = std::fs::read(&layer).unwrap();
    std::fs::write(&layer, &content[..content.len() / 2]).unwrap();
    t.fail(DIFFERS, "verify image.clip");
    std::fs::write(&layer, content).unwrap();
    t.heading("the manifest is replaced under its digest");
    flip(&stored(&published.registry, &head.manifest_digest), 30);
    t.fail(DIFFERS, "verify image.clip");
    flip(&stored(&published.registry, &head.manifest_digest), 30);
    assert_eq!(t.run("verify image.clip"), FITS, "{}", t.text);
    // A proxy that flips bits here and there.
    published.proxy.set(Mood::Corrupt);
    let said = scene.run(["verify", "--json", "image.clip"]);
    assert_eq!(said.code, DIFFERS, "{said:?}");
    assert_eq!(json(&said)["reason"], "DigestMismatch");
    expect_file!["../golden/verify-images.txt"].assert_eq(&t.text);
}

#[test]
fn what_cannot_be_checked_is_neither_right_nor_wrong() {
    let scene = Scene::new();
    let published = published(&scene);
    let head = archive(&scene).head().clone();
    let mut t = Transcript::new(&scene);
    t.call(published.proxy.address(), "127.0.0.1:5000");
    t.heading("the registry hangs up");
    published.proxy.set(Mood::HangUp);
    t.fail(LATER, "verify image.clip");
    assert_eq!(
        json(&scene.run(["verify", "--json", "image.clip"]))["reason"],
        "RegistryUnreachable"
    );
    published.proxy.set(Mood::Relay);
    t.heading("a layer is gone");
    std::fs::remove_file(stored(&published.registry, &head.layers[1].digest)).unwrap();
    t.fail(NEVER, "verify image.clip");
    assert_eq!(t.run("verify --layer 0 image.clip"), FITS, "{}", t.text);
    t.heading("the image is gone");
    std::fs::remove_file(stored(&published.registry, &head.manifest_digest)).unwrap();
    t.fail(NEVER, "verify image.clip");
    t.heading("the layout is gone");
    scene.ok(["index", "oci:layout:latest", "layout.clip"]);
    std::fs::rename(scene.path("layout"), scene.path("elsewhere")).unwrap();
    t.fail(NEVER, "verify layout.clip");
    t.heading("the registry wants credentials");
    let closed = TestRegistry::start_with_auth("alice", "secret").unwrap();
    let elsewhere = scene.path("elsewhere");
    images::push_as(&elsewhere, &closed, "team/app:1", Some(("alice", "secret"))).unwrap();
    t.call(closed.address(), "127.0.0.1:5001");
    forge(&scene, "closed.clip", |_, info| {
        info.registry = closed.address().to_owned()
    });
    t.fail(NEVER, "verify closed.clip");
    expect_file!["../golden/verify-unavailable.txt"].assert_eq(&t.text);
}

#[test]
fn a_tag_that_moved_is_mentioned_and_the_archive_stays_right() {
    let scene = Scene::new();
    let published = published(&scene);
    let other = vec![Layer::new().file("other", "x")];
    let other = layout::write(&scene.dir("other"), other, Flaw::None).unwrap();
    images::push(&other, &published.registry, "team/app:1").unwrap();
    let said = scene.run(["verify", "image.clip"]);
    assert_eq!(said.code, FITS, "{said:?}");
    assert!(
        said.out.contains("by now: index again to have that"),
        "{said:?}"
    );
    let json = json(&scene.run(["verify", "--quick", "--json", "image.clip"]));
    let index: Value =
        serde_json::from_slice(&std::fs::read(other.join("index.json")).unwrap()).unwrap();
    assert_eq!(json["tagMovedTo"], index["manifests"][0]["digest"]);
}

#[test]
fn json_is_one_object_with_the_documented_keys() {
    let scene = Scene::new();
    let _published = published(&scene);
    let keys = |value: &Value| {
        value
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<BTreeSet<_>>()
    };
    let guide = include_str!("../../../docs/user-guide.md");
    let image = json(&scene.ok(["verify", "--json", "image.clip"]));
    scene.ok(["cat", "image.clip", "/etc/passwd"]);
    let cache = json(&scene.ok(["verify", "--json", "--cache", "image.clip"]));
    forge(&scene, "span.clip", |sections, _| {
        sections[0].seek.spans[0].digest = SpanDigest::of(b"x");
    });
    let bad = json(&scene.run(["verify", "--json", "span.clip"]));
    let parts = [
        &image,
        &image["layers"][0],
        &cache,
        &cache["layers"][0],
        &bad["layers"][0]["spansBad"][0],
    ];
    for key in parts.iter().flat_map(|part| keys(part)) {
        assert!(
            guide.contains(&format!("`{key}`")),
            "{key} is not in the user guide"
        );
    }
    assert_eq!(
        image["archiveDigest"],
        Digest::of(archive(&scene).bytes()).to_string()
    );
}

#[test]
fn a_registry_that_sends_without_end_is_cut_off() {
    let scene = Scene::new();
    let published = published(&scene);
    let layer = archive(&scene).head().layers[1].clone();
    let stored = stored(&published.registry, &layer.digest);
    let mut content = std::fs::read(&stored).unwrap();
    content.extend(layout::noise(8 << 20, 9));
    std::fs::write(&stored, content).unwrap();
    let said = scene.run(["verify", "--json", "image.clip"]);
    assert_eq!(said.code, DIFFERS, "{said:?}");
    let json = json(&said);
    let fetched = json["layers"][1]["bytesFetched"].as_u64().unwrap();
    assert!(fetched > layer.size && fetched < 4 << 20, "{json}");
}
