//! The indexing Job: `clip index` in the ClipImage's own namespace, with that namespace's secrets and rights.
//!
//! Nothing of the operator's is in it but the address of the archive service. Registry credentials reach it
//! through the kubelet as volumes; the operator never sees them. Its token is good for the archive service only.

use std::collections::BTreeMap;

use clip_crds::{
    ARCHIVES_AUDIENCE, ClipImage,
    clip_image::{JobSpec, Resources, RuntimeDirs},
};
use k8s_openapi::{
    api::{
        batch::v1::{self as batch, Job},
        core::v1::{
            Capabilities, Container, DownwardAPIProjection, DownwardAPIVolumeFile,
            HostPathVolumeSource, KeyToPath, ObjectFieldSelector, PodSecurityContext, PodSpec,
            PodTemplateSpec, ProjectedVolumeSource, ResourceRequirements, SeccompProfile,
            SecretProjection, SecretVolumeSource, SecurityContext, ServiceAccountTokenProjection,
            Volume, VolumeMount, VolumeProjection,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity, apis::meta::v1::ObjectMeta, util::intstr::IntOrString,
    },
};
use kube::{Resource, ResourceExt};

use crate::{
    identity::{
        ANNOTATION_ATTEMPT, LABEL_IMAGE, LABEL_MANAGED_BY, MANAGER, job_name, max_span, platform,
        publish_repository,
    },
    jobs::{CONTAINER, EXIT_PERMANENT},
};

/// Where the token lies in the container.
const TOKEN_DIR: &str = "/var/run/secrets/clip";
/// Where the pull secrets lie.
const PULL_DIR: &str = "/var/run/secrets/clip-pull";
/// Where the push secret lies.
const PUSH_DIR: &str = "/var/run/secrets/clip-push";
/// The annotation of the pod in which certificates of registries travel; see [`crate::certificates`].
const ANNOTATION_CA: &str = "clip.dev/registry-ca";
/// Where they lie as a file.
const CA_DIR: &str = "/etc/clip/registries";
const CA_FILE: &str = "ca.pem";
/// The key of a Secret of type kubernetes.io/dockerconfigjson.
const DOCKER_CONFIG_KEY: &str = ".dockerconfigjson";
/// User and group of the container: `nonroot` of distroless images.
const NONROOT: i64 = 65532;
/// Seconds that the token is good for; the kubelet renews it at 80%, and `clip index` reads it when it uploads.
const TOKEN_SECONDS: i64 = 3600;

/// What every Job of this operator has in common.
#[derive(Debug, Clone)]
pub struct JobSettings {
    /// The container image that holds `clip`.
    pub image: String,
    /// Base URL under which Jobs and nodes reach the archive service.
    pub archive_service_url: String,
    /// The platform of images whose spec names none.
    pub default_platform: String,
    /// Registries that speak plain HTTP.
    pub plain_http: Vec<String>,
    /// Certificates of registries' own authorities, as PEM.
    pub ca_certificates: Option<String>,
    /// Folder on the nodes with containerd's registry host configuration.
    pub hosts_dir: Option<String>,
}

/// The Job for the `attempt`-th run of this spec.
pub fn indexing_job(image: &ClipImage, attempt: i32, settings: &JobSettings) -> Job {
    let spec = image
        .spec
        .index
        .as_ref()
        .and_then(|index| index.job.clone())
        .unwrap_or_default();
    let labels = BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), "clip-index".to_owned()),
        (LABEL_MANAGED_BY.to_owned(), MANAGER.to_owned()),
        (LABEL_IMAGE.to_owned(), image.name_any()),
    ]);
    Job {
        metadata: ObjectMeta {
            name: Some(job_name(image, attempt)),
            namespace: image.namespace(),
            labels: Some(labels.clone()),
            annotations: Some(BTreeMap::from([(
                ANNOTATION_ATTEMPT.to_owned(),
                attempt.to_string(),
            )])),
            owner_references: image.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..Default::default()
        },
        spec: Some(batch::JobSpec {
            active_deadline_seconds: Some(spec.active_deadline_seconds),
            backoff_limit: Some(spec.backoff_limit),
            ttl_seconds_after_finished: Some(spec.ttl_seconds_after_finished),
            pod_failure_policy: Some(pod_failure_policy()),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels),
                    annotations: pod_annotations(settings),
                    ..Default::default()
                }),
                spec: Some(pod(image, &spec, settings)),
            },
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Exit code 42: repeating is pointless. A pod that was evicted or preempted does not count as an attempt.
fn pod_failure_policy() -> batch::PodFailurePolicy {
    let permanent = batch::PodFailurePolicyRule {
        action: "FailJob".into(),
        on_exit_codes: Some(batch::PodFailurePolicyOnExitCodesRequirement {
            container_name: Some(CONTAINER.into()),
            operator: "In".into(),
            values: vec![EXIT_PERMANENT],
        }),
        on_pod_conditions: None,
    };
    let disrupted = batch::PodFailurePolicyRule {
        action: "Ignore".into(),
        on_exit_codes: None,
        on_pod_conditions: Some(vec![batch::PodFailurePolicyOnPodConditionsPattern {
            type_: "DisruptionTarget".into(),
            status: Some("True".into()),
        }]),
    };
    batch::PodFailurePolicy {
        rules: vec![permanent, disrupted],
    }
}

fn pod(image: &ClipImage, spec: &JobSpec, settings: &JobSettings) -> PodSpec {
    let volumes = volumes(image, settings);
    let mounts = volumes.iter().map(|(volume, dir)| VolumeMount {
        name: volume.name.clone(),
        mount_path: (*dir).to_owned(),
        read_only: Some(true),
        ..Default::default()
    });
    let container = Container {
        name: CONTAINER.into(),
        image: Some(settings.image.clone()),
        command: Some(vec!["clip".into()]),
        args: Some(args(image, settings)),
        volume_mounts: Some(mounts.collect()),
        resources: Some(resources(spec.resources.as_ref())),
        // What clip could not say itself (a panic, a missing binary) is the end of its log.
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".into()]),
                add: None,
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    PodSpec {
        restart_policy: Some("Never".into()),
        service_account_name: image.spec.service_account_name.clone(),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        priority_class_name: spec.priority_class_name.clone(),
        node_selector: Some(spec.node_selector.clone()).filter(|selector| !selector.is_empty()),
        tolerations: Some(spec.tolerations.clone()).filter(|tolerations| !tolerations.is_empty()),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(NONROOT),
            run_as_group: Some(NONROOT),
            fs_group: Some(NONROOT),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".into(),
                localhost_profile: None,
            }),
            ..Default::default()
        }),
        containers: vec![container],
        volumes: Some(volumes.into_iter().map(|(volume, _)| volume).collect()),
        ..Default::default()
    }
}

/// `clip index IMAGE ...`
fn args(image: &ClipImage, settings: &JobSettings) -> Vec<String> {
    let spec = &image.spec;
    let mut args: Vec<String> = vec!["index".into(), spec.image.clone()];
    let mut flag = |name: &str, value: String| args.extend([name.to_owned(), value]);

    flag("--upload", upload_url(image, &settings.archive_service_url));
    flag("--token-file", format!("{TOKEN_DIR}/token"));
    flag(
        "--platform",
        platform(spec, &settings.default_platform).to_owned(),
    );
    let runtime_dirs = match spec.runtime_dirs {
        RuntimeDirs::Omit => "omit",
        RuntimeDirs::Empty => "empty",
    };
    flag("--runtime-dirs", runtime_dirs.to_owned());
    if let Some(bytes) = max_span(spec) {
        flag("--max-span", bytes.to_string());
    }
    for secret in &spec.pull_secrets {
        flag(
            "--docker-config",
            format!("{PULL_DIR}/{}.json", secret.name),
        );
    }
    if let Some(repository) = publish_repository(spec) {
        let reuses = spec
            .publish
            .registry
            .as_ref()
            .is_some_and(|there| there.reuse);
        if reuses {
            flag("--reuse-from", repository.clone());
        }
        flag("--publish", repository);
        if push_secret(image).is_some() {
            flag("--push-docker-config", format!("{PUSH_DIR}/config.json"));
        }
    }
    if settings.ca_certificates.is_some() {
        flag("--ca-cert", format!("{CA_DIR}/{CA_FILE}"));
    }
    if let Some(dir) = &settings.hosts_dir {
        flag("--hosts-dir", dir.clone());
    }
    flag("--log-format", "json".into());
    flag("--termination-log", "/dev/termination-log".into());
    args.push("--reuse-uploaded".into());
    args.extend(
        settings
            .plain_http
            .iter()
            .map(|host| format!("--plain-http={host}")),
    );
    args
}

/// The uid keeps a ClipImage that was deleted and made anew from getting its predecessor's archive.
fn upload_url(image: &ClipImage, base: &str) -> String {
    format!(
        "{base}/v1/namespaces/{}/clipimages/{}/archive?uid={}",
        image.namespace().unwrap_or_default(),
        image.name_any(),
        image.uid().unwrap_or_default()
    )
}

fn push_secret(image: &ClipImage) -> Option<&str> {
    publish_repository(&image.spec)?;
    Some(
        &image
            .spec
            .publish
            .registry
            .as_ref()?
            .push_secret
            .as_ref()?
            .name,
    )
}

/// The Job's volumes and where they are mounted.
fn volumes<'a>(image: &ClipImage, settings: &'a JobSettings) -> Vec<(Volume, &'a str)> {
    let mut volumes = vec![(projected("token", vec![token()]), TOKEN_DIR)];
    if settings.ca_certificates.is_some() {
        volumes.push((projected("registry-ca", vec![ca_certificates()]), CA_DIR));
    }
    if let Some(dir) = &settings.hosts_dir {
        // At the same path as on the node, for the files in it may name each other by it.
        volumes.push((host_folder("hosts", dir), dir));
    }
    if !image.spec.pull_secrets.is_empty() {
        let secrets = image.spec.pull_secrets.iter();
        let sources =
            secrets.map(|secret| docker_config(&secret.name, format!("{}.json", secret.name)));
        volumes.push((projected("pull-secrets", sources.collect()), PULL_DIR));
    }
    if let Some(secret) = push_secret(image) {
        let source = SecretVolumeSource {
            secret_name: Some(secret.to_owned()),
            items: Some(vec![key("config.json".into())]),
            ..Default::default()
        };
        let volume = Volume {
            name: "push-secret".into(),
            secret: Some(source),
            ..Default::default()
        };
        volumes.push((volume, PUSH_DIR));
    }
    volumes
}

fn host_folder(name: &str, path: &str) -> Volume {
    Volume {
        name: name.into(),
        host_path: Some(HostPathVolumeSource {
            path: path.into(),
            type_: Some("Directory".into()),
        }),
        ..Default::default()
    }
}

fn projected(name: &str, sources: Vec<VolumeProjection>) -> Volume {
    Volume {
        name: name.into(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(sources),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn token() -> VolumeProjection {
    VolumeProjection {
        service_account_token: Some(ServiceAccountTokenProjection {
            audience: Some(ARCHIVES_AUDIENCE.into()),
            expiration_seconds: Some(TOKEN_SECONDS),
            path: "token".into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn pod_annotations(settings: &JobSettings) -> Option<BTreeMap<String, String>> {
    let certificates = settings.ca_certificates.clone()?;
    Some([(ANNOTATION_CA.to_owned(), certificates)].into())
}

/// The pod's annotation as a file.
fn ca_certificates() -> VolumeProjection {
    let file = DownwardAPIVolumeFile {
        path: CA_FILE.into(),
        field_ref: Some(ObjectFieldSelector {
            field_path: format!("metadata.annotations['{ANNOTATION_CA}']"),
            ..Default::default()
        }),
        ..Default::default()
    };
    VolumeProjection {
        downward_api: Some(DownwardAPIProjection {
            items: Some(vec![file]),
        }),
        ..Default::default()
    }
}

fn docker_config(secret: &str, path: String) -> VolumeProjection {
    VolumeProjection {
        secret: Some(SecretProjection {
            name: secret.to_owned(),
            items: Some(vec![key(path)]),
            optional: None,
        }),
        ..Default::default()
    }
}

fn key(path: String) -> KeyToPath {
    KeyToPath {
        key: DOCKER_CONFIG_KEY.into(),
        path,
        ..Default::default()
    }
}

/// Indexing needs < 100 MB whatever the image's size (docs/design); five times that leaves room for wide layers.
fn resources(asked: Option<&Resources>) -> ResourceRequirements {
    let quantities = |map: &BTreeMap<String, IntOrString>| -> BTreeMap<String, Quantity> {
        let text = |value: &IntOrString| match value {
            IntOrString::Int(number) => number.to_string(),
            IntOrString::String(text) => text.clone(),
        };
        map.iter()
            .map(|(name, value)| (name.clone(), Quantity(text(value))))
            .collect()
    };
    let or_default = |asked: Option<BTreeMap<String, Quantity>>, default: &[(&str, &str)]| {
        let default = default
            .iter()
            .map(|(name, value)| (name.to_string(), Quantity(value.to_string())));
        asked
            .filter(|map| !map.is_empty())
            .unwrap_or_else(|| default.collect())
    };
    ResourceRequirements {
        requests: Some(or_default(
            asked.map(|resources| quantities(&resources.requests)),
            &[("cpu", "100m"), ("memory", "64Mi")],
        )),
        limits: Some(or_default(
            asked.map(|resources| quantities(&resources.limits)),
            &[("memory", "512Mi")],
        )),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clip_crds::{
        ClipImageSpec,
        clip_image::{IndexSpec, PublishSpec, PublishType, RegistrySpec, SecretName},
    };
    use expect_test::expect_file;

    fn image(spec: ClipImageSpec) -> ClipImage {
        let mut image = ClipImage::new("alpine", spec);
        image.metadata.namespace = Some("team-a".into());
        image.metadata.uid = Some("00000000-0000-0000-0000-000000000001".into());
        image
    }

    fn settings() -> JobSettings {
        JobSettings {
            image: "example.com/clip:1".into(),
            archive_service_url: "http://clip-operator.clip-system.svc:8080".into(),
            default_platform: "linux/amd64".into(),
            plain_http: vec!["10.99.0.1:5000".into()],
            ca_certificates: None,
            hosts_dir: None,
        }
    }

    fn yaml(job: &Job) -> String {
        serde_yaml::to_string(job).expect("a Job is plain data")
    }

    #[test]
    fn the_job_of_a_plain_image() {
        let image = image(ClipImageSpec {
            image: "alpine:3.20".into(),
            ..Default::default()
        });
        expect_file!["job/plain.yaml"].assert_eq(&yaml(&indexing_job(&image, 1, &settings())));
    }

    #[test]
    fn the_job_of_an_image_with_everything() {
        let name = |name: &str| SecretName { name: name.into() };
        let image = image(ClipImageSpec {
            image: "registry.example/team/app:1".into(),
            platforms: vec!["linux/arm64".into()],
            pull_secrets: vec![name("regcred"), name("mirror")],
            service_account_name: Some("indexer".into()),
            runtime_dirs: RuntimeDirs::Empty,
            index: Some(IndexSpec {
                max_span: Some("1Mi".into()),
                job: Some(JobSpec {
                    active_deadline_seconds: 600,
                    backoff_limit: 1,
                    ttl_seconds_after_finished: 60,
                    priority_class_name: Some("low".into()),
                    node_selector: [("disk".into(), "ssd".into())].into(),
                    tolerations: vec![Default::default()],
                    resources: Some(Resources {
                        limits: [("memory".into(), IntOrString::String("1Gi".into()))].into(),
                        requests: [("cpu".into(), IntOrString::Int(2))].into(),
                    }),
                }),
            }),
            publish: PublishSpec {
                kind: PublishType::Registry,
                registry: Some(RegistrySpec {
                    repository: None,
                    push_secret: Some(name("pusher")),
                    reuse: true,
                }),
            },
            ..Default::default()
        });
        let settings = JobSettings {
            ca_certificates: Some(
                "-----BEGIN CERTIFICATE-----\nb25l\n-----END CERTIFICATE-----\n".into(),
            ),
            hosts_dir: Some("/etc/containerd/certs.d".into()),
            ..settings()
        };
        expect_file!["job/full.yaml"].assert_eq(&yaml(&indexing_job(&image, 2, &settings)));
    }
}
