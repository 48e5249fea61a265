//! What makes two runs the same run: the names under which an archive and a Job are found again.
//!
//! * The **content key** covers what decides the archive's bytes. An archive with the current key may be
//!   mounted, whatever else changed in the spec.
//! * The **Job's name** covers the whole spec, the request to index now, and how many Jobs for it were needed
//!   before. Creating the Job twice, also by two operators, gives one Job.

use clip_crds::{
    ClipImage, ClipImageSpec, Prefetch, REQUESTED_AT,
    clip_image::{PublishType, RuntimeDirs},
    quantity,
};
use clip_registry::Reference;
use kube::ResourceExt;
use serde::Serialize;
use sha2::{Digest, Sha256};

/// Label of Jobs and pods: the name of their `ClipImage`.
pub const LABEL_IMAGE: &str = "clip.dev/clip-image";
/// Label by which our Jobs and pods are watched.
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`LABEL_MANAGED_BY`], and the field manager of what we apply.
pub const MANAGER: &str = "clip-operator";
/// Annotation of a Job: its attempt, a part of its name's hash.
pub const ANNOTATION_ATTEMPT: &str = "clip.dev/attempt";

/// Hash of what decides the archive's bytes: image, platform, span size, runtime directories.
pub fn content_key(spec: &ClipImageSpec, default_platform: &str) -> String {
    #[derive(Serialize)]
    struct Content<'a> {
        image: &'a str,
        platform: &'a str,
        max_span: Option<u64>,
        runtime_dirs: RuntimeDirs,
    }
    short_hash(&Content {
        image: &spec.image,
        platform: platform(spec, default_platform),
        max_span: max_span(spec),
        runtime_dirs: spec.runtime_dirs,
    })
}

/// `clip-index-` and a hash of (uid, spec, request, attempt).
pub fn job_name(image: &ClipImage, attempt: i32) -> String {
    let spec = ClipImageSpec {
        // None of them changes the archive.
        suspend: None,
        prefetch: Prefetch::default(),
        warm_up: None,
        ..image.spec.clone()
    };
    let hash = short_hash(&(
        image.metadata.uid.as_deref(),
        spec,
        requested_at(image),
        attempt,
    ));
    format!("clip-index-{hash}")
}

/// The platform to index.
pub fn platform<'a>(spec: &'a ClipImageSpec, default: &'a str) -> &'a str {
    spec.platforms.first().map_or(default, String::as_str)
}

/// `spec.index.maxSpan` in bytes. The CRD lets only quantities through.
pub fn max_span(spec: &ClipImageSpec) -> Option<u64> {
    quantity::bytes(spec.index.as_ref()?.max_span.as_ref()?)
}

/// The value of the annotation that asks to index now.
pub fn requested_at(image: &ClipImage) -> Option<String> {
    image.annotations().get(REQUESTED_AT).cloned()
}

/// The image in full, `docker.io/library/alpine:latest`; as written where it cannot be parsed (the Job will
/// say why).
pub fn full_reference(spec: &ClipImageSpec) -> String {
    match spec.image.parse::<Reference>() {
        Ok(reference) => reference.to_string(),
        Err(_) => spec.image.clone(),
    }
}

/// The repository to push the archive to, when it is to be pushed.
pub fn publish_repository(spec: &ClipImageSpec) -> Option<String> {
    if spec.publish.kind != PublishType::Registry {
        return None;
    }
    let named = spec
        .publish
        .registry
        .as_ref()
        .and_then(|registry| registry.repository.clone());
    named.or_else(|| {
        let image: Reference = spec.image.parse().ok()?;
        Some(image.in_repository().to_string())
    })
}

/// Linux on the architecture that this program was built for.
pub fn native_platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "linux/amd64",
        "aarch64" => "linux/arm64",
        "arm" => "linux/arm/v7",
        "powerpc64" => "linux/ppc64le",
        "s390x" => "linux/s390x",
        "riscv64" => "linux/riscv64",
        other => unreachable!("Clip is not built for {other}"),
    }
}

/// Ten hex digits (40 bits): names must differ among the Jobs of one namespace, not resist an attacker.
fn short_hash(value: &impl Serialize) -> String {
    let json = serde_json::to_vec(value).expect("a spec is plain data");
    hex::encode(&Sha256::digest(json)[..5])
}

#[cfg(test)]
mod tests {
    use super::*;
    use clip_crds::clip_image::{IndexSpec, PublishSpec, RegistrySpec};

    fn image(change: impl FnOnce(&mut ClipImageSpec)) -> ClipImage {
        let mut image = ClipImage::new(
            "a",
            ClipImageSpec {
                image: "alpine".into(),
                ..Default::default()
            },
        );
        image.metadata.uid = Some("u1".into());
        change(&mut image.spec);
        image
    }

    #[test]
    fn only_what_changes_the_archive_changes_its_key() {
        let key = |image: &ClipImage| content_key(&image.spec, "linux/amd64");
        let plain = key(&image(|_| {}));
        let same = [
            image(|spec| spec.suspend = Some(true)),
            image(|spec| spec.platforms = vec!["linux/amd64".into()]),
            image(|spec| spec.service_account_name = Some("sa".into())),
            image(|spec| spec.publish.kind = PublishType::Registry),
        ];
        assert!(same.iter().all(|image| key(image) == plain));
        let others = [
            image(|spec| spec.image = "alpine:3.20".into()),
            image(|spec| spec.platforms = vec!["linux/arm64".into()]),
            image(|spec| spec.runtime_dirs = RuntimeDirs::Empty),
            image(|spec| {
                spec.index = Some(IndexSpec {
                    max_span: Some("1Mi".into()),
                    job: None,
                })
            }),
        ];
        assert!(others.iter().all(|image| key(image) != plain));
    }

    #[test]
    fn every_change_that_could_mend_a_failed_job_gives_it_a_new_name() {
        let name = |image: &ClipImage| job_name(image, 1);
        let plain = name(&image(|_| {}));
        assert_eq!(name(&image(|spec| spec.suspend = Some(true))), plain);
        let warmed_up = image(|spec| spec.warm_up = Some(Default::default()));
        assert_eq!(name(&warmed_up), plain);
        let mut requested = image(|_| {});
        requested
            .annotations_mut()
            .insert(REQUESTED_AT.into(), "now".into());
        let mut recreated = image(|_| {});
        recreated.metadata.uid = Some("u2".into());
        let others = [
            requested,
            recreated,
            image(|spec| spec.image = "alpine:3.20".into()),
            image(|spec| spec.pull_secrets = vec![Default::default()]),
            image(|spec| spec.service_account_name = Some("sa".into())),
        ];
        assert!(others.iter().all(|image| name(image) != plain));
        assert_ne!(job_name(&image(|_| {}), 2), plain);
    }

    #[test]
    fn an_archive_goes_to_the_images_own_repository_unless_told_otherwise() {
        let publish = |repository: Option<&str>| PublishSpec {
            kind: PublishType::Registry,
            registry: Some(RegistrySpec {
                repository: repository.map(Into::into),
                push_secret: None,
                reuse: false,
            }),
        };
        assert_eq!(publish_repository(&image(|_| {}).spec), None);
        let own = image(|spec| spec.publish = publish(None));
        assert_eq!(
            publish_repository(&own.spec).as_deref(),
            Some("docker.io/library/alpine")
        );
        let named = image(|spec| spec.publish = publish(Some("r.io/x")));
        assert_eq!(publish_repository(&named.spec).as_deref(), Some("r.io/x"));
    }
}
