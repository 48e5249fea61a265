//! `ClipImage`: "keep an index of this image, so that pods can mount it before it is pulled".
//!
//! The doc comments here are what `kubectl explain clipimage.spec` prints. A field is here only when
//! something reads it.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::Toleration,
    apimachinery::pkg::{
        apis::meta::v1::{Condition, Time},
        util::intstr::IntOrString,
    },
};
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::Prefetch;

/// What the user asks for.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "clip.dev",
    version = "v1alpha1",
    kind = "ClipImage",
    doc = "A container image whose files pods can read before it is pulled. Clip indexes it once into a small archive; pods mount it with a CSI volume (driver csi.clip.dev, volumeAttributes: {clipImage: NAME}).",
    namespaced,
    status = "ClipImageStatus",
    derive = "PartialEq",
    shortname = "cimg",
    category = "clip",
    selectable = ".status.source.digest",
    validation = Rule::new("self.metadata.name.size() <= 63").message("name must be at most 63 characters (it becomes a label value)"),
    printcolumn(name = "Image", type_ = "string", json_path = ".spec.image"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Files", type_ = "integer", json_path = ".status.summary.files"),
    printcolumn(name = "Size", type_ = "string", json_path = ".status.summary.imageSize", description = "Compressed layers, as the registry stores them"),
    printcolumn(name = "Archive", type_ = "string", json_path = ".status.summary.archiveSize", description = "The archive that nodes fetch before they mount"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.source.digest", priority = 1),
    printcolumn(name = "Took", type_ = "string", json_path = ".status.summary.indexDuration", priority = 1, description = "Time that indexing took"),
)]
#[x_kube(
    validation = Rule::new("!has(oldSelf.immutable) || !oldSelf.immutable || (self.image == oldSelf.image && has(self.immutable) && self.immutable)")
        .message("image and immutable cannot change once immutable is true"),
    validation = Rule::new("!has(self.immutable) || !self.immutable || self.image.contains('@')")
        .message("immutable needs an image pinned by digest"),
)]
#[serde(rename_all = "camelCase")]
pub struct ClipImageSpec {
    /// The image, as Docker and the kubelet read it: short names and a missing tag are normalised (alpine is
    /// docker.io/library/alpine:latest). A tag is resolved once, when the image is indexed; to follow a tag
    /// that moved, change the annotation clip.dev/requestedAt.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(
        validation = Rule::new("self.matches('^([a-zA-Z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[a-f0-9]{64})?$')")
            .message("must be an image reference: [host[:port]/]repository[:tag][@sha256:digest], the repository in lower case"),
    )]
    pub image: String,

    /// Never let the image change. Needs an image pinned by digest, and cannot be taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub immutable: Option<bool>,

    /// The platform to index when the image has several, such as linux/arm64. Default: linux on the operator's
    /// own architecture. One platform for now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "platforms_schema")]
    pub platforms: Vec<String>,

    /// Start no Job. What is indexed already stays mountable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,

    /// Secrets of type kubernetes.io/dockerconfigjson in this namespace with which the image may be pulled. They
    /// are mounted into the indexing Job; the operator itself cannot read them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub pull_secrets: Vec<SecretName>,

    /// The service account under which the indexing Job runs. Default: the namespace's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,

    /// How the image is indexed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<IndexSpec>,

    /// What becomes of /proc, /sys and /dev of the image. Omit leaves them out (a container runtime mounts its
    /// own over them); Empty gives three empty directories, which a read-only root needs as mount points.
    #[serde(default)]
    pub runtime_dirs: RuntimeDirs,

    /// What nodes fetch of the image before a container reads it. Profile: what earlier starts read first, as nodes
    /// recorded it. All: that, and then everything else while no reader waits, after which the registry may be gone.
    /// None: nothing. A pod's volume attribute prefetch takes its place.
    #[serde(default)]
    pub prefetch: Prefetch,

    /// Have nodes fetch the whole image although no pod uses it yet, while no reader waits: afterwards a first pod starts
    /// as fast as a second one, and the registry may be gone. Each node tells by an event when it is done, or why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<WarmUpSpec>,

    /// Where the archive is kept.
    #[serde(default)]
    pub publish: PublishSpec,
}

/// On which nodes the whole image is fetched.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WarmUpSpec {
    /// Labels of these nodes. Default: every node that runs the node plugin.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub node_selector: BTreeMap<String, String>,
}

/// The name of a Secret in the ClipImage's namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
pub struct SecretName {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// How the image is indexed.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct IndexSpec {
    /// The largest piece of a layer, uncompressed, that a node has to fetch and decode to read one byte of it,
    /// such as 1Mi: smaller pieces make random reads cheaper and the archive larger. Default: the indexer's own
    /// choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(
        validation = Rule::new("isQuantity(self) && quantity(self).compareTo(quantity('64Ki')) >= 0 && quantity(self).compareTo(quantity('256Mi')) <= 0")
            .message("maxSpan must be a quantity between 64Ki and 256Mi"),
    )]
    pub max_span: Option<String>,

    /// The Job that does it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobSpec>,
}

/// The indexing Job: how long, how often, where and with how much.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct JobSpec {
    /// Seconds after which an unfinished Job is given up. Default 3600.
    #[serde(default = "defaults::active_deadline_seconds")]
    #[schemars(range(min = 30, max = 86400))]
    pub active_deadline_seconds: i64,

    /// How often a failed attempt is repeated. Mistakes that repeating cannot mend (no such image, credentials
    /// refused) are not repeated. Default 4.
    #[serde(default = "defaults::backoff_limit")]
    #[schemars(range(min = 0, max = 20))]
    pub backoff_limit: i32,

    /// Seconds for which a finished Job and its log are kept. Default 600.
    #[serde(default = "defaults::ttl_seconds_after_finished")]
    #[schemars(range(min = 0, max = 604800))]
    pub ttl_seconds_after_finished: i32,

    /// Priority of the Job's pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,

    /// Labels of the nodes on which the Job may run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,

    /// Taints that the Job's pod tolerates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub tolerations: Vec<Toleration>,

    /// What the Job's container requests and may use at most. Default: requests 100m CPU and 64Mi memory, and at
    /// most 512Mi memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

/// Requests and limits, as in a container.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
pub struct Resources {
    /// The most that the container may use, such as {memory: 1Gi}.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities_schema")]
    pub limits: BTreeMap<String, IntOrString>,

    /// What the container is sure to get, such as {cpu: 100m}.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities_schema")]
    pub requests: BTreeMap<String, IntOrString>,
}

impl Default for JobSpec {
    fn default() -> Self {
        Self {
            active_deadline_seconds: defaults::active_deadline_seconds(),
            backoff_limit: defaults::backoff_limit(),
            ttl_seconds_after_finished: defaults::ttl_seconds_after_finished(),
            priority_class_name: None,
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            resources: None,
        }
    }
}

/// Numbers that the API promises.
mod defaults {
    /// An hour: a 15 GB image at 10 MB/s takes half of it.
    pub fn active_deadline_seconds() -> i64 {
        3600
    }
    /// The Job controller waits 10, 20, 40 and 80 s between attempts: a registry's restart fits in.
    pub fn backoff_limit() -> i32 {
        4
    }
    /// Ten minutes: long enough to read the log of a failure that one has just been told of.
    pub fn ttl_seconds_after_finished() -> i32 {
        600
    }
}

/// What becomes of /proc, /sys and /dev.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RuntimeDirs {
    /// Left out.
    #[default]
    Omit,
    /// Three empty directories.
    Empty,
}

/// Where the archive is kept.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(
    validation = Rule::new("(self.type == 'Registry') == has(self.registry)")
        .message("registry must be set exactly when type is Registry"),
)]
pub struct PublishSpec {
    /// Cluster: in the operator's archive service. Registry: there, and pushed to a registry beside it.
    #[serde(default, rename = "type")]
    pub kind: PublishType,

    /// Where to push the archive, with type Registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<RegistrySpec>,
}

/// Where the archive is kept.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PublishType {
    /// In the operator's archive service.
    #[default]
    Cluster,
    /// In the archive service, and in a registry as an OCI artifact.
    Registry,
}

/// Where to push the archive as an OCI artifact that refers to the image.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RegistrySpec {
    /// host[:port]/repository. Default: the image's own repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub repository: Option<String>,

    /// Secret of type kubernetes.io/dockerconfigjson in this namespace with which the archive may be pushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push_secret: Option<SecretName>,

    /// Download no layer that an archive in this repository describes already, of whatever image. Whoever may push to
    /// the repository is believed then about what is in these layers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reuse: bool,
}

/// What Clip knows about the image.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ClipImageStatus {
    /// Ready sums up. Resolved, Indexed and Published are the steps towards it. Stalled is there only while
    /// waiting cannot help; its message says what to change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,

    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// The value of the annotation clip.dev/requestedAt that was last acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_handled_requested_at: Option<String>,

    /// What spec.image was resolved to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,

    /// Numbers for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,

    /// The archives of the current spec.image that may be mounted, one per platform. They stay while the image is
    /// indexed again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["platform".into(), "manifestDigest".into()]))]
    pub artifacts: Vec<Artifact>,

    /// The indexing Job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobStatus>,
}

/// What spec.image was resolved to.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// Digest of the image manifest of the platform.
    pub digest: String,
    /// The reference in full, such as docker.io/library/alpine:latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// When it was resolved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved_time: Option<Time>,
}

/// Numbers for people.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Files, directories, links and devices of the image.
    pub files: i64,
    /// Layers of the image.
    pub layers: i32,
    /// Size of the compressed layers, such as 54.1 MB.
    pub image_size: String,
    /// Size of the layers when unpacked.
    pub unpacked_size: String,
    /// Size of the archive.
    pub archive_size: String,
    /// imageSize / archiveSize, such as 640x.
    pub ratio: String,
    /// How long indexing took, such as 1.2s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_duration: Option<String>,
}

/// One archive.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Artifact {
    /// The platform that it was made for.
    pub platform: String,
    /// Digest of the image manifest that it describes.
    pub manifest_digest: String,
    /// Digest of the archive file.
    pub digest: String,
    /// Bytes of the archive file.
    pub size: i64,
    /// Version of the archive format.
    pub format_version: i32,
    /// Where it can be fetched: URLs of the archive service, and REPOSITORY@DIGEST in a registry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub locations: Vec<String>,
    /// Files, directories, links and devices of the image.
    pub files: i64,
    /// Layers of the image.
    pub layers: i32,
    /// Bytes of the compressed layers.
    pub compressed_bytes: i64,
    /// Bytes of the layers when unpacked.
    pub unpacked_bytes: i64,
    /// When it was uploaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_time: Option<Time>,
}

/// The indexing Job.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct JobStatus {
    /// Name of the newest Job. It is kept for spec.index.job.ttlSecondsAfterFinished.
    pub name: String,
    /// How often a Job was started for the same spec, beginning with 1.
    pub attempt: i32,
    /// Jobs that failed for the current spec, one after another.
    #[serde(default)]
    pub failures: i32,
    /// Whether the newest Job is Active, Succeeded or Failed.
    #[serde(default)]
    pub phase: JobPhase,
    /// Why the newest failed Job failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<Failure>,
}

/// Where a Job is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum JobPhase {
    /// To be created, pending or running.
    #[default]
    Active,
    /// Done.
    Succeeded,
    /// Given up.
    Failed,
}

/// Why a Job failed.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// One word for programs, such as ImageNotFound.
    pub reason: String,
    /// One sentence for people.
    pub message: String,
    /// Whether waiting cannot help.
    pub permanent: bool,
    /// When it failed.
    pub time: Time,
}

/// At most one platform of those that container runtimes know for Linux.
fn platforms_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 1,
        "x-kubernetes-list-type": "set",
        "items": {
            "type": "string",
            "maxLength": 32,
            "pattern": "^linux/(amd64|arm64|arm|ppc64le|s390x|riscv64)(/v[0-9]+)?$",
        },
    })
}

/// Quantities by resource name: numbers are as good as strings, as in a container.
fn quantities_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "additionalProperties": { "x-kubernetes-int-or-string": true },
    })
}
