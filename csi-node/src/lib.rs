//! The CSI node plugin: mounts indexed images into pods.
//!
//! Two processes, so that what answers reads never waits for itself:
//! ```text
//!  kubelet ──gRPC──► clip-csi-node (control)  ──JSON and /dev/fuse descriptors──►  clip-serve (data)
//!                    mounts, binds, unmounts                                       answers the kernel's reads
//! ```
//! This library is control; `src/bin/clip-serve` is data and shares only [`wire`] and the names of [`profiles`] with it. A publish goes through
//! [`node`] (gRPC) → [`request`] (checked) → [`publish`] (the steps) → [`resolve`] (which archive) → [`archives`] (on
//! disk) → [`mounts`] (one for each archive) → [`syscalls`]. What no pod asked for yet is fetched by [`warm_up`].

pub mod archive_sources;
pub mod archives;
pub mod args;
pub mod csi;
pub mod custody;
pub mod engines;
pub mod error;
pub mod folder;
pub mod identity;
pub mod keeper;
pub mod locks;
pub mod metrics;
pub mod mountinfo;
pub mod mounts;
pub mod node;
pub mod open_files;
pub mod profiles;
pub mod publish;
pub mod recover;
pub mod registration;
pub mod registration_server;
pub mod request;
pub mod resolve;
pub mod serve_process;
pub mod server;
pub mod syscalls;
pub mod troubles;
pub mod turn;
pub mod warm_up;
pub mod wire;
