//! Stories of a ClipImage, told step by step. The world is a value: what a decision asks for is done to it.

use clip_crds::{
    clip_image::{PublishSpec, PublishType},
    condition::{INDEXED, PUBLISHED, READY, RESOLVED, STALLED},
};
use expect_test::expect;

mod world;

use world::World;

use super::*;
use crate::identity::full_reference;

fn said<'a>(decision: &'a Decision, kind: &str) -> (&'a str, &'a str) {
    match decision
        .status
        .conditions
        .iter()
        .find(|condition| condition.type_ == kind)
    {
        Some(condition) => (&condition.status, &condition.reason),
        None => ("absent", ""),
    }
}

fn message<'a>(decision: &'a Decision, kind: &str) -> &'a str {
    &decision
        .status
        .conditions
        .iter()
        .find(|condition| condition.type_ == kind)
        .expect("it is said")
        .message
}

fn events(decision: &Decision) -> Vec<&'static str> {
    decision
        .notices
        .iter()
        .map(|notice| notice.reason)
        .collect()
}

fn creates(decision: &Decision) -> usize {
    decision
        .steps
        .iter()
        .filter(|step| matches!(step, Step::CreateJob { .. }))
        .count()
}

#[test]
fn a_new_image_gets_one_job_however_often_it_is_looked_at() {
    let mut world = World::new();
    let first = world.look();
    assert_eq!(creates(&first), 1);
    assert_eq!(events(&first), ["IndexStarted"]);
    assert_eq!(said(&first, READY), ("False", "Indexing"));
    assert_eq!(said(&first, RESOLVED), ("Unknown", "Indexing"));
    assert_eq!(first.status.observed_generation, Some(1));

    let second = world.later(15);
    assert_eq!((second.steps, second.notices), (vec![], vec![]));
    assert_eq!(second.status, first.status);
}

#[test]
fn the_image_is_ready_when_the_archive_arrived_not_when_the_job_says_so() {
    let mut world = World::new();
    world.look();
    world.upload();
    let decision = world.look();
    assert_eq!(said(&decision, READY), ("True", "Published"));
    assert_eq!(events(&decision), ["IndexSucceeded", "ArchivePublished"]);
    let summary = decision.status.summary.expect("numbers");
    assert_eq!(
        (
            summary.image_size.as_str(),
            summary.archive_size.as_str(),
            summary.ratio.as_str()
        ),
        ("54.1 MB", "84.5 kB", "640x")
    );
    assert_eq!(summary.index_duration.as_deref(), Some("2.0s"));

    world.succeed(None);
    let decision = world.later(1);
    assert_eq!(events(&decision), [""; 0]);
    assert_eq!(
        decision
            .status
            .summary
            .expect("numbers")
            .index_duration
            .as_deref(),
        Some("1.2s")
    );
    expect![[r#"
        Ready: Pods can mount this image: a node fetches 84.5 kB of archive before the first read, instead of 54.1 MB of image
        Resolved: docker.io/library/alpine:3.20 is sha256:cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd
        Indexed: Indexed 4,228 files in 3 layers (54.1 MB) in 1.2s
        Published: Archive sha256:abababababababababababababababababababababababababababababababab (84.5 kB) is in the archive service
    "#]]
    .assert_eq(&messages(&world));
    let quiet = world.later(600);
    assert_eq!((quiet.steps, quiet.notices), (vec![], vec![]));
}

fn messages(world: &World) -> String {
    let status = world.image.status.as_ref().expect("a status");
    status
        .conditions
        .iter()
        .map(|c| format!("{}: {}\n", c.type_, c.message))
        .collect()
}

#[test]
fn a_mistake_that_repeating_cannot_mend_stalls_until_the_spec_changes() {
    let mut world = World::new();
    world.look();
    world.fail("ImageNotFound", true);
    let decision = world.look();
    assert_eq!(events(&decision), ["IndexFailed"]);
    assert_eq!(said(&decision, READY), ("False", "ImageNotFound"));
    assert_eq!(said(&decision, RESOLVED), ("False", "ImageNotFound"));
    assert_eq!(said(&decision, STALLED), ("True", "ImageNotFound"));

    world.jobs.clear();
    let decision = world.later(86_400);
    assert_eq!(
        (creates(&decision), events(&decision).len()),
        (0, 0),
        "also when the Job was cleaned up"
    );

    let decision = world.change(|spec| spec.image = "alpine:3.21".into());
    assert_eq!(creates(&decision), 1);
    assert_eq!(said(&decision, STALLED), ("absent", ""));
}

#[test]
fn asking_again_mends_a_stalled_image_whose_secret_was_corrected() {
    let mut world = World::new();
    world.look();
    world.fail("Unauthorized", true);
    assert_eq!(said(&world.look(), STALLED).0, "True");
    let decision = world.request("now");
    assert_eq!(creates(&decision), 1);
    assert_eq!(
        decision.status.last_handled_requested_at.as_deref(),
        Some("now")
    );
    assert_eq!(creates(&world.look()), 0);
}

#[test]
fn a_failure_that_may_pass_is_tried_again_with_growing_pauses() {
    let mut world = World::new();
    world.look();
    let mut pauses = Vec::new();
    for _ in 0..7 {
        world.fail("RegistryUnreachable", false);
        let decision = world.look();
        assert_eq!(events(&decision), ["IndexFailed"]);
        assert_eq!(said(&decision, READY), ("False", "RegistryUnreachable"));
        assert_eq!(said(&decision, STALLED).0, "absent");
        pauses.push(decision.look_again.as_secs());
        let again = i64::try_from(decision.look_again.as_secs()).expect("seconds");
        assert_eq!(creates(&world.later(again - 1)), 0);
        assert_eq!(creates(&world.later(1)), 1);
    }
    assert_eq!(pauses, [120, 240, 480, 960, 1920, 3600, 3600]);
}

#[test]
fn a_job_that_cannot_start_or_is_being_repeated_says_why() {
    let mut world = World::new();
    world.look();
    let why = "ImagePullBackOff: no such image".to_owned();
    world.job().state = JobState::Active {
        blocked: Some(why),
        retrying: None,
    };
    let decision = world.look();
    assert_eq!(said(&decision, READY), ("False", "JobPending"));
    assert!(message(&decision, READY).ends_with("cannot start: ImagePullBackOff: no such image"));

    let cause = Cause {
        reason: "RateLimited".into(),
        message: "Too many requests".into(),
        permanent: false,
    };
    world.job().state = JobState::Active {
        blocked: None,
        retrying: Some((2, cause)),
    };
    let decision = world.look();
    assert_eq!(said(&decision, READY), ("False", "RateLimited"));
    assert!(
        message(&decision, READY).contains("failed 2 times and tries again: Too many requests.")
    );
}

#[test]
fn another_image_ends_the_old_job_and_the_old_archive_is_no_longer_offered() {
    let mut world = World::ready_world();
    let decision = world.change(|spec| spec.image = "alpine:3.21".into());
    assert_eq!(creates(&decision), 1);
    assert_eq!(decision.status.artifacts, []);
    assert_eq!(said(&decision, INDEXED).0, "False");

    let running = world.job().name.clone();
    let decision = world.change(|spec| spec.image = "alpine:3.22".into());
    assert!(decision.steps.contains(&Step::DeleteJob(running)));
    assert_eq!(creates(&decision), 1);

    let decision = world.change(|spec| spec.image = "alpine:3.20".into());
    assert_eq!(
        said(&decision, READY),
        ("True", "Published"),
        "its archive is still there"
    );
    assert_eq!(creates(&decision), 0);
}

#[test]
fn an_archive_stays_on_offer_while_it_is_made_again_on_request() {
    let mut world = World::ready_world();
    let decision = world.request("again");
    assert_eq!(creates(&decision), 1);
    assert_eq!(said(&decision, READY), ("False", "Indexing"));
    assert_eq!(decision.status.artifacts.len(), 1);
    world.now += k8s_openapi::jiff::SignedDuration::from_secs(5);
    world.upload();
    let decision = world.look();
    assert_eq!(said(&decision, READY), ("True", "Published"));
    assert_eq!(events(&decision), ["IndexSucceeded", "ArchivePublished"]);
}

#[test]
fn a_change_that_does_not_concern_the_archive_starts_nothing() {
    let mut world = World::ready_world();
    let job = world
        .image
        .status
        .as_ref()
        .and_then(|status| status.job.clone());
    let decision = world.change(|spec| spec.service_account_name = Some("indexer".into()));
    assert_eq!(decision.steps, []);
    assert_eq!(said(&decision, READY), ("True", "Published"));
    assert_eq!(decision.status.observed_generation, Some(2));
    assert_eq!(decision.status.job, job);
}

#[test]
fn a_lost_archive_is_made_again_at_once_but_not_in_a_circle() {
    let mut world = World::ready_world();
    world.record = None;
    let decision = world.later(600);
    assert_eq!(events(&decision), ["ArchiveLost", "IndexStarted"]);
    assert_eq!(said(&decision, READY), ("False", "Indexing"));
    assert_eq!(decision.status.artifacts, []);
    assert_eq!(decision.status.job.as_ref().map(|job| job.attempt), Some(2));

    world.succeed(None);
    let decision = world.later(5);
    assert_eq!(said(&decision, READY), ("False", "ArchiveLost"));
    assert_eq!(
        (creates(&decision), decision.look_again.as_secs()),
        (0, 240)
    );

    let decision = world.later(240);
    assert_eq!(creates(&decision), 1);
    world.upload();
    let decision = world.later(5);
    assert_eq!(said(&decision, READY), ("True", "Published"));
    assert_eq!(
        decision.status.job.map(|job| (job.attempt, job.failures)),
        Some((3, 0))
    );
}

#[test]
fn a_job_that_somebody_deleted_is_started_again() {
    let mut world = World::new();
    world.look();
    world.job().state = JobState::Deleting;
    assert_eq!(creates(&world.look()), 0, "its name is not free yet");
    world.jobs.clear();
    let decision = world.look();
    assert_eq!(creates(&decision), 1);
    assert_eq!(events(&decision), [""; 0], "it is the same Job");
}

#[test]
fn a_suspended_image_starts_no_job_and_keeps_what_it_has() {
    let mut world = World::new();
    let decision = world.change(|spec| spec.suspend = Some(true));
    assert_eq!(
        (creates(&decision), said(&decision, READY)),
        (0, ("False", "Suspended"))
    );
    assert_eq!(creates(&world.change(|spec| spec.suspend = None)), 1);

    let mut world = World::ready_world();
    let decision = world.change(|spec| spec.suspend = Some(true));
    assert_eq!(said(&decision, READY), ("True", "Published"));
    let decision = world.request("again");
    assert_eq!(
        (creates(&decision), said(&decision, READY)),
        (0, ("False", "Suspended"))
    );
    assert_eq!(decision.status.artifacts.len(), 1);
}

#[test]
fn with_a_registry_the_image_is_ready_when_the_push_is_reported() {
    let mut world = World::new();
    world.image.spec.publish = PublishSpec {
        kind: PublishType::Registry,
        registry: Some(Default::default()),
    };
    world.look();
    world.upload();
    let decision = world.look();
    assert_eq!(said(&decision, INDEXED).0, "True");
    assert_eq!(said(&decision, PUBLISHED), ("False", "Publishing"));
    assert_eq!(said(&decision, READY), ("False", "Indexing"));
    assert_eq!(events(&decision), ["IndexSucceeded"]);

    world.succeed(Some("docker.io/library/alpine@sha256:ef"));
    let decision = world.look();
    assert_eq!(said(&decision, READY), ("True", "Published"));
    assert_eq!(events(&decision), ["ArchivePublished"]);
    let locations = &decision.status.artifacts[0].locations;
    assert_eq!(locations.len(), 2);
    assert_eq!(locations[1], "docker.io/library/alpine@sha256:ef");

    let decision = world.change(|spec| {
        spec.publish.registry = Some(clip_crds::clip_image::RegistrySpec {
            repository: Some("r.io/elsewhere".into()),
            push_secret: None,
            reuse: false,
        });
    });
    assert_eq!(
        creates(&decision),
        1,
        "another repository has to be pushed to"
    );
    assert_eq!(said(&decision, PUBLISHED).0, "False");
}

#[test]
fn a_job_that_does_not_report_its_push_is_repeated() {
    let mut world = World::new();
    world.image.spec.publish = PublishSpec {
        kind: PublishType::Registry,
        registry: Some(Default::default()),
    };
    world.look();
    world.upload();
    world.job().state = JobState::Succeeded(None);
    let decision = world.look();
    assert_eq!(said(&decision, PUBLISHED), ("False", "PublishFailed"));
    assert_eq!(creates(&world.later(120)), 1);
}

#[test]
fn every_failure_says_what_to_do() {
    let mut all = String::new();
    for (reason, permanent) in [
        ("ImageNotFound", true),
        ("Unauthorized", true),
        ("RegistryUnreachable", false),
        ("PlatformNotFound", true),
        ("OutOfMemory", false),
        ("DeadlineExceeded", false),
        ("JobFailed", false),
    ] {
        let mut world = World::new();
        world.look();
        world.fail(reason, permanent);
        let decision = world.look();
        all += &format!("{reason}: {}\n", message(&decision, READY));
    }
    expect![[r#"
        ImageNotFound: It broke. Check spec.image; if the image is private, name a Secret of type kubernetes.io/dockerconfigjson in spec.pullSecrets. When the spec needs no change, ask for another try with: kubectl annotate clipimage -n team-a alpine clip.dev/requestedAt="$(date)" --overwrite
        Unauthorized: It broke. Name a Secret of type kubernetes.io/dockerconfigjson in spec.pullSecrets (and in spec.publish.registry.pushSecret to publish). When the spec needs no change, ask for another try with: kubectl annotate clipimage -n team-a alpine clip.dev/requestedAt="$(date)" --overwrite
        RegistryUnreachable: It broke. Check that pods of this namespace reach the registry (DNS, network policy); one without TLS has to be named in the Helm value registries. Another Job follows by itself.
        PlatformNotFound: It broke. Set spec.platforms to a platform that the image has. When the spec needs no change, ask for another try with: kubectl annotate clipimage -n team-a alpine clip.dev/requestedAt="$(date)" --overwrite
        OutOfMemory: It broke. Raise spec.index.job.resources.limits.memory. Another Job follows by itself.
        DeadlineExceeded: It broke. Raise spec.index.job.activeDeadlineSeconds. Another Job follows by itself.
        JobFailed: It broke. Another Job follows by itself.
    "#]]
    .assert_eq(&all);
}

#[test]
fn a_reference_is_shown_in_full() {
    assert_eq!(
        full_reference(&World::new().image.spec),
        "docker.io/library/alpine:3.20"
    );
}
