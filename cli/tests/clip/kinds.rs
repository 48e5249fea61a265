//! Every kind of layer, through a real registry: what the mount shows is what was packed, wherever reading begins, and
//! what umoci unpacks from the same layers.

use crate::scene::{Scene, publish};
use clip_testkit::{
    guard::run,
    kinds::{Format, KINDS, Kind, sample_files, sample_tar},
    layout, tree,
};
use serde_json::{Value, json};
use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

/// MB of each kind's layer: there are more than forty.
const SCALE: usize = 1;

#[test]
fn s6_s7_every_kind_of_layer_shows_what_was_packed_and_what_umoci_unpacks() {
    let scene = Scene::new();
    let blobs: Vec<_> = KINDS
        .iter()
        .map(|kind| (kind, kind.compress(&sample_tar(kind.name, SCALE)).unwrap()))
        .collect();
    let layout = write(&scene.dir("layout"), &blobs);
    let published = publish(&layout);
    scene.ok([
        "index",
        "--max-span",
        "65536",
        &published.reference,
        "image.clip",
    ]);
    let mount = scene.dir("mnt");
    let server = scene.mount([scene.path("image.clip").as_os_str(), mount.as_os_str()]);
    for kind in KINDS {
        for (path, content) in sample_files(kind.name, SCALE) {
            read_at_random(&server.path().join(path), &content);
        }
    }

    // eStargz adds a table of contents and a landmark, which every unpacker but its own shows.
    for name in ["stargz.index.json", ".no.prefetch.landmark"] {
        assert!(server.path().join(name).is_file(), "{name}");
    }
    let readable: Vec<_> = blobs.iter().map(as_umoci_reads_it).collect();
    let theirs = unpack(&write(&scene.dir("readable"), &readable), &scene);
    let mut ours = tree::look(server.path()).unwrap();
    // No layer has an entry for the root: umoci leaves it at 1970.
    ours.get_mut(Path::new(".")).unwrap().mtime = (0, 0);
    let differences = tree::differences(&ours, &theirs);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// umoci 0.4.7 knows no zstd, and its gzip neither padding nor header checksums (RFC 1952, FHCRC): it gets these layers as
/// the reference decoders decode them.
fn as_umoci_reads_it<'a>((kind, blob): &(&'a Kind, Vec<u8>)) -> (&'a Kind, Vec<u8>) {
    let plain = KINDS.iter().find(|kind| kind.format == Format::Plain);
    match (kind.format, kind.name) {
        (Format::Zstd, _) | (_, "zero-padding" | "all-header-fields") => {
            (plain.unwrap(), kind.format.decode(blob).unwrap())
        }
        _ => (kind, blob.clone()),
    }
}

fn unpack(layout: &Path, scene: &Scene) -> tree::Tree {
    let bundle = scene.path("bundle");
    run(Command::new("umoci")
        .args(["unpack", "--image"])
        .arg(format!("{}:latest", layout.display()))
        .arg(&bundle))
    .unwrap();
    tree::look(&bundle.join("rootfs")).unwrap()
}

/// An image of these layers.
fn write(dir: &Path, layers: &[(&Kind, Vec<u8>)]) -> PathBuf {
    let descriptors: Vec<Value> = layers
        .iter()
        .map(|(kind, blob)| layout::add_blob(dir, blob, kind.format.media_type()).unwrap())
        .collect();
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|(kind, blob)| layout::digest_of(&kind.format.decode(blob).unwrap()))
        .collect();
    let config = layout::add_config(dir, &diff_ids, "application/vnd.oci.image.config.v1+json");
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config.unwrap(), "layers": descriptors });
    let manifest = layout::add_json(dir, &manifest, media_type).unwrap();
    layout::tag_latest(dir, manifest).unwrap()
}

/// A few places far from each other before the whole, so that most spans are first met in the middle.
fn read_at_random(path: &Path, content: &[u8]) {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let places = layout::noise(8 * 4, content.len() as u64);
    for place in places.chunks(8) {
        let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap()) as usize;
        let from = number(&place[..4]) % content.len().max(1);
        let len = (number(&place[4..]) % 9000).min(content.len() - from.min(content.len()));
        let mut found = vec![0; len];
        file.read_exact_at(&mut found, from as u64).unwrap();
        assert!(
            found == content[from..from + len],
            "{}: {len} bytes at {from}",
            path.display()
        );
    }
    assert!(
        std::fs::read(path).unwrap() == content,
        "{}",
        path.display()
    );
}

#[test]
fn layers_without_content_and_layers_that_occur_twice_are_indexed() {
    let scene = Scene::new();
    let dir = scene.dir("layout");
    let gzip = |tar: &[u8]| clip_testkit::kinds::pipe(&["gzip", "-nc"], tar).unwrap();
    let tar = sample_tar("data", 1);
    // The empty layer that Docker writes for instructions that change no file; its digest is known by heart.
    let well_known = [
        31, 139, 8, 0, 0, 9, 110, 136, 0, 255, 98, 24, 5, 163, 96, 20, 140, 88, 0, 8, 0, 0, 255,
        255, 46, 175, 181, 239, 0, 4, 0, 0,
    ];
    assert_eq!(
        layout::digest_of(&well_known),
        "sha256:a3ed95caeb02ffe68cdd9fd84406680ae93d633cb16422d00e8a7c22955b46d4"
    );
    let layers = [
        (well_known.to_vec(), vec![0; 1024]),
        (gzip(&tar), tar.clone()),
        (gzip(&[]), vec![]),
        (vec![0; 1024], vec![0; 1024]),
        (vec![], vec![]),
        (gzip(&tar), tar.clone()),
        (well_known.to_vec(), vec![0; 1024]),
    ];
    let descriptors: Vec<_> = layers
        .iter()
        .map(|(blob, _)| layout::add_blob(&dir, blob, Format::Gzip.media_type()).unwrap())
        .collect();
    let diff_ids: Vec<_> = layers
        .iter()
        .map(|(_, tar)| layout::digest_of(tar))
        .collect();
    let config = layout::add_config(&dir, &diff_ids, "application/vnd.oci.image.config.v1+json");
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "config": config.unwrap(), "layers": descriptors });
    let manifest = layout::add_json(&dir, &manifest, media_type).unwrap();
    layout::tag_latest(&dir, manifest).unwrap();
    let archive = scene.index_layout(&dir, "image.clip");
    for (path, content) in sample_files("data", 1).into_iter().take(4) {
        let cat = scene.ok(["cat".as_ref(), archive.as_os_str(), path.as_ref()]);
        assert!(cat.raw == content, "{path}");
    }
}
