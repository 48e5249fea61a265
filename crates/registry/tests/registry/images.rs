//! From a name to manifest, configuration and layers, and to the layers' bytes.

use super::{amd64, client, read, registry_source};
use crate::layout::{Layout, TAG};
use bytes::{Bytes, BytesMut};
use clip_registry::{
    BlobSource, Credentials, Digest, Index, LAYOUT_REGISTRY, OCI_MANIFEST, Reference, Repository,
    ResolveError,
};
use clip_testkit::registry::TestRegistry;
use futures::TryStreamExt as _;
use serde_json::json;
use std::path::PathBuf;

#[tokio::test]
async fn an_image_that_skopeo_pushed_is_resolved_and_its_blobs_are_read() {
    let registry = TestRegistry::start().unwrap();
    let layout = Layout::new("linux/amd64");
    layout.push(&registry, "team/app:v1", None);
    let client = client(Credentials::Anonymous);

    let image = client
        .resolve(&registry_source(&registry, "team/app:v1"), &amd64())
        .await
        .unwrap();
    assert_eq!(
        (image.registry.as_str(), image.repository.as_str()),
        (registry.address(), "team/app")
    );
    assert_eq!(image.tag.as_deref(), Some("v1"));
    assert_eq!(image.manifest_digest, Digest::sha256_of(&image.manifest));
    assert_eq!(image.reference_digest, image.manifest_digest);
    assert_eq!(image.platform, amd64());
    assert_eq!(image.layers.len(), 2);
    let blobs = client.blobs(&image);
    for (layer, content) in image.layers.iter().zip(&layout.layers) {
        assert_eq!(
            (layer.size, &layer.digest),
            (content.len() as u64, layer.diff_id.as_ref().unwrap())
        );
        let whole: BytesMut = blobs
            .stream(&layer.digest)
            .await
            .unwrap()
            .try_collect()
            .await
            .unwrap();
        assert_eq!(whole, content[..]);
        let end = content.len() as u64;
        for range in [0..1, 100..1000, end - 1..end, 0..end, 5..5] {
            let expected = &content[range.start as usize..range.end as usize];
            assert_eq!(read(&blobs, &layer.digest, range).await, expected);
        }
    }
    let bytes = layout
        .layers
        .iter()
        .map(|l| 2 * l.len() + 1 + 900 + 1)
        .sum::<usize>();
    assert_eq!(
        blobs.stats().bytes,
        bytes as u64,
        "nothing was fetched that was not asked for"
    );
    assert_eq!(blobs.stats().requests, 2 * 5);

    // The same source, from what an archive's head says.
    let reopened = BlobSource::open(&client, &image.registry, &image.repository).unwrap();
    assert_eq!(
        read(&reopened, &image.layers[0].digest, 0..10).await,
        layout.layers[0][..10]
    );
}

#[tokio::test]
async fn a_head_request_tells_what_a_tag_points_to() {
    let registry = TestRegistry::start().unwrap();
    let layout = Layout::new("linux/amd64");
    layout.push(&registry, "app:v1", None);
    let client = client(Credentials::Anonymous);
    let reference =
        |tag: &str| -> Reference { format!("{}/app:{tag}", registry.address()).parse().unwrap() };
    let head = client.head_manifest(&reference("v1")).await.unwrap();
    let raw = client.fetch_manifest(&reference("v1")).await.unwrap();
    assert_eq!(
        (&head.digest, head.size),
        (&raw.digest, raw.bytes.len() as u64)
    );
    assert_eq!(head.media_type, OCI_MANIFEST);

    let error = client.head_manifest(&reference("v2")).await.unwrap_err();
    assert_eq!(
        (error.reason(), error.is_permanent()),
        ("ImageNotFound", true)
    );
    let text = error.to_string();
    assert!(
        text.contains(&format!("app:v2 does not exist in {}", registry.address())),
        "{text}"
    );
}

#[tokio::test]
async fn the_platform_is_chosen_from_nested_indexes_past_attestations() {
    let registry = TestRegistry::start().unwrap();
    let mut layout = Layout::new("linux/amd64");
    let amd = layout.image("linux/amd64");
    let arm = layout.image("linux/arm64");
    let mut attestation = layout.image("linux/s390x");
    attestation["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
    attestation["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    let inner = layout.index(vec![attestation.clone(), arm.clone(), amd.clone()]);
    let mut outer = layout.index(vec![inner.clone()]);
    outer["annotations"] = json!({ "org.opencontainers.image.ref.name": TAG });
    layout.set_index(vec![outer.clone()]);
    let client = client(Credentials::Anonymous);

    // Registries of this age refuse an index of indexes from skopeo, so push the documents themselves.
    let repository = Repository::new(registry.address(), "app").unwrap();
    for descriptor in [&amd, &arm, &attestation, &inner, &outer] {
        let digest: Digest = serde_json::from_value(descriptor["digest"].clone()).unwrap();
        let bytes = std::fs::read(layout.path().join("blobs/sha256").join(digest.hex())).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        for blob in manifest["layers"]
            .as_array()
            .into_iter()
            .flatten()
            .chain([&manifest["config"]])
        {
            if let Some(hex) = blob["digest"]
                .as_str()
                .and_then(|d| d.strip_prefix("sha256:"))
            {
                let content = std::fs::read(layout.path().join("blobs/sha256").join(hex)).unwrap();
                client.push_blob(&repository, content.into()).await.unwrap();
            }
        }
        let name = if descriptor == &outer {
            "v1"
        } else {
            digest.as_ref()
        };
        let media_type = descriptor["mediaType"].as_str().unwrap();
        client
            .push_manifest(&repository, name, media_type, bytes.into())
            .await
            .unwrap();
    }

    for source in [
        registry_source(&registry, "app:v1"),
        layout.source(Some(TAG)),
        layout.source(None),
    ] {
        for (platform, descriptor) in [("linux/amd64", &amd), ("linux/arm64/v8", &arm)] {
            let image = client
                .resolve(&source, &platform.parse().unwrap())
                .await
                .unwrap();
            assert_eq!(
                image.manifest_digest.as_ref(),
                descriptor["digest"],
                "{source} {platform}"
            );
            assert_eq!(image.reference_digest.as_ref(), outer["digest"]);
        }
        let error = client
            .resolve(&source, &"linux/riscv64".parse().unwrap())
            .await
            .unwrap_err();
        assert_eq!(
            (error.reason(), error.is_permanent()),
            ("PlatformNotFound", true)
        );
        let text = error.to_string();
        assert!(
            text.contains("does not exist for linux/riscv64, but for: linux/amd64, linux/arm64"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_single_image_for_another_platform_is_refused() {
    let layout = Layout::new("linux/arm64");
    let client = client(Credentials::Anonymous);
    let error = client
        .resolve(&layout.source(None), &amd64())
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("but for: linux/arm64"),
        "{error}"
    );
}

#[tokio::test]
async fn a_layout_is_read_like_a_registry() {
    let layout = Layout::new("linux/amd64");
    let client = client(Credentials::Anonymous);
    let image = client
        .resolve(&layout.source(Some(TAG)), &amd64())
        .await
        .unwrap();
    assert_eq!(image.registry, LAYOUT_REGISTRY);
    assert_eq!(
        PathBuf::from(&image.repository),
        layout.path().canonicalize().unwrap()
    );
    let blobs = BlobSource::open(&client, &image.registry, &image.repository).unwrap();
    let (digest, content) = (&image.layers[1].digest, &layout.layers[1]);
    assert_eq!(read(&blobs, digest, 1000..2000).await, content[1000..2000]);
    let whole: BytesMut = blobs
        .stream(digest)
        .await
        .unwrap()
        .try_collect()
        .await
        .unwrap();
    assert_eq!(whole, content[..]);
    assert_eq!(
        (blobs.stats().requests, blobs.stats().bytes),
        (2, 1000 + content.len() as u64)
    );

    let end = content.len() as u64;
    assert!(blobs.range(digest, end..end + 1).await.is_err());
    let missing = blobs
        .stream(&Digest::sha256_of(b"missing"))
        .await
        .unwrap_err();
    assert_eq!(
        (missing.reason(), missing.is_permanent()),
        ("BlobNotFound", true)
    );
}

#[tokio::test]
async fn a_layout_without_the_tag_names_the_tags_it_has() {
    let mut layout = Layout::new("linux/amd64");
    let client = client(Credentials::Anonymous);
    let error = client
        .resolve(&layout.source(Some("v2")), &amd64())
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("no image tagged \"v2\""),
        "{error}"
    );
    assert!(error.to_string().contains("these tags: v1"), "{error}");

    let tagged = |mut image: serde_json::Value, tag: &str| {
        image["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        image["platform"] = serde_json::Value::Null;
        image
    };
    let (a, b) = (layout.image("linux/amd64"), layout.image("linux/arm64"));
    layout.set_index(vec![tagged(a, "a"), tagged(b, "b")]);
    let error = client
        .resolve(&layout.source(None), &amd64())
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("several images") && error.to_string().contains("a, b"),
        "{error}"
    );

    let source = "oci:/nonexistent".parse().unwrap();
    let error = client.resolve(&source, &amd64()).await.unwrap_err();
    assert_eq!(error.reason(), "InvalidLayout");
    assert!(error.to_string().contains("/nonexistent"), "{error}");
}

#[tokio::test]
async fn layers_and_diff_ids_must_agree() {
    let layout = Layout::new("linux/amd64");
    let config = json!({ "os": "linux", "architecture": "amd64", "rootfs": { "type": "layers", "diff_ids": [] } });
    let config = layout.add(
        "application/vnd.oci.image.config.v1+json",
        config.to_string().as_bytes(),
    );
    let layer = layout.add("application/vnd.oci.image.layer.v1.tar", &layout.layers[0]);
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
    layout.set_index(vec![
        layout.add(OCI_MANIFEST, manifest.to_string().as_bytes()),
    ]);
    let error = client(Credentials::Anonymous)
        .resolve(&layout.source(None), &amd64())
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            ResolveError::LayerCount {
                layers: 1,
                diff_ids: 0,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_blob_that_changed_in_the_registry_is_noticed() {
    let registry = TestRegistry::start().unwrap();
    let client = client(Credentials::Anonymous);
    let repository = Repository::new(registry.address(), "app").unwrap();
    let digest = client
        .push_blob(&repository, Bytes::from_static(b"hello"))
        .await
        .unwrap();
    let hex = digest.hex();
    let data = registry.storage().join(format!(
        "docker/registry/v2/blobs/sha256/{}/{hex}/data",
        &hex[..2]
    ));
    std::fs::write(data, b"jello").unwrap();
    let blobs = BlobSource::open(&client, registry.address(), "app").unwrap();
    let error = blobs.read_all(&digest, 100).await.unwrap_err();
    assert_eq!(error.reason(), "DigestMismatch");
}

#[test]
fn an_index_parses_with_null_in_place_of_lists() {
    let index: Index = serde_json::from_str(r#"{"schemaVersion":2,"manifests":null}"#).unwrap();
    assert!(index.manifests.is_empty());
}
