//! As many open files as the system lets a process have.
//!
//! A mounted image takes a descriptor in control and keeper, and several for each of its layers in `clip-serve`. The usual
//! soft limit of 1,024 (systemd.exec(5), `LimitNOFILE`) is there for programs that use select(2), and would be reached
//! with some hundred mounts.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the soft limit of this process, and of those that it starts, to the hard one (getrlimit(2)).
pub fn raise_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files; with many mounts it is reached");
    }
}
