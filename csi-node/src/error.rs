//! Which gRPC status each error becomes. Kubelet acts on the code: `UNAVAILABLE` and `ABORTED` mean that work goes on
//! and the volume's state is unknown; any other code means that nothing was left behind.
//!
//! The message is what the pod's event shows (`FailedMount`), so it says what to do. `details` stay empty, as CSI asks.

use tonic::{Code, Status};

use crate::archive_sources::FetchError;
use crate::mounts::AttachError;
use crate::publish::{PublishError, UnpublishError};
use crate::request::RequestError;
use crate::resolve::ResolveError;
use crate::serve_process::ServeError;
use crate::syscalls::MountError;
use crate::wire::Reason;

impl From<RequestError> for Status {
    fn from(error: RequestError) -> Status {
        Status::new(Code::InvalidArgument, error.to_string())
    }
}

impl From<PublishError> for Status {
    fn from(error: PublishError) -> Status {
        let code = match &error {
            PublishError::Request(_) => Code::InvalidArgument,
            PublishError::Busy(_) => Code::Aborted,
            PublishError::Different(_) => Code::AlreadyExists,
            PublishError::Resolve(error) => resolve_code(error),
            PublishError::Fetch(error) => fetch_code(error),
            PublishError::Attach(AttachError::Serve(error)) => serve_code(error),
            PublishError::Attach(AttachError::Mount(error)) | PublishError::Mount(error) => {
                mount_code(error)
            }
            PublishError::Task(_) => Code::Internal,
        };
        Status::new(code, error.to_string())
    }
}

impl From<UnpublishError> for Status {
    fn from(error: UnpublishError) -> Status {
        let code = match &error {
            UnpublishError::Request(_) => Code::InvalidArgument,
            UnpublishError::Busy(_) => Code::Aborted,
            UnpublishError::Mount(error) => mount_code(error),
            UnpublishError::Task(_) => Code::Internal,
        };
        Status::new(code, error.to_string())
    }
}

fn resolve_code(error: &ResolveError) -> Code {
    match error {
        ResolveError::NotFound { .. } => Code::NotFound,
        ResolveError::Reference(_) => Code::InvalidArgument,
        ResolveError::Stalled { reason, .. } => reason_code(reason),
        ResolveError::Platform { .. } | ResolveError::Broken { .. } => Code::FailedPrecondition,
        ResolveError::Kubernetes { .. } | ResolveError::NotReady(_) => Code::Unavailable,
    }
}

/// The reasons of the registry client, as they stand in a `ClipImage`'s condition or in an error of ours.
fn reason_code(reason: &str) -> Code {
    match reason {
        "ImageNotFound" | "BlobNotFound" | "PlatformNotFound" => Code::NotFound,
        "Unauthorized" => Code::Unauthenticated,
        "Forbidden" => Code::PermissionDenied,
        "RegistryUnreachable" | "RateLimited" => Code::Unavailable,
        _ => Code::FailedPrecondition,
    }
}

fn fetch_code(error: &FetchError) -> Code {
    match error {
        FetchError::NoPlace(_) | FetchError::NotAnArchive { .. } | FetchError::TooLarge => {
            Code::FailedPrecondition
        }
        // A lost archive is made again, a token rotated, a broken transfer repeated: all pass without the user.
        FetchError::Token { .. }
        | FetchError::Unreachable { .. }
        | FetchError::Refused { .. }
        | FetchError::Digest { .. } => Code::Unavailable,
        FetchError::Registry { reason, .. } => reason_code(reason),
        FetchError::Disk(error) if is_full(error) => Code::ResourceExhausted,
        FetchError::Disk(_) => Code::Internal,
    }
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
    )
}

fn serve_code(error: &ServeError) -> Code {
    match error {
        ServeError::Refused(refusal) => match refusal.reason {
            Reason::ArchiveInvalid => Code::FailedPrecondition,
            Reason::CredentialsInvalid => Code::InvalidArgument,
            Reason::NoSpace => Code::ResourceExhausted,
            Reason::NotServed | Reason::CannotResume | Reason::Internal => Code::Internal,
        },
        ServeError::Down | ServeError::Silent => Code::Unavailable,
        ServeError::Send(_) | ServeError::Mistaken => Code::Internal,
    }
}

fn mount_code(error: &MountError) -> Code {
    match error {
        MountError::NoSuchFolder { .. } => Code::InvalidArgument,
        MountError::Unanswered { .. } | MountError::TooSlow { .. } => Code::Unavailable,
        MountError::Foreign { .. } | MountError::DevFuse(_) => Code::FailedPrecondition,
        MountError::Mount { .. }
        | MountError::Folder { .. }
        | MountError::Bind { .. }
        | MountError::Detach { .. }
        | MountError::Kernel { .. }
        | MountError::Table(_) => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::wire::Refusal;

    fn stalled(reason: &str) -> PublishError {
        ResolveError::Stalled {
            what: "ClipImage a/b".into(),
            reason: reason.into(),
            message: "m".into(),
        }
        .into()
    }

    fn refused(reason: Reason) -> PublishError {
        AttachError::Serve(
            Refusal {
                reason,
                message: "m".into(),
            }
            .into(),
        )
        .into()
    }

    fn disk(kind: std::io::ErrorKind) -> PublishError {
        PublishError::Fetch(Arc::new(FetchError::Disk(kind.into())))
    }

    #[test]
    fn each_failure_of_a_publish_has_the_code_that_kubelet_needs() {
        let mount = |error: MountError| PublishError::from(AttachError::from(error));
        let cases = [
            (
                RequestError::Missing("volume_id").into(),
                Code::InvalidArgument,
            ),
            (PublishError::Different("/t".into()), Code::AlreadyExists),
            (
                ResolveError::NotFound {
                    what: "x".into(),
                    hint: "".into(),
                }
                .into(),
                Code::NotFound,
            ),
            (
                ResolveError::NotReady("being indexed".into()).into(),
                Code::Unavailable,
            ),
            (stalled("ImageNotFound"), Code::NotFound),
            (stalled("Unauthorized"), Code::Unauthenticated),
            (stalled("Forbidden"), Code::PermissionDenied),
            (stalled("UnsupportedMediaType"), Code::FailedPrecondition),
            (refused(Reason::ArchiveInvalid), Code::FailedPrecondition),
            (refused(Reason::NoSpace), Code::ResourceExhausted),
            (
                AttachError::Serve(ServeError::Down).into(),
                Code::Unavailable,
            ),
            (
                disk(std::io::ErrorKind::StorageFull),
                Code::ResourceExhausted,
            ),
            (disk(std::io::ErrorKind::PermissionDenied), Code::Internal),
            (
                mount(MountError::TooSlow {
                    what: "binding",
                    limit: Duration::from_secs(1),
                }),
                Code::Unavailable,
            ),
            (
                mount(MountError::NoSuchFolder {
                    path: "usr/nope".into(),
                    source: std::io::ErrorKind::NotFound.into(),
                }),
                Code::InvalidArgument,
            ),
        ];
        for (error, code) in cases {
            let message = error.to_string();
            let status = Status::from(error);
            assert_eq!(status.code(), code, "{message}");
            assert!(!status.message().is_empty() && status.details().is_empty());
        }
    }
}
