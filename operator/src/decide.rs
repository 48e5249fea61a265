//! The operator's judgement: (ClipImage, what was observed) → what to do and what to say. Pure.
//!
//! ```text
//!             ┌────────────── new spec, or clip.dev/requestedAt changed ──────────────┐
//!             ▼                                                                       │
//!         Absent ── create Job ──► Active ──► Succeeded ── archive there, pushed ──► Ready
//!             ▲                      │            │                                   │
//!             │                      ▼            └── archive not there ──┐           │ archive lost
//!             └─ attempt+1, later ─ Failed ◄──────────────────────────────┴───────────┘
//!                                    └── permanent ──► Stalled
//! ```
//!
//! Whether an archive is right is asked of the archive service's record, never of the Job: a Job's result
//! counts only once the archive has arrived and was verified.

use std::time::Duration;

use clip_crds::{
    ClipImage, ClipImageStatus,
    clip_image::{Failure, JobPhase, JobStatus},
    condition::reason,
};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

use crate::{
    events::Notice,
    identity::{content_key, job_name, publish_repository, requested_at},
    jobs::{Cause, JobState, JobView, Outcome},
    status::{self, Facts, Standing},
    store::{Publication, Record},
};

/// An archive may vanish from the disk behind our back: look again this often.
const LOOK_AGAIN: Duration = Duration::from_secs(600);
/// While a Job is to start, the kubelet's complaints are fetched this often.
const WATCH_JOB: Duration = Duration::from_secs(15);
/// Pause before a failed Job is followed by another: doubled up to [`RETRY_MAX`]. The Job itself has then
/// spent its own retries, about three minutes.
const RETRY_FIRST: Duration = Duration::from_secs(120);
/// An hour: a registry that was away all day is noticed soon enough, and is not hammered by 10,000 images.
const RETRY_MAX: Duration = Duration::from_secs(3600);

/// What the world looks like.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The Jobs of this ClipImage.
    pub jobs: Vec<JobView>,
    /// What the archive service holds for it; `None` also when the archive's file is gone.
    pub record: Option<Record>,
    /// The time.
    pub now: Timestamp,
}

/// What holds for all images.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The platform of images whose spec names none.
    pub default_platform: String,
    /// Base URL of the archive service.
    pub archive_service_url: String,
}

/// What to do and what to say.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// In this order; each may be repeated.
    pub steps: Vec<Step>,
    /// The whole new status.
    pub status: ClipImageStatus,
    /// Events.
    pub notices: Vec<Notice>,
    /// When to look again if nothing changes.
    pub look_again: Duration,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Delete a Job of an older spec.
    DeleteJob(String),
    /// Create the Job of this attempt.
    CreateJob {
        /// A part of the Job's name.
        attempt: i32,
    },
    /// Add what the Job reported to the archive's record.
    WriteRecord(Box<Record>),
}

/// Decides.
pub fn decide(image: &ClipImage, observed: &Observed, rules: &Rules) -> Decision {
    let mut steps = Vec::new();
    let mut run = Run::find(image, observed);
    for job in &observed.jobs {
        if job.name != run.job.name && job.state.is_unfinished() {
            steps.push(Step::DeleteJob(job.name.clone()));
        }
    }

    let key = content_key(&image.spec, &rules.default_platform);
    let mut record = observed
        .record
        .clone()
        .filter(|record| record.content_key == key);
    if let (Some(record), State::Succeeded(Some(outcome))) = (&mut record, &run.state)
        && add_outcome(
            record,
            outcome,
            &run.job.name,
            publish_repository(&image.spec),
        )
    {
        steps.push(Step::WriteRecord(Box::new(record.clone())));
    }
    let fresh = record
        .as_ref()
        .is_some_and(|record| record.requested_at == requested_at(image));
    let published = record
        .as_ref()
        .is_some_and(|record| is_published(record, image));

    let standing = if fresh && published {
        run.finish();
        Standing::Ready
    } else if image.spec.suspend == Some(true) && !matches!(run.state, State::Active { .. }) {
        Standing::Suspended
    } else {
        run.advance(image, fresh, observed.now, &mut steps)
    };

    let look_again = match &standing {
        Standing::Working { .. } => WATCH_JOB,
        Standing::Waiting { retry_in, .. } => *retry_in,
        Standing::Ready | Standing::Suspended | Standing::Stalled { .. } => LOOK_AGAIN,
    };
    let job = run.into_status(image, &standing);
    let facts = Facts {
        image,
        record: record.as_ref(),
        fresh,
        published,
        standing,
        job,
        now: observed.now,
        rules,
    };
    let status = status::status(&facts);
    let notices = status::notices(&facts, &steps);
    Decision {
        steps,
        status,
        notices,
        look_again,
    }
}

/// The newest Job of the current spec: what the status remembers of it, and what is seen of it.
struct Run {
    job: JobStatus,
    state: State,
}

enum State {
    Absent,
    Deleting,
    Active {
        blocked: Option<String>,
        retrying: Option<(i32, Cause)>,
    },
    Succeeded(Option<Outcome>),
    Failed(Failure),
}

impl Run {
    /// A remembered end counts more than a Job that is seen or not: finished Jobs are removed after a while.
    fn find(image: &ClipImage, observed: &Observed) -> Self {
        let remembered = image.status.as_ref().and_then(|status| status.job.clone());
        let job = remembered
            .filter(|job| job.name == job_name(image, job.attempt))
            .unwrap_or_else(|| JobStatus {
                name: job_name(image, 1),
                attempt: 1,
                failures: 0,
                phase: JobPhase::Active,
                last_failure: None,
            });
        let seen = observed
            .jobs
            .iter()
            .find(|seen| seen.name == job.name)
            .map(|seen| seen.state.clone());
        let mut run = Self {
            job,
            state: State::Absent,
        };
        run.state = match (run.job.phase, run.job.last_failure.clone(), seen) {
            (JobPhase::Failed, Some(failure), _) => State::Failed(failure),
            (JobPhase::Succeeded, _, Some(JobState::Succeeded(outcome))) => {
                State::Succeeded(outcome)
            }
            (JobPhase::Succeeded, _, _) => State::Succeeded(None),
            (_, _, None) => State::Absent,
            (_, _, Some(JobState::Deleting)) => State::Deleting,
            (_, _, Some(JobState::Active { blocked, retrying })) => {
                State::Active { blocked, retrying }
            }
            (_, _, Some(JobState::Succeeded(outcome))) => State::Succeeded(outcome),
            (_, _, Some(JobState::Failed(cause))) => run.fail(cause, observed.now),
        };
        run
    }

    fn fail(&mut self, cause: Cause, now: Timestamp) -> State {
        let Cause {
            reason,
            message,
            permanent,
        } = cause;
        let failure = Failure {
            reason,
            message,
            permanent,
            time: Time(now),
        };
        self.job.failures += 1;
        self.job.phase = JobPhase::Failed;
        self.job.last_failure = Some(failure.clone());
        State::Failed(failure)
    }

    /// Everything is as the spec wants it.
    fn finish(&mut self) {
        self.job.failures = 0;
        self.job.last_failure = None;
        if !matches!(self.state, State::Active { .. } | State::Deleting) {
            self.job.phase = JobPhase::Succeeded;
        }
    }

    /// One step on towards an archive.
    fn advance(
        &mut self,
        image: &ClipImage,
        fresh: bool,
        now: Timestamp,
        steps: &mut Vec<Step>,
    ) -> Standing {
        if let State::Succeeded(_) = self.state {
            self.state = self.fail(missing_result(fresh), now);
        }
        match &self.state {
            State::Absent => {
                steps.push(Step::CreateJob {
                    attempt: self.job.attempt,
                });
                self.job.phase = JobPhase::Active;
                Standing::Working {
                    blocked: None,
                    retrying: None,
                }
            }
            State::Deleting => Standing::Working {
                blocked: None,
                retrying: None,
            },
            State::Active { blocked, retrying } => Standing::Working {
                blocked: blocked.clone(),
                retrying: retrying.clone(),
            },
            State::Failed(failure) if failure.permanent => Standing::Stalled {
                failure: failure.clone(),
            },
            State::Failed(failure) => {
                let passed =
                    Duration::try_from(now.duration_since(failure.time.0)).unwrap_or_default();
                let pause = pause_after(&failure.reason, self.job.failures);
                if passed < pause {
                    let retry_in = pause - passed;
                    return Standing::Waiting {
                        failure: failure.clone(),
                        retry_in,
                    };
                }
                self.job.attempt += 1;
                self.job.name = job_name(image, self.job.attempt);
                self.job.phase = JobPhase::Active;
                steps.push(Step::CreateJob {
                    attempt: self.job.attempt,
                });
                Standing::Working {
                    blocked: None,
                    retrying: None,
                }
            }
            State::Succeeded(_) => unreachable!("turned into a failure above"),
        }
    }

    /// A spec that was changed after its archive was made has no Job of its own; the status keeps naming the
    /// Job that made the archive.
    fn into_status(self, image: &ClipImage, standing: &Standing) -> Option<JobStatus> {
        let remembered = image.status.as_ref().and_then(|status| status.job.clone());
        match (self.state, standing) {
            (State::Absent, Standing::Suspended) => remembered,
            (State::Absent, Standing::Ready)
                if remembered
                    .as_ref()
                    .is_none_or(|job| job.name != self.job.name) =>
            {
                remembered
            }
            _ => Some(self.job),
        }
    }
}

/// Takes over what the Job reported about the archive that it uploaded. True when that is news.
fn add_outcome(
    record: &mut Record,
    outcome: &Outcome,
    job: &str,
    repository: Option<String>,
) -> bool {
    if record.job != job {
        return false;
    }
    let before = record.clone();
    record.duration_ms = outcome.duration_ms.or(record.duration_ms);
    if let (Some(repository), Some(reference)) = (repository, outcome.published.clone()) {
        record.publication = Some(Publication {
            repository,
            reference,
        });
    }
    *record != before
}

fn is_published(record: &Record, image: &ClipImage) -> bool {
    match publish_repository(&image.spec) {
        None => true,
        Some(wanted) => record
            .publication
            .as_ref()
            .is_some_and(|found| found.repository == wanted),
    }
}

/// The Job says that it succeeded, and yet something is missing.
fn missing_result(fresh: bool) -> Cause {
    let (reason, message) = if fresh {
        (
            reason::PUBLISH_FAILED,
            "The Job ended well but did not report that it pushed the archive",
        )
    } else {
        (
            reason::ARCHIVE_LOST,
            "The archive is no longer on the archive service's disk",
        )
    };
    Cause {
        reason: reason.into(),
        message: message.into(),
        permanent: false,
    }
}

/// A lost archive is made again at once, but if that one is lost too, something is wrong with the disk.
fn pause_after(why: &str, failures: i32) -> Duration {
    if why == reason::ARCHIVE_LOST && failures <= 1 {
        return Duration::ZERO;
    }
    let doublings = u32::try_from(failures - 1).unwrap_or(0).min(8);
    (RETRY_FIRST * 2_u32.pow(doublings)).min(RETRY_MAX)
}

#[cfg(test)]
mod tests;
