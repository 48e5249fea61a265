//! What can go wrong while a ClipImage is reconciled: one variant a step.

/// A step failed. All are tried again.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// Events about a Job or pod that cannot start.
    #[error("cannot list the events of {object}: {source}")]
    ListEvents {
        /// The Job or pod.
        object: String,
        /// What the apiserver said.
        source: kube::Error,
    },
    /// Create the indexing Job.
    #[error("cannot create Job {job}: {source}")]
    CreateJob {
        /// Its name.
        job: String,
        /// What the apiserver said.
        source: kube::Error,
    },
    /// Delete a Job of an older spec.
    #[error("cannot delete Job {job}: {source}")]
    DeleteJob {
        /// Its name.
        job: String,
        /// What the apiserver said.
        source: kube::Error,
    },
    /// Write the record beside the archive.
    #[error("cannot write the archive's record: {0}")]
    WriteRecord(std::io::Error),
    /// Write the status.
    #[error("cannot write the status: {0}")]
    WriteStatus(kube::Error),
}
