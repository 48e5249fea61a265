//! What the operator says about a ClipImage: conditions, numbers, events.

use std::time::Duration;

use clip_crds::{
    ClipImage, ClipImageStatus,
    clip_image::{Artifact, Failure, JobStatus, Source, Summary},
    condition::{INDEXED, PUBLISHED, READY, RESOLVED, STALLED, reason},
};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

use crate::{
    decide::{Rules, Step},
    events::Notice,
    identity::{full_reference, job_name, requested_at},
    jobs::Cause,
    remedy::remedy,
    store::Record,
    text,
};

/// Where an image stands.
#[derive(Debug, Clone, PartialEq)]
pub enum Standing {
    /// Everything is as the spec wants it.
    Ready,
    /// A Job is to start or runs.
    Working {
        /// Why its pod cannot start, if it cannot.
        blocked: Option<String>,
        /// Attempts that failed so far, and why the newest did.
        retrying: Option<(i32, Cause)>,
    },
    /// The Job failed; another follows.
    Waiting {
        /// Why.
        failure: Failure,
        /// When.
        retry_in: Duration,
    },
    /// The Job failed, and another would fail too.
    Stalled {
        /// Why.
        failure: Failure,
    },
    /// `spec.suspend`.
    Suspended,
}

/// All that the status is made of.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The ClipImage, with its present status.
    pub image: &'a ClipImage,
    /// The archive that may be mounted.
    pub record: Option<&'a Record>,
    /// Whether it answers the newest request.
    pub fresh: bool,
    /// Whether it is where the spec wants it.
    pub published: bool,
    /// Where the image stands.
    pub standing: Standing,
    /// The newest Job.
    pub job: Option<JobStatus>,
    /// The time.
    pub now: Timestamp,
    /// What holds for all images.
    pub rules: &'a Rules,
}

/// The whole new status.
pub fn status(facts: &Facts<'_>) -> ClipImageStatus {
    let suspended = facts.standing == Standing::Suspended;
    let handled_before = facts
        .image
        .status
        .as_ref()
        .and_then(|status| status.last_handled_requested_at.clone());
    ClipImageStatus {
        conditions: conditions(facts),
        observed_generation: facts.image.metadata.generation,
        last_handled_requested_at: if suspended {
            handled_before
        } else {
            requested_at(facts.image)
        },
        source: facts.record.map(|record| Source {
            digest: record.manifest_digest.clone(),
            reference: Some(full_reference(&facts.image.spec)),
            resolved_time: Some(record.created.clone()),
        }),
        summary: facts.record.map(summary),
        artifacts: facts
            .record
            .map(|record| artifact(record, facts.rules))
            .into_iter()
            .collect(),
        job: facts.job.clone(),
    }
}

/// What changed since the present status, as events.
pub fn notices(facts: &Facts<'_>, steps: &[Step]) -> Vec<Notice> {
    let mut notices = Vec::new();
    let old = facts.image.status.clone().unwrap_or_default();
    let was_failed = |job: &JobStatus| {
        old.job
            .as_ref()
            .is_some_and(|old| old.last_failure == job.last_failure && old.failures == job.failures)
    };
    if let Some(job) = &facts.job
        && let Some(failure) = &job.last_failure
        && !was_failed(job)
    {
        let failed = old
            .job
            .as_ref()
            .map_or_else(|| job.name.clone(), |old| old.name.clone());
        notices.push(Notice::failed(failed, failure));
    }
    for step in steps {
        if let Step::CreateJob { attempt } = step {
            let job = job_name(facts.image, *attempt);
            if old.job.as_ref().is_some_and(|old| old.name == job) {
                continue;
            }
            let message = format!("Job {job} indexes {}", full_reference(&facts.image.spec));
            notices.push(Notice::normal("IndexStarted", "Index", Some(job), message));
        }
    }
    if let Some(record) = facts.record.filter(|_| facts.fresh) {
        let known = old
            .artifacts
            .iter()
            .any(|artifact| artifact.created_time.as_ref() == Some(&record.created));
        let job = Some(record.job.clone());
        if !known {
            notices.push(Notice::normal(
                "IndexSucceeded",
                "Index",
                job.clone(),
                indexed_message(record),
            ));
        }
        let was_ready = old
            .conditions
            .iter()
            .any(|c| c.type_ == READY && c.status == "True");
        if facts.standing == Standing::Ready && !(known && was_ready) {
            notices.push(Notice::normal(
                "ArchivePublished",
                "Publish",
                job,
                published_message(record),
            ));
        }
    }
    notices
}

fn conditions(facts: &Facts<'_>) -> Vec<Condition> {
    let mut said = vec![
        ready(facts),
        resolved(facts),
        indexed(facts),
        published(facts),
    ];
    if let Standing::Stalled { failure } = &facts.standing {
        said.push(Said::new(
            STALLED,
            "True",
            &failure.reason,
            sentence(&failure.message),
        ));
    }
    said.into_iter()
        .map(|said| said.into_condition(facts))
        .collect()
}

/// A condition before it knows since when it holds.
struct Said {
    kind: &'static str,
    status: &'static str,
    reason: String,
    message: String,
}

impl Said {
    fn new(kind: &'static str, status: &'static str, reason: &str, message: String) -> Self {
        Self {
            kind,
            status,
            reason: reason.to_owned(),
            message,
        }
    }

    /// A condition keeps its time as long as its status stays.
    fn into_condition(self, facts: &Facts<'_>) -> Condition {
        let present = facts
            .image
            .status
            .as_ref()
            .map(|status| status.conditions.as_slice())
            .unwrap_or_default();
        let same = present
            .iter()
            .find(|old| old.type_ == self.kind && old.status == self.status);
        Condition {
            type_: self.kind.into(),
            status: self.status.into(),
            reason: self.reason,
            message: self.message,
            observed_generation: facts.image.metadata.generation,
            last_transition_time: same
                .map_or(Time(facts.now), |old| old.last_transition_time.clone()),
        }
    }
}

fn ready(facts: &Facts<'_>) -> Said {
    let (reason, message) = match &facts.standing {
        Standing::Ready => {
            let message = facts.record.map(ready_message).unwrap_or_default();
            return Said::new(READY, "True", reason::PUBLISHED, message);
        }
        standing => standing_words(standing, facts),
    };
    Said::new(READY, "False", &reason, message)
}

fn resolved(facts: &Facts<'_>) -> Said {
    if let Some(record) = facts.record {
        let message = format!(
            "{} is {}",
            full_reference(&facts.image.spec),
            record.manifest_digest
        );
        return Said::new(RESOLVED, "True", reason::RESOLVED, message);
    }
    let (reason, _) = standing_words(&facts.standing, facts);
    if hinders_resolving(&reason) {
        let message = format!(
            "{} was not resolved, see Ready",
            full_reference(&facts.image.spec)
        );
        return Said::new(RESOLVED, "False", &reason, message);
    }
    let message = "The indexing Job resolves the image".into();
    Said::new(RESOLVED, "Unknown", &reason, message)
}

fn indexed(facts: &Facts<'_>) -> Said {
    if let Some(record) = facts.record {
        return Said::new(INDEXED, "True", reason::INDEXED, indexed_message(record));
    }
    let (reason, _) = standing_words(&facts.standing, facts);
    let message = "There is no archive yet, see Ready".into();
    Said::new(INDEXED, "False", &reason, message)
}

fn published(facts: &Facts<'_>) -> Said {
    match facts.record {
        Some(record) if facts.published => Said::new(
            PUBLISHED,
            "True",
            reason::PUBLISHED,
            published_message(record),
        ),
        Some(_) => {
            let (reason, _) = standing_words(&facts.standing, facts);
            let pushing = reason == reason::INDEXING;
            let reason = if pushing { reason::PUBLISHING } else { &reason };
            let message = "The archive is in the archive service, but not in the registry yet";
            Said::new(PUBLISHED, "False", reason, message.into())
        }
        None => {
            let (reason, _) = standing_words(&facts.standing, facts);
            let message = "There is no archive to publish yet".into();
            Said::new(PUBLISHED, "False", &reason, message)
        }
    }
}

/// Reason and message of what is not there yet.
fn standing_words(standing: &Standing, facts: &Facts<'_>) -> (String, String) {
    let job = facts.job.as_ref().map_or("", |job| job.name.as_str());
    let image = full_reference(&facts.image.spec);
    match standing {
        Standing::Ready => (reason::INDEXED.into(), "Done".into()),
        Standing::Suspended => {
            let message = "No Job is started while spec.suspend is true".into();
            (reason::SUSPENDED.into(), message)
        }
        Standing::Working {
            blocked: Some(why), ..
        } => (
            reason::JOB_PENDING.into(),
            format!("Job {job} cannot start: {why}"),
        ),
        Standing::Working {
            retrying: Some((failed, cause)),
            ..
        } => {
            let times = text::counted(u64::from(failed.unsigned_abs()), "time", "times");
            let message = format!(
                "Job {job} failed {times} and tries again: {}",
                sentence(&cause.message)
            );
            (
                cause.reason.clone(),
                with_remedy(message, &cause.reason, facts.image, false),
            )
        }
        Standing::Working { .. } => {
            let before = facts.job.as_ref().and_then(|job| job.last_failure.as_ref());
            let message = match before {
                Some(failure) => format!(
                    "{} Job {job} indexes {image} again",
                    sentence(&failure.message)
                ),
                None => format!("Job {job} indexes {image}"),
            };
            (reason::INDEXING.into(), message)
        }
        Standing::Waiting { failure, .. } => {
            let message = format!(
                "{} Another Job follows by itself.",
                failure_message(failure, facts.image)
            );
            (failure.reason.clone(), message)
        }
        Standing::Stalled { failure } => (
            failure.reason.clone(),
            failure_message(failure, facts.image),
        ),
    }
}

fn failure_message(failure: &Failure, image: &ClipImage) -> String {
    with_remedy(
        sentence(&failure.message),
        &failure.reason,
        image,
        failure.permanent,
    )
}

fn with_remedy(message: String, why: &str, image: &ClipImage, permanent: bool) -> String {
    let remedy = remedy(why, image, permanent);
    if remedy.is_empty() {
        message
    } else {
        format!("{message} {remedy}")
    }
}

/// With a full stop, so that another sentence can follow.
fn sentence(text: &str) -> String {
    let text = text.trim();
    if text.ends_with(['.', '!', '?']) {
        text.to_owned()
    } else {
        format!("{text}.")
    }
}

/// Failures that say something about the reference rather than about the layers.
fn hinders_resolving(why: &str) -> bool {
    matches!(
        why,
        "ImageNotFound"
            | "Unauthorized"
            | "Forbidden"
            | "RegistryUnreachable"
            | "RateLimited"
            | "PlatformNotFound"
            | "InvalidReference"
    )
}

fn indexed_message(record: &Record) -> String {
    let entries = text::counted(record.files, "file", "files");
    let layers = text::counted(record.layers, "layer", "layers");
    let size = text::size(record.compressed_bytes);
    let took = record
        .duration_ms
        .map(|ms| format!(" in {}", took(ms)))
        .unwrap_or_default();
    format!("Indexed {entries} in {layers} ({size}){took}")
}

fn ready_message(record: &Record) -> String {
    let (archive, image) = (text::size(record.size), text::size(record.compressed_bytes));
    format!(
        "Pods can mount this image: a node fetches {archive} of archive before the first read, instead of {image} of image"
    )
}

fn published_message(record: &Record) -> String {
    let size = text::size(record.size);
    let digest = &record.digest;
    match &record.publication {
        Some(pushed) => {
            format!(
                "Archive {digest} ({size}) is in the archive service, and pushed as {}",
                pushed.reference
            )
        }
        None => format!("Archive {digest} ({size}) is in the archive service"),
    }
}

fn took(millis: u64) -> String {
    text::duration(Duration::from_millis(millis))
}

fn summary(record: &Record) -> Summary {
    Summary {
        files: clamp(record.files),
        layers: i32::try_from(record.layers).unwrap_or(i32::MAX),
        image_size: text::size(record.compressed_bytes),
        unpacked_size: text::size(record.unpacked_bytes),
        archive_size: text::size(record.size),
        ratio: text::ratio(record.compressed_bytes, record.size),
        index_duration: record.duration_ms.map(took),
    }
}

fn artifact(record: &Record, rules: &Rules) -> Artifact {
    let service = format!(
        "{}/v1/archives/{}",
        rules.archive_service_url, record.digest
    );
    let pushed = record
        .publication
        .as_ref()
        .map(|pushed| pushed.reference.clone());
    Artifact {
        platform: record.platform.clone(),
        manifest_digest: record.manifest_digest.clone(),
        digest: record.digest.clone(),
        size: clamp(record.size),
        format_version: i32::from(record.format_version),
        locations: [Some(service), pushed].into_iter().flatten().collect(),
        files: clamp(record.files),
        layers: i32::try_from(record.layers).unwrap_or(i32::MAX),
        compressed_bytes: clamp(record.compressed_bytes),
        unpacked_bytes: clamp(record.unpacked_bytes),
        created_time: Some(record.created.clone()),
    }
}

/// JSON numbers of the API are int64.
fn clamp(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
