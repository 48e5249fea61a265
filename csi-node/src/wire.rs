//! What control (`clip-csi-node`) and data (`clip-serve`) say to each other.
//!
//! A pair of SOCK_SEQPACKET sockets, of which `clip-serve` has one as its standard input. Each datagram is one JSON
//! document. Control asks, the server answers under the same number, in any order:
//! ```text
//! {"id":1,"serve":{"archive":"/var/lib/clip/archives/ab….clip","archiveDigest":"sha256:ab…","login":"toCome"}}
//!         + the descriptor of an archive's mount (SCM_RIGHTS)
//! {"id":1,"serving":{"files":524,"bytes":7600000,"layers":2,"tree":"/var/lib/clip/trees/cd….erofs","treeId":"ef…"}}
//! {"id":2,"renewCredentials":{"archiveDigest":"sha256:ab…","dockerConfigJson":"{\"auths\":…}"}}
//! {"id":2,"error":{"reason":"credentialsInvalid","message":"…"}}
//! {"id":3,"warmUp":{"archive":"/var/lib/clip/archives/ab….clip","archiveDigest":"sha256:ab…","login":"anonymous"}}
//! {"id":3,"ok":{}}
//! {"id":4,"warmth":{"archiveDigest":"sha256:ab…"}}
//! {"id":4,"warmth":{"warm":{"fetchedBytes":54100000}}}
//! {"id":5,"report":{}}
//! {"id":5,"report":{"cache":{"hits":812,"misses":34,"bytesOnDisk":71303168,…},"failedReads":[…]}}
//! ```
//! Secrets are on this socket and in the memory of both processes, nowhere else: not in files, not in logs.
//!
//! Each side notices the other's death by the end of its socket.

use std::fmt;
use std::path::PathBuf;

use clip_crds::Prefetch;
use clip_registry::Digest;
use serde::{Deserialize, Serialize};

/// A question of control's.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by control; the answer carries it too.
    pub id: u64,
    /// What is wanted.
    #[serde(flatten)]
    pub command: Command,
}

/// What control may want.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Command {
    /// Serve an archive over the FUSE descriptor that comes with this datagram. Answered when the tree can be read, with
    /// [`Outcome::Serving`].
    #[serde(rename_all = "camelCase")]
    Serve {
        /// The archive's file.
        archive: PathBuf,
        /// Its digest, the name by which later questions mean it.
        archive_digest: Digest,
        /// Credentials for the image's registry.
        login: Login,
        /// For a connection whose server is gone: the [`Serving::tree_id`] that it was begun with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resume: Option<String>,
    },
    /// Fetch this much of a served archive before it is read.
    #[serde(rename_all = "camelCase")]
    Prefetch {
        /// Which archive.
        archive_digest: Digest,
        /// What.
        prefetch: Prefetch,
    },
    /// Read a served archive with these credentials from now on; what is mounted stays as it is.
    #[serde(rename_all = "camelCase")]
    RenewCredentials {
        /// Which archive.
        archive_digest: Digest,
        /// Docker configuration with credentials for the image's registry.
        docker_config_json: Secret,
    },
    /// Have all of an archive's image in the cache, although nobody reads it, and count it as used from then on. Answered
    /// when the archive is open; [`Command::Warmth`] tells how it goes on. Begins again what was begun before.
    #[serde(rename_all = "camelCase")]
    WarmUp {
        /// The archive's file.
        archive: PathBuf,
        /// Its digest.
        archive_digest: Digest,
        /// Credentials for the image's registry.
        login: Login,
    },
    /// Say how far a [`Command::WarmUp`] is. Answered with [`Outcome::Warmth`].
    #[serde(rename_all = "camelCase")]
    Warmth {
        /// Which archive.
        archive_digest: Digest,
    },
    /// Let go of what was warmed up: what of it is cached may be evicted, and nothing more is fetched.
    #[serde(rename_all = "camelCase")]
    CoolDown {
        /// Which archive.
        archive_digest: Digest,
    },
    /// Say how it goes.
    Report {},
}

/// What is known of the credentials for an image's registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Login {
    /// No pod has any: the registry is asked without.
    #[default]
    Anonymous,
    /// Pods may have some, which are not known (yet): after a restart, until kubelet publishes their volumes again.
    ToCome,
    /// A docker configuration.
    DockerConfigJson(Secret),
}

/// The server's answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reply {
    /// The number of the question.
    pub id: u64,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Done, or why not.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// Done.
    Ok {},
    /// The archive is served.
    Serving(Serving),
    /// Not done.
    Error(Refusal),
    /// How far an archive is.
    Warmth(Warmth),
    /// How it goes.
    Report(Report),
}

/// How far an image is that is to be on the node whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Warmth {
    /// It is being fetched.
    UnderWay {},
    /// All of it is there.
    #[serde(rename_all = "camelCase")]
    Warm {
        /// Compressed bytes that were fetched for it.
        fetched_bytes: u64,
    },
    /// Something of it cannot be had. Nothing more is fetched.
    Failed(NotWarm),
}

/// Why an image could not be warmed up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NotWarm {
    /// What kind of cause it is.
    pub kind: NotWarmKind,
    /// For people; names what to do.
    pub message: String,
}

/// Kinds of causes for which an image could not be warmed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NotWarmKind {
    /// It does not fit into the cache beside what is used.
    NoRoom,
    /// The registry refuses the credentials.
    Refused,
    /// Anything else.
    Other,
}

/// How it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// What the cache did in the server's present life.
    pub cache: CacheCounts,
    /// The latest one of each image that has any since the last report; those of many images come with the next reports.
    pub failed_reads: Vec<FailedRead>,
}

/// A read that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailedRead {
    /// The archive of the image.
    pub archive_digest: Digest,
    /// The image, as the archive names it.
    pub image: String,
    /// The file, from the image's root on.
    pub path: String,
    /// Why.
    pub cause: String,
}

/// What the cache did in the server's present life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheCounts {
    /// Reads answered from what was there.
    pub hits: u64,
    /// Reads that had to wait for a fetch.
    pub misses: u64,
    /// Those of them that failed.
    pub reads_failed: u64,
    /// Spans that were on the disk, damaged, and were fetched again.
    pub spans_damaged: u64,
    /// Spans that the disk did not take.
    pub spans_not_kept: u64,
    /// Spans that were taken away to make room.
    pub spans_evicted: u64,
    /// Bytes on the disk that became free thereby.
    pub bytes_evicted: u64,
    /// Bytes that the cache takes on the disk now.
    pub bytes_on_disk: u64,
}

/// An archive that is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Serving {
    /// The image's size.
    #[serde(flatten)]
    pub summary: Summary,
    /// How many layers it has: the files in `blobs/` of the connection.
    pub layers: u16,
    /// The expanded tree's file, which the kernel's EROFS can mount.
    pub tree: PathBuf,
    /// Says which tree that is, byte for byte. Node numbers on the connection are positions in it.
    pub tree_id: String,
}

/// The size of a served image, as its archive states it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Entries of every kind in the tree.
    pub files: u64,
    /// Bytes of all regular files' contents.
    pub bytes: u64,
}

/// Why the server did not do it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The class of the cause, from which the gRPC code is chosen.
    pub reason: Reason,
    /// For people; names what to do.
    pub message: String,
}

/// Classes of causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reason {
    /// The archive is damaged, or of a version this server does not read.
    ArchiveInvalid,
    /// The docker configuration cannot be read.
    CredentialsInvalid,
    /// The archive is not served.
    NotServed,
    /// The connection cannot be gone on with: another tree, or a kernel that cannot resend.
    CannotResume,
    /// The cache's disk is full.
    NoSpace,
    /// Anything else.
    Internal,
}

/// Text that must not show up in logs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_json_with_the_command_as_its_key() {
        let request = Request {
            id: 7,
            command: Command::Serve {
                archive: "/a.clip".into(),
                archive_digest: Digest::sha256_of(b""),
                login: Login::ToCome,
                resume: None,
            },
        };
        let json = serde_json::to_value(&request).unwrap();
        assert_eq!(json["id"], 7);
        assert_eq!(json["serve"]["archive"], "/a.clip");
        assert_eq!(json["serve"]["login"], "toCome");
        let again: Request = serde_json::from_value(json).unwrap();
        assert_eq!(again.id, 7);
    }

    #[test]
    fn an_answer_is_ok_or_error() {
        let ok = serde_json::to_string(&Reply {
            id: 1,
            outcome: Outcome::Ok {},
        })
        .unwrap();
        assert_eq!(ok, r#"{"id":1,"ok":{}}"#);
        let refusal = Refusal {
            reason: Reason::ArchiveInvalid,
            message: "bad".into(),
        };
        let error = serde_json::to_string(&Reply {
            id: 1,
            outcome: Outcome::Error(refusal),
        })
        .unwrap();
        assert_eq!(
            error,
            r#"{"id":1,"error":{"reason":"archiveInvalid","message":"bad"}}"#
        );
    }

    #[test]
    fn warmth_is_asked_and_told_under_the_same_word() {
        let archive_digest = Digest::sha256_of(b"");
        let asked = serde_json::to_value(Command::Warmth { archive_digest }).unwrap();
        assert!(asked["warmth"]["archiveDigest"].is_string());
        let told = Outcome::Warmth(Warmth::Warm { fetched_bytes: 7 });
        let told = serde_json::to_string(&told).unwrap();
        assert_eq!(told, r#"{"warmth":{"warm":{"fetchedBytes":7}}}"#);
        let again: Outcome = serde_json::from_str(&told).unwrap();
        assert!(matches!(again, Outcome::Warmth(Warmth::Warm { .. })));
    }

    #[test]
    fn a_secret_never_shows_in_debug_output() {
        let secret = || Secret("hunter2".into());
        let renewal = Command::RenewCredentials {
            archive_digest: Digest::sha256_of(b""),
            docker_config_json: secret(),
        };
        let login = Login::DockerConfigJson(secret());
        let text = format!("{:?} {renewal:?} {login:?}", secret());
        assert!(
            text.contains("(secret)") && !text.contains("hunter2"),
            "{text}"
        );
    }
}
