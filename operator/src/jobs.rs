//! What a Job and its pods say, as a plain value.
//!
//! `clip index` writes one JSON object to its termination log, whatever happens ([`Report`]); Kubernetes adds
//! how the container ended. This file is the only one that knows how the two fit together.

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ContainerState, ContainerStatus, Pod},
};
use kube::ResourceExt;
use serde::Deserialize;

use clip_crds::condition::reason;

/// Exit code of `clip index` when trying again cannot help.
pub const EXIT_PERMANENT: i32 = 42;
/// The Job's only container.
pub const CONTAINER: &str = "index";

/// A Job of a ClipImage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobView {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub state: JobState,
}

/// Where a Job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobState {
    /// Marked for deletion; its name is not free yet.
    Deleting,
    /// Pending or running.
    Active {
        /// Why its pod cannot start, if it cannot.
        blocked: Option<String>,
        /// Its pods that failed so far, and why the newest did.
        retrying: Option<(i32, Cause)>,
    },
    /// Done, with what `clip index` reported; `None` when its pod is gone.
    Succeeded(Option<Outcome>),
    /// Given up.
    Failed(Cause),
}

/// Why an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// One word.
    pub reason: String,
    /// One sentence.
    pub message: String,
    /// Whether trying again cannot help.
    pub permanent: bool,
}

/// What a successful `clip index` reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// REPOSITORY@DIGEST, when it pushed the archive.
    pub published: Option<String>,
    /// How long indexing took.
    pub duration_ms: Option<u64>,
}

/// The termination log of `clip index`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    reason: String,
    message: String,
    #[serde(default)]
    published: Option<String>,
    #[serde(default)]
    duration_ms: Option<u64>,
}

impl JobState {
    /// Whether the Job still does or may do something.
    pub fn is_unfinished(&self) -> bool {
        matches!(self, Self::Active { .. })
    }
}

/// Reads a Job together with its pods.
pub fn view(job: &Job, pods: &[&Pod]) -> JobView {
    JobView {
        name: job.name_any(),
        state: state(job, pods),
    }
}

fn state(job: &Job, pods: &[&Pod]) -> JobState {
    let newest = pods.iter().max_by_key(|pod| pod.creation_timestamp());
    let failure = pods
        .iter()
        .filter(|pod| exit(pod).is_some_and(|exit| exit.code != 0));
    let newest_failure = failure
        .max_by_key(|pod| pod.creation_timestamp())
        .and_then(|pod| cause(pod));

    if job.metadata.deletion_timestamp.is_some() {
        return JobState::Deleting;
    }
    if condition(job, "Complete").is_some() {
        return JobState::Succeeded(newest.and_then(|pod| outcome(pod)));
    }
    if let Some((why, message)) = condition(job, "Failed") {
        return JobState::Failed(job_failure(why, message, newest_failure));
    }
    let failed = job
        .status
        .as_ref()
        .and_then(|status| status.failed)
        .unwrap_or(0);
    JobState::Active {
        blocked: newest.and_then(|pod| blocked(pod)),
        retrying: newest_failure
            .filter(|_| failed > 0)
            .map(|cause| (failed, cause)),
    }
}

/// Reason and message of a condition that is true.
fn condition<'a>(job: &'a Job, kind: &str) -> Option<(&'a str, &'a str)> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let found = conditions
        .iter()
        .find(|condition| condition.type_ == kind && condition.status == "True")?;
    Some((
        found.reason.as_deref().unwrap_or(""),
        found.message.as_deref().unwrap_or(""),
    ))
}

/// What the pod said is worth more than what the Job controller concluded from it, deadlines excepted.
fn job_failure(why: &str, message: &str, pod: Option<Cause>) -> Cause {
    match (why, pod) {
        ("DeadlineExceeded", last) => Cause {
            reason: reason::DEADLINE_EXCEEDED.into(),
            message: match last {
                Some(last) => format!(
                    "The Job ran out of time; its last attempt failed: {}",
                    last.message
                ),
                None => "The Job ran out of time".into(),
            },
            permanent: false,
        },
        ("PodFailurePolicy", Some(cause)) => Cause {
            permanent: true,
            ..cause
        },
        ("PodFailurePolicy", None) => Cause {
            reason: reason::JOB_FAILED.into(),
            message: message.to_owned(),
            permanent: true,
        },
        (_, Some(cause)) => Cause {
            permanent: false,
            ..cause
        },
        (_, None) => Cause {
            reason: reason::JOB_FAILED.into(),
            message: message.to_owned(),
            permanent: false,
        },
    }
}

struct Exit<'a> {
    code: i32,
    reason: &'a str,
    message: &'a str,
}

fn container(pod: &Pod) -> Option<&ContainerStatus> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find(|status| status.name == CONTAINER)
}

fn container_state(pod: &Pod) -> Option<&ContainerState> {
    container(pod)?.state.as_ref()
}

fn exit(pod: &Pod) -> Option<Exit<'_>> {
    let terminated = container_state(pod)?.terminated.as_ref()?;
    Some(Exit {
        code: terminated.exit_code,
        reason: terminated.reason.as_deref().unwrap_or(""),
        message: terminated.message.as_deref().unwrap_or("").trim(),
    })
}

fn cause(pod: &Pod) -> Option<Cause> {
    let exit = exit(pod)?;
    let permanent = exit.code == EXIT_PERMANENT;
    if exit.reason == "OOMKilled" {
        let message = "Indexing needed more memory than the Job's limit".into();
        return Some(Cause {
            reason: reason::OUT_OF_MEMORY.into(),
            message,
            permanent: false,
        });
    }
    if let Ok(report) = serde_json::from_str::<Report>(exit.message) {
        return Some(Cause {
            reason: condition_reason(&report.reason),
            message: report.message,
            permanent,
        });
    }
    // A panic ends with a note on backtraces, which tells nobody anything.
    let last_line = exit
        .message
        .lines()
        .rfind(|line| !line.starts_with("note:"))
        .unwrap_or("");
    let message = match (last_line, exit.reason) {
        ("", "" | "Error") => format!("clip index ended with exit code {}", exit.code),
        ("", why) => format!("The container ended with exit code {} ({why})", exit.code),
        (line, _) => format!("clip index ended with exit code {}: {line}", exit.code),
    };
    Some(Cause {
        reason: reason::JOB_FAILED.into(),
        message,
        permanent,
    })
}

fn outcome(pod: &Pod) -> Option<Outcome> {
    let report: Report =
        serde_json::from_str(exit(pod).filter(|exit| exit.code == 0)?.message).ok()?;
    Some(Outcome {
        published: report.published,
        duration_ms: report.duration_ms,
    })
}

/// Why a pod that should run does not: the scheduler's or the kubelet's own words.
fn blocked(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    if status.phase.as_deref() != Some("Pending") {
        return None;
    }
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let unscheduled = conditions
        .iter()
        .find(|c| c.type_ == "PodScheduled" && c.status == "False");
    if let Some(condition) = unscheduled {
        return Some(format!(
            "no node takes its pod: {}",
            condition.message.as_deref().unwrap_or("unknown")
        ));
    }
    let waiting = container_state(pod)?.waiting.as_ref()?;
    let why = waiting.reason.as_deref()?;
    if matches!(why, "ContainerCreating" | "PodInitializing") {
        return None;
    }
    Some(format!(
        "{why}: {}",
        waiting.message.as_deref().unwrap_or("no details")
    ))
}

/// A condition's reason must be a CamelCase word (apimachinery, types.go); a report that is not ours may not be.
fn condition_reason(text: &str) -> String {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let valid = text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(word);
    if valid {
        text.to_owned()
    } else {
        reason::JOB_FAILED.to_owned()
    }
}

#[cfg(test)]
mod tests;
