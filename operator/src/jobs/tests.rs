//! Jobs and pods as the apiserver shows them, and what is read from them.

use serde_json::{Value, json};

use super::*;

fn job(status: Value) -> Job {
    serde_json::from_value(json!({"metadata": {"name": "j", "uid": "j1"}, "status": status}))
        .expect("a Job")
}

fn failed(reason: &str) -> Job {
    let condition = json!({"type": "Failed", "status": "True", "reason": reason, "message": "said the controller"});
    job(json!({"failed": 1, "conditions": [condition]}))
}

fn pod(status: Value) -> Pod {
    let metadata = json!({"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"});
    serde_json::from_value(json!({"metadata": metadata, "status": status})).expect("a Pod")
}

fn ended(code: i32, reason: &str, message: &str) -> Pod {
    let terminated = json!({"exitCode": code, "reason": reason, "message": message});
    let status = json!({
        "name": CONTAINER, "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": terminated},
    });
    pod(json!({"phase": "Failed", "containerStatuses": [status]}))
}

fn cause_of(job: &Job, pods: &[&Pod]) -> (String, String, bool) {
    match view(job, pods).state {
        JobState::Failed(cause) => (cause.reason, cause.message, cause.permanent),
        other => panic!("not failed: {other:?}"),
    }
}

const NOT_FOUND: &str = r#"{"reason":"ImageNotFound","message":"there is no tag 3.99"}"#;

#[test]
fn a_failed_job_says_what_clip_index_said() {
    for (job, pod, expected) in [
        (
            failed("PodFailurePolicy"),
            ended(42, "Error", NOT_FOUND),
            ("ImageNotFound", "there is no tag 3.99", true),
        ),
        (
            failed("BackoffLimitExceeded"),
            ended(1, "Error", NOT_FOUND),
            ("ImageNotFound", "there is no tag 3.99", false),
        ),
        (
            failed("DeadlineExceeded"),
            ended(1, "Error", NOT_FOUND),
            (
                "DeadlineExceeded",
                "The Job ran out of time; its last attempt failed: there is no tag 3.99",
                false,
            ),
        ),
        (
            failed("BackoffLimitExceeded"),
            ended(137, "OOMKilled", ""),
            (
                "OutOfMemory",
                "Indexing needed more memory than the Job's limit",
                false,
            ),
        ),
        (
            failed("BackoffLimitExceeded"),
            ended(101, "Error", "panicked at x.rs\nthe why\nnote: backtrace"),
            (
                "JobFailed",
                "clip index ended with exit code 101: the why",
                false,
            ),
        ),
        (
            failed("BackoffLimitExceeded"),
            ended(128, "StartError", ""),
            (
                "JobFailed",
                "The container ended with exit code 128 (StartError)",
                false,
            ),
        ),
        (
            failed("PodFailurePolicy"),
            ended(42, "Error", r#"{"reason":"not a word!","message":"m"}"#),
            ("JobFailed", "m", true),
        ),
    ] {
        let (reason, message, permanent) = cause_of(&job, &[&pod]);
        assert_eq!((reason.as_str(), message.as_str(), permanent), expected);
    }
}

#[test]
fn without_its_pods_a_failed_job_says_what_the_controller_said() {
    let cause = cause_of(&failed("BackoffLimitExceeded"), &[]);
    assert_eq!(
        cause,
        ("JobFailed".into(), "said the controller".into(), false)
    );
    assert!(cause_of(&failed("PodFailurePolicy"), &[]).2);
    assert_eq!(
        cause_of(&failed("DeadlineExceeded"), &[]).1,
        "The Job ran out of time"
    );
}

#[test]
fn a_job_that_ended_well_reports_its_push_and_its_time() {
    let complete = job(json!({"conditions": [{"type": "Complete", "status": "True"}]}));
    let report =
        r#"{"reason":"Indexed","message":"m","published":"r.io/a@sha256:1","durationMs":1234}"#;
    let outcome = Outcome {
        published: Some("r.io/a@sha256:1".into()),
        duration_ms: Some(1234),
    };
    assert_eq!(
        view(&complete, &[&ended(0, "Completed", report)]).state,
        JobState::Succeeded(Some(outcome))
    );
    assert_eq!(view(&complete, &[]).state, JobState::Succeeded(None));
}

#[test]
fn a_job_that_waits_says_for_what() {
    let active = job(json!({"active": 1}));
    let unscheduled = pod(json!({
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}],
    }));
    let waiting = |reason: &str| {
        let status = json!({
            "name": CONTAINER, "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": reason, "message": "why"}},
        });
        pod(json!({"phase": "Pending", "containerStatuses": [status]}))
    };
    for (pod, expected) in [
        (
            unscheduled,
            Some("no node takes its pod: 0/3 nodes are available"),
        ),
        (waiting("ImagePullBackOff"), Some("ImagePullBackOff: why")),
        (waiting("ContainerCreating"), None),
        (pod(json!({"phase": "Running"})), None),
    ] {
        let JobState::Active { blocked, .. } = view(&active, &[&pod]).state else {
            panic!("not active")
        };
        assert_eq!(blocked.as_deref(), expected);
    }
}

#[test]
fn a_job_that_is_being_repeated_says_how_often_it_failed_and_why() {
    let mut running = pod(json!({"phase": "Running"}));
    running.metadata.creation_timestamp =
        serde_json::from_value(json!("2026-01-01T00:01:00Z")).expect("a time");
    let again = job(json!({"active": 1, "failed": 2}));
    let JobState::Active {
        retrying: Some((times, cause)),
        ..
    } = view(&again, &[&ended(1, "Error", NOT_FOUND), &running]).state
    else {
        panic!("not repeated")
    };
    assert_eq!((times, cause.reason.as_str()), (2, "ImageNotFound"));
}

#[test]
fn a_job_that_is_being_deleted_is_nothing_else() {
    let mut deleted = job(json!({"active": 1}));
    deleted.metadata.deletion_timestamp =
        serde_json::from_value(json!("2026-01-01T00:00:00Z")).expect("a time");
    assert_eq!(view(&deleted, &[]).state, JobState::Deleting);
}
