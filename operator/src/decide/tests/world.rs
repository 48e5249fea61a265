//! A small world in which decisions are carried out.

use clip_crds::{ClipImageSpec, REQUESTED_AT};
use kube::ResourceExt;

use super::super::*;

/// A ClipImage, its Jobs, the archive service's record, and a clock.
pub struct World {
    pub image: ClipImage,
    pub jobs: Vec<JobView>,
    pub record: Option<Record>,
    pub now: Timestamp,
}

impl World {
    pub fn new() -> Self {
        let spec = ClipImageSpec {
            image: "alpine:3.20".into(),
            ..Default::default()
        };
        let mut image = ClipImage::new("alpine", spec);
        image.metadata.namespace = Some("team-a".into());
        image.metadata.uid = Some("u1".into());
        image.metadata.generation = Some(1);
        Self {
            image,
            jobs: Vec::new(),
            record: None,
            now: Timestamp::UNIX_EPOCH,
        }
    }

    pub fn rules() -> Rules {
        Rules {
            default_platform: "linux/amd64".into(),
            archive_service_url: "http://clip".into(),
        }
    }

    pub fn look(&mut self) -> Decision {
        let observed = Observed {
            jobs: self.jobs.clone(),
            record: self.record.clone(),
            now: self.now,
        };
        let decision = decide(&self.image, &observed, &Self::rules());
        for step in &decision.steps {
            match step {
                Step::CreateJob { attempt } => {
                    let state = JobState::Active {
                        blocked: None,
                        retrying: None,
                    };
                    self.jobs.push(JobView {
                        name: job_name(&self.image, *attempt),
                        state,
                    });
                }
                Step::DeleteJob(name) => self.jobs.retain(|job| job.name != *name),
                Step::WriteRecord(record) => self.record = Some((**record).clone()),
            }
        }
        self.image.status = Some(decision.status.clone());
        decision
    }

    pub fn later(&mut self, seconds: i64) -> Decision {
        self.now += k8s_openapi::jiff::SignedDuration::from_secs(seconds);
        self.look()
    }

    pub fn change(&mut self, change: impl FnOnce(&mut ClipImageSpec)) -> Decision {
        change(&mut self.image.spec);
        *self.image.metadata.generation.get_or_insert(0) += 1;
        self.look()
    }

    pub fn request(&mut self, value: &str) -> Decision {
        self.image
            .annotations_mut()
            .insert(REQUESTED_AT.into(), value.into());
        self.look()
    }

    pub fn job(&mut self) -> &mut JobView {
        self.jobs.last_mut().expect("a Job")
    }

    /// The newest Job uploads an archive.
    pub fn upload(&mut self) {
        self.record = Some(Record {
            uid: "u1".into(),
            image: "team-a/alpine".into(),
            digest: format!("sha256:{}", "ab".repeat(32)),
            size: 84_512,
            content_key: content_key(&self.image.spec, "linux/amd64"),
            requested_at: requested_at(&self.image),
            job: self.job().name.clone(),
            platform: "linux/amd64".into(),
            manifest_digest: format!("sha256:{}", "cd".repeat(32)),
            format_version: 3,
            files: 4228,
            layers: 3,
            compressed_bytes: 54_123_456,
            unpacked_bytes: 129_000_000,
            duration_ms: Some(2000),
            created: Time(self.now),
            publication: None,
        });
    }

    pub fn succeed(&mut self, published: Option<&str>) {
        let outcome = Outcome {
            published: published.map(Into::into),
            duration_ms: Some(1234),
        };
        self.job().state = JobState::Succeeded(Some(outcome));
    }

    pub fn fail(&mut self, reason: &str, permanent: bool) {
        let cause = Cause {
            reason: reason.into(),
            message: "It broke".into(),
            permanent,
        };
        self.job().state = JobState::Failed(cause);
    }

    pub fn ready_world() -> Self {
        let mut world = Self::new();
        world.look();
        world.upload();
        world.succeed(None);
        assert_eq!(world.look().look_again, LOOK_AGAIN, "nothing is left to do");
        world
    }
}
