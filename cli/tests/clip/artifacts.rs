//! Which images and artifacts are accepted, what their layers become, and which are refused by name.

use crate::scene::{PATIENCE, Said, Scene};
use clip_testkit::{
    kinds::pipe,
    layout::{self, Layer, noise},
    registry::TestRegistry,
};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::TcpListener,
    path::Path,
};

const TITLE: &str = "org.opencontainers.image.title";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

#[test]
fn docker_and_oci_media_types_are_accepted_foreign_and_nondistributable_ones_too() {
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    let docker_config = "application/vnd.docker.container.image.v1+json";
    let tar = Layer::new().file("etc/motd", "hello").tar();
    let gzip = pipe(&["gzip", "-nc"], &tar).unwrap();
    let zstd = pipe(&["zstd", "-cq"], &tar).unwrap();
    for (manifest, config, layer, blob) in [
        (
            OCI_MANIFEST,
            OCI_CONFIG,
            "application/vnd.oci.image.layer.v1.tar",
            &tar,
        ),
        (OCI_MANIFEST, OCI_CONFIG, TAR_GZIP, &gzip),
        (
            OCI_MANIFEST,
            OCI_CONFIG,
            "application/vnd.oci.image.layer.v1.tar+zstd",
            &zstd,
        ),
        (
            OCI_MANIFEST,
            OCI_CONFIG,
            "application/vnd.oci.image.layer.nondistributable.v1.tar",
            &tar,
        ),
        (
            OCI_MANIFEST,
            OCI_CONFIG,
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            &gzip,
        ),
        (
            OCI_MANIFEST,
            OCI_CONFIG,
            "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
            &zstd,
        ),
        (
            docker,
            docker_config,
            "application/vnd.docker.image.rootfs.diff.tar",
            &tar,
        ),
        (
            docker,
            docker_config,
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            &gzip,
        ),
        (
            docker,
            docker_config,
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            &gzip,
        ),
        // Media types in the wild lie about the compression.
        (OCI_MANIFEST, OCI_CONFIG, TAR_GZIP, &zstd),
    ] {
        let scene = Scene::new();
        let dir = scene.dir("layout");
        let config = layout::add_config(&dir, &[layout::digest_of(&tar)], config).unwrap();
        let layers = [layout::add_blob(&dir, blob, layer).unwrap()];
        finish(&dir, manifest, config, &layers);
        let archive = scene.index_layout(&dir, "image.clip");
        assert_eq!(cat(&scene, &archive, "etc/motd"), b"hello", "{layer}");
    }
}

/// docs/semantics.md: "A layer with the annotation `org.opencontainers.image.title` is one file of that name".
#[test]
fn oras_files_appear_under_their_titles_byte_for_byte() {
    let scene = Scene::new();
    let dir = scene.dir("layout");
    let weights = noise(700_001, 1);
    let packed = pipe(&["gzip", "-nc"], b"still packed").unwrap();
    let tree = pipe(
        &["gzip", "-nc"],
        &Layer::new().dir("src").file("src/main.py", "run()").tar(),
    )
    .unwrap();
    let layers = [
        titled(&dir, &weights, "application/octet-stream", "models/w.bin"),
        titled(&dir, &weights, "application/octet-stream", "./copy.bin"),
        // What `oras push` calls every file, and a file that must stay as it is.
        titled(
            &dir,
            &packed,
            "application/vnd.oci.image.layer.v1.tar",
            "/notes.gz",
        ),
        titled(&dir, b"", "text/plain", "empty"),
        with(
            titled(&dir, &tree, TAR_GZIP, "src"),
            "io.deis.oras.content.unpack",
            "true",
        ),
    ];
    artifact(&dir, &layers);
    let archive = scene.index_layout(&dir, "image.clip");
    for (path, content) in [
        ("models/w.bin", &weights[..]),
        ("copy.bin", &weights),
        ("notes.gz", &packed),
        ("empty", b""),
        ("src/main.py", b"run()"),
    ] {
        assert!(cat(&scene, &archive, path) == content, "{path}");
    }
    let mount = scene.dir("mnt");
    let server = scene.mount([archive.as_os_str(), mount.as_os_str()]);
    use std::os::unix::fs::MetadataExt as _;
    let file = server.path().join("models/w.bin").metadata().unwrap();
    // The manifest's `created`.
    assert_eq!(
        (file.mode(), file.uid(), file.mtime()),
        (0o100_644, 0, 1_714_979_289)
    );
    let parent = server.path().join("models").metadata().unwrap();
    assert_eq!((parent.mode(), parent.mtime()), (0o40_755, 1_714_979_289));
}

#[test]
fn model_packs_show_raw_files_and_tars() {
    let scene = Scene::new();
    let dir = scene.dir("layout");
    let weights = noise(300_000, 2);
    let docs = Layer::new().file("docs/README.md", "# model").tar();
    let path = "org.cncf.model.filepath";
    let raw = layout::add_blob(&dir, &weights, "application/vnd.cncf.model.weight.v1.raw").unwrap();
    let metadata = r#"{"name":"w","mode":384,"uid":7,"gid":7,"size":300000,"mtime":"2024-05-06T07:08:09.5Z","typeflag":0}"#;
    let raw = with(
        with(raw, path, "w/model.safetensors"),
        "org.cncf.model.file.metadata+json",
        metadata,
    );
    let tar = layout::add_blob(&dir, &docs, "application/vnd.cncf.model.doc.v1.tar").unwrap();
    let layers = [raw, with(tar, path, "docs")];
    let config = json!({ "descriptor": {}, "modelfs": { "type": "layers", "diffIds": [] } });
    let config =
        layout::add_json(&dir, &config, "application/vnd.cncf.model.config.v1+json").unwrap();
    finish(&dir, OCI_MANIFEST, config, &layers);
    let archive = scene.index_layout(&dir, "image.clip");
    assert!(cat(&scene, &archive, "w/model.safetensors") == weights);
    assert_eq!(cat(&scene, &archive, "docs/README.md"), b"# model");
    let tree = scene
        .ok(["inspect".as_ref(), "--tree".as_ref(), archive.as_os_str()])
        .out;
    let line = tree
        .lines()
        .find(|line| line.contains("safetensors"))
        .unwrap();
    assert!(
        line.starts_with("-0600") && line.contains("0:0") && line.contains("1714979289"),
        "{line}"
    );
}

/// docs/semantics.md: "A name cannot leave the image".
#[test]
fn what_cannot_be_shown_is_refused_by_name() {
    for (media_type, title, said) in [
        (
            "application/vnd.example.v9+brotli",
            None,
            "media type application/vnd.example.v9+brotli, which is not supported",
        ),
        (
            "application/vnd.cncf.model.weight.v1.raw",
            None,
            "application/vnd.cncf.model.weight.v1.raw",
        ),
        ("text/plain", Some("../up"), "\"../up\": it leads out"),
        ("text/plain", Some("a/../../up"), "it leads out"),
        ("text/plain", Some("/"), "it names no file"),
    ] {
        let scene = Scene::new();
        let dir = scene.dir("layout");
        let layer = layout::add_blob(&dir, b"content", media_type).unwrap();
        artifact(
            &dir,
            &[title.map_or(layer.clone(), |title| with(layer, TITLE, title))],
        );
        refused(&scene, &dir, said);
    }
    let scene = Scene::new();
    let dir = scene.dir("layout");
    let stray = pipe(&["gzip", "-nc"], &Layer::new().file("elsewhere", "x").tar()).unwrap();
    let layer = with(
        titled(&dir, &stray, TAR_GZIP, "src"),
        "io.deis.oras.content.unpack",
        "true",
    );
    artifact(&dir, &[layer]);
    refused(&scene, &dir, "outside of the directory \"src\"");
}

#[test]
fn tars_without_an_image_configuration_get_their_diff_ids_by_indexing() {
    let scene = Scene::new();
    let dir = scene.dir("layout");
    let tar = Layer::new().file("chart/values.yaml", "a: 1").tar();
    let blob = pipe(&["gzip", "-nc"], &tar).unwrap();
    let helm = "application/vnd.cncf.helm.chart.content.v1.tar+gzip";
    artifact(&dir, &[layout::add_blob(&dir, &blob, helm).unwrap()]);
    let archive = scene.index_layout(&dir, "image.clip");
    assert_eq!(cat(&scene, &archive, "chart/values.yaml"), b"a: 1");
    let layers = scene
        .ok(["inspect".as_ref(), "--layers".as_ref(), archive.as_os_str()])
        .out;
    assert!(layers.contains(&layout::digest_of(&tar)), "{layers}");
    assert!(layers.contains("computed"), "{layers}");
}

/// docs/semantics.md: "Indexes may nest, 8 deep; attestations are passed over".
#[test]
fn indexes_may_nest_and_attestations_are_passed_over() {
    let scene = Scene::new();
    let dir = scene.dir("layout");
    let tar = Layer::new().file("etc/motd", "hello").tar();
    let config = layout::add_config(&dir, &[layout::digest_of(&tar)], OCI_CONFIG).unwrap();
    let layer = layout::add_blob(&dir, &tar, TAR_GZIP).unwrap();
    let image = manifest(&dir, OCI_MANIFEST, config, &[layer]);
    let statement = layout::add_blob(&dir, b"{}", "application/vnd.in-toto+json").unwrap();
    let config = layout::add_config(&dir, &[layout::digest_of(b"{}")], OCI_CONFIG).unwrap();
    let mut attestation = manifest(&dir, OCI_MANIFEST, config, &[statement]);
    attestation["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
    let attestation = with(
        attestation,
        "vnd.docker.reference.type",
        "attestation-manifest",
    );
    let nest = |inner: Value| {
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [attestation, inner] });
        layout::add_json(&dir, &index, OCI_INDEX).unwrap()
    };
    let deep = |levels| (0..levels).fold(image.clone(), |inner, _| nest(inner));
    layout::tag_latest(&dir, deep(8)).unwrap();
    let archive = scene.index_layout(&dir, "image.clip");
    assert_eq!(cat(&scene, &archive, "etc/motd"), b"hello");
    layout::tag_latest(&dir, deep(9)).unwrap();
    refused(&scene, &dir, "nests indexes more than 8 deep");
}

#[test]
fn a_foreign_layer_that_the_registry_lacks_comes_from_where_the_manifest_says() {
    let scene = Scene::new();
    let dir = scene.dir("layout");
    let content = noise(900_000, 5);
    let tar = Layer::new().file("foreign", &content).tar();
    let (elsewhere, _server) = serve(tar.clone());
    let config = layout::add_config(&dir, &[layout::digest_of(&tar)], OCI_CONFIG).unwrap();
    let mut layer = layout::add_blob(
        &dir,
        &tar,
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
    )
    .unwrap();
    layer["urls"] = json!([format!("http://{elsewhere}/layer.tar")]);
    finish(&dir, OCI_MANIFEST, config, &[layer]);
    // skopeo leaves foreign layers where they are.
    let registry = TestRegistry::start().unwrap();
    let image = clip_testkit::images::push(&dir, &registry, "team/app:1").unwrap();
    let refused = scene.run(["index", &image, "image.clip"]);
    assert!(
        refused.code == 42 && refused.err.contains("is not HTTPS"),
        "{refused:?}"
    );
    let plain = format!("--plain-http={elsewhere}");
    scene.ok(["index", &plain, &image, "image.clip"]);
    let cat = scene.ok(["cat", &plain, "image.clip", "foreign"]);
    assert!(cat.raw == content);
}

/// A web server with one file and no ranges; its address. It ends with the test program.
fn serve(file: Vec<u8>) -> (String, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                head.push(byte[0]);
            }
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                file.len()
            );
            // Who asked may have gone.
            let _ = stream
                .write_all(answer.as_bytes())
                .and_then(|()| stream.write_all(&file));
        }
    });
    (address, server)
}

fn titled(dir: &Path, content: &[u8], media_type: &str, title: &str) -> Value {
    with(
        layout::add_blob(dir, content, media_type).unwrap(),
        TITLE,
        title,
    )
}

fn with(mut descriptor: Value, key: &str, value: &str) -> Value {
    descriptor["annotations"][key] = json!(value);
    descriptor
}

/// An artifact as `oras push` writes it.
fn artifact(dir: &Path, layers: &[Value]) {
    let config = layout::add_blob(dir, b"{}", "application/vnd.oci.empty.v1+json").unwrap();
    finish(dir, OCI_MANIFEST, config, layers);
}

fn finish(dir: &Path, media_type: &str, config: Value, layers: &[Value]) {
    layout::tag_latest(dir, manifest(dir, media_type, config, layers)).unwrap();
}

fn manifest(dir: &Path, media_type: &str, config: Value, layers: &[Value]) -> Value {
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers,
        "annotations": { "org.opencontainers.image.created": "2024-05-06T07:08:09Z" },
    });
    layout::add_json(dir, &manifest, media_type).unwrap()
}

fn cat(scene: &Scene, archive: &Path, path: &str) -> Vec<u8> {
    scene
        .ok(["cat".as_ref(), archive.as_os_str(), path.as_ref()])
        .raw
}

fn refused(scene: &Scene, layout: &Path, said: &str) -> Said {
    let result = scene.run([
        "index",
        &format!("oci:{}:latest", layout.display()),
        "refused.clip",
    ]);
    assert!(result.code == 42 && result.err.contains(said), "{result:?}");
    result
}
