//! From an image's configuration to a container's: the `config.json` of an OCI runtime bundle.
//!
//! ```text
//! image configuration (image-spec) ─┐
//! /etc/passwd, /etc/group ──────────┼─► runtime_spec() ─► config.json (runtime-spec)
//! what the user wants otherwise ────┘
//! ```
//!
//! No I/O: documents in, a document out. All of the first two is a stranger's: what is wrong with it is a
//! [`BundleError`]. Where the two specifications leave a choice, it is Docker's and Podman's
//! (image-spec, conversion.md; the comments name the source of each list).

mod process;
mod sandbox;
mod spec;
mod users;

pub use oci_spec::runtime::Spec;
pub use process::Command;
pub use spec::{MountPoint, mount_points, runtime_spec};
pub use users::UserFiles;

/// What of an image decides how its containers look.
#[derive(Debug, Clone)]
pub struct Image<'a> {
    /// The image configuration, as the archive holds it.
    pub config: &'a [u8],
    /// The image's list of users and groups.
    pub users: UserFiles,
}

/// What the user wants otherwise than the image, and what only the machine can say.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// In place of the image's entrypoint; its default arguments then go, too.
    pub entrypoint: Option<String>,
    /// In place of the image's default arguments (`Cmd`), unless empty.
    pub arguments: Vec<String>,
    /// Added to the image's environment, or in place of what it sets: name, value.
    pub environment: Vec<(String, String)>,
    /// In place of the image's user: `USER[:GROUP]`, names or numbers.
    pub user: Option<String>,
    /// In place of the image's working directory.
    pub directory: Option<String>,
    /// Whether the root cannot be written to.
    pub read_only: bool,
    /// Whether the process gets a terminal.
    pub terminal: bool,
    /// What the container calls itself; letters that no host name has are left out.
    pub hostname: String,
    /// Which network the container sees.
    pub network: Network,
    /// Whether the machine has only cgroup v2: only there do runtimes give containers a cgroup namespace by default.
    pub cgroup_v2: bool,
}

/// Which network a container sees.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Network {
    /// The machine's own. These files of it, name resolution, are shown in the container.
    Host {
        /// Absolute paths, the same on both sides.
        files: Vec<&'static str>,
    },
    /// Nothing but a loopback interface.
    #[default]
    None,
}

/// Why no container can be made of an image.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// An artifact, or an image made from scratch by hand.
    #[error("it has no image configuration: it is an artifact, not a container image")]
    NoConfiguration,
    /// The configuration does not follow the image-spec.
    #[error("its image configuration is not valid: {0}")]
    Configuration(serde_json::Error),
    /// Made for another operating system.
    #[error("it is an image for {0}, not for linux")]
    NotLinux(String),
    /// Nothing says what to run.
    #[error("it names no command to run: say one behind `--`")]
    NoCommand,
    /// The name of the user is not in the image.
    #[error(
        "the image's /etc/passwd has no user {0:?}: name another with --user, or give a number"
    )]
    NoSuchUser(String),
    /// The name of the group is not in the image.
    #[error(
        "the image's /etc/group has no group {0:?}: name another with --user, or give a number"
    )]
    NoSuchGroup(String),
    /// Neither a name nor a number, such as `:`.
    #[error("{0:?} is no user: it is USER[:GROUP], names or numbers")]
    NotAUser(String),
}
