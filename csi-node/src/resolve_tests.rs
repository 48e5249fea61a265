//! What [`judge`] says about a `ClipImage`, case by case.

use clip_crds::clip_image::{Artifact, Source};
use clip_crds::{ClipImageSpec, ClipImageStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::*;

const AMD64: &str = "linux/amd64";
const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const OLDER: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

fn image(status: Option<ClipImageStatus>) -> ClipImage {
    let mut image = ClipImage::new(
        "python",
        ClipImageSpec {
            image: "python:3.12".into(),
            ..Default::default()
        },
    );
    image.metadata.namespace = Some("team-a".into());
    image.metadata.generation = Some(2);
    image.status = status;
    image
}

fn status(artifacts: &[(&str, &str, &str)]) -> ClipImageStatus {
    let artifact = |&(platform, manifest, digest): &(&str, &str, &str)| Artifact {
        platform: platform.into(),
        manifest_digest: manifest.into(),
        digest: digest.into(),
        size: 7,
        locations: vec![
            "http://clip-archives.clip-system.svc/v1/archives/x".into(),
            format!("ghcr.io/team/python@{OLDER}"),
        ],
        ..Default::default()
    };
    ClipImageStatus {
        observed_generation: Some(2),
        source: Some(Source {
            digest: "newest".into(),
            ..Default::default()
        }),
        artifacts: artifacts.iter().map(artifact).collect(),
        ..Default::default()
    }
}

fn with(
    mut status: ClipImageStatus,
    kind: &str,
    value: &str,
    reason: &str,
    message: &str,
) -> ClipImageStatus {
    status.conditions.push(Condition {
        type_: kind.into(),
        status: value.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: None,
        last_transition_time: Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH),
    });
    status
}

fn pending(image: &ClipImage) -> String {
    match judge(image, AMD64) {
        Ok(Verdict::Pending(message)) => message,
        other => panic!("{other:?}"),
    }
}

fn ready(image: &ClipImage) -> ArchiveRef {
    match judge(image, AMD64) {
        Ok(Verdict::Ready(archive)) => archive,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_archive_for_this_node_is_ready_with_its_places_in_registries() {
    let archive = ready(&image(Some(status(&[(AMD64, "newest", DIGEST)]))));
    assert_eq!(archive.digest.to_string(), DIGEST);
    assert_eq!(archive.size, Some(7));
    assert_eq!(
        archive.places,
        [Place::Registry(
            format!("ghcr.io/team/python@{OLDER}").parse().unwrap()
        )]
    );
}

#[test]
fn of_two_archives_the_one_of_the_newest_manifest_is_taken() {
    let archive = ready(&image(Some(status(&[
        (AMD64, "older", OLDER),
        (AMD64, "newest", DIGEST),
    ]))));
    assert_eq!(archive.digest.to_string(), DIGEST);
}

#[test]
fn an_archive_counts_even_while_a_later_attempt_is_stalled() {
    let stalled = with(
        status(&[(AMD64, "older", OLDER)]),
        "Stalled",
        "True",
        "Unauthorized",
        "no",
    );
    assert_eq!(ready(&image(Some(stalled))).digest.to_string(), OLDER);
}

#[test]
fn the_archive_of_an_image_that_the_spec_no_longer_names_is_not_mounted() {
    let mut old = status(&[(AMD64, "newest", DIGEST)]);
    old.observed_generation = Some(1);
    assert!(pending(&image(Some(old.clone()))).contains("was changed"));
    // The generation moved for another reason: the status still speaks of this image.
    old.source.as_mut().unwrap().reference = Some("docker.io/library/python:3.12".into());
    assert_eq!(ready(&image(Some(old))).digest.to_string(), DIGEST);
}

#[test]
fn work_in_progress_is_told_in_the_words_of_the_ready_condition() {
    let indexing = with(
        status(&[]),
        "Ready",
        "False",
        "Indexing",
        "Job clip-index-x runs for 12s",
    );
    assert_eq!(
        pending(&image(Some(indexing))),
        "ClipImage team-a/python is not ready: Job clip-index-x runs for 12s (Indexing)"
    );
    assert!(pending(&image(None)).contains("is clip-operator running?"));
}

#[test]
fn what_waiting_cannot_mend_is_an_error_with_the_conditions_words() {
    let stalled = with(
        status(&[]),
        "Stalled",
        "True",
        "ImageNotFound",
        "python:3.12 does not exist",
    );
    let error = judge(&image(Some(stalled)), AMD64).unwrap_err();
    assert_eq!(
        error.to_string(),
        "ClipImage team-a/python cannot be indexed: python:3.12 does not exist (ImageNotFound)"
    );
    let mut suspended = image(Some(status(&[])));
    suspended.spec.suspend = Some(true);
    let error = judge(&suspended, AMD64).unwrap_err().to_string();
    assert!(error.contains("set spec.suspend to false"), "{error}");
}

#[test]
fn another_platforms_archive_is_used_only_when_the_spec_names_that_platform() {
    let mut arm = image(Some(status(&[("linux/arm64", "newest", DIGEST)])));
    let error = judge(&arm, AMD64).unwrap_err().to_string();
    assert!(
        error.contains("is indexed for linux/arm64, this node needs linux/amd64"),
        "{error}"
    );
    arm.spec.platforms = vec!["linux/arm64".into()];
    assert_eq!(ready(&arm).digest.to_string(), DIGEST);
}

#[test]
fn a_digest_that_is_none_is_reported_not_mounted() {
    let error = judge(
        &image(Some(status(&[(AMD64, "newest", "sha256:../..")]))),
        AMD64,
    )
    .unwrap_err();
    assert!(matches!(error, ResolveError::Broken { .. }), "{error}");
}

#[test]
fn short_and_full_names_of_an_image_are_the_same_image() {
    let wanted: Reference = "docker.io/library/python:3.12".parse().unwrap();
    assert!(is_of(&image(None), &wanted));
    assert!(!is_of(&image(None), &"python:3.13".parse().unwrap()));
}
