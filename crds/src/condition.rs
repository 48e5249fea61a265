//! The conditions of a `ClipImage`: their types, and the reasons that are part of the API.
//!
//! They follow kstatus: `Ready` sums up, `Stalled=True` means that waiting will not help, and every
//! condition carries the generation it speaks of.

/// Sum of the others: the archive of the current spec may be mounted.
pub const READY: &str = "Ready";
/// The image's tag was resolved to a manifest digest.
pub const RESOLVED: &str = "Resolved";
/// An archive of the current spec exists and was verified on arrival.
pub const INDEXED: &str = "Indexed";
/// The archive is where `spec.publish` wants it.
pub const PUBLISHED: &str = "Published";
/// Present only while waiting cannot help: somebody has to change something.
pub const STALLED: &str = "Stalled";

/// Reasons that other programs may rely on. A failed Job adds the reasons of `clip index`
/// (`ImageNotFound`, `Unauthorized`, ...).
pub mod reason {
    /// The archive can be mounted from where `spec.publish` wants it.
    pub const PUBLISHED: &str = "Published";
    /// The tag is known to mean one manifest digest.
    pub const RESOLVED: &str = "Resolved";
    /// The archive was uploaded and verified.
    pub const INDEXED: &str = "Indexed";
    /// The indexing Job is to be started, waits for a node, or runs.
    pub const INDEXING: &str = "Indexing";
    /// The archive is in the cluster; the push to the registry is not finished.
    pub const PUBLISHING: &str = "Publishing";
    /// `spec.suspend` is true.
    pub const SUSPENDED: &str = "Suspended";
    /// The archive was there and is gone (an `emptyDir` was emptied); it is made again by itself.
    pub const ARCHIVE_LOST: &str = "ArchiveLost";
    /// The push to `spec.publish.registry` failed.
    pub const PUBLISH_FAILED: &str = "PublishFailed";
    /// The Job's pod cannot start (image, secret, scheduling); the message quotes the kubelet or the scheduler.
    pub const JOB_PENDING: &str = "JobPending";
    /// The Job failed without saying why.
    pub const JOB_FAILED: &str = "JobFailed";
    /// The Job ran longer than `spec.index.job.activeDeadlineSeconds`.
    pub const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
    /// The kernel ended the Job for using more than its memory limit.
    pub const OUT_OF_MEMORY: &str = "OutOfMemory";
}
