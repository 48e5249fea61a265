//! OCI runtimes of Debian, made to run on any machine.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

const CRUN_WITHOUT_V2: &str = r#"#!/bin/sh
exec unshare --mount --propagation private sh -c 'umount /sys/fs/cgroup/unified && exec crun "$@"' crun "$@"
"#;

/// The program to call for crun. It refuses to run where cgroup v1 is in use and v2 has controllers as well; there it is
/// a script, written to `wrapper`, that hides v2 from it.
pub fn crun(wrapper: &Path) -> io::Result<PathBuf> {
    let controllers = fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers");
    if controllers.is_ok_and(|names| !names.trim().is_empty()) {
        fs::write(wrapper, CRUN_WITHOUT_V2)?;
        fs::set_permissions(wrapper, fs::Permissions::from_mode(0o755))?;
        return Ok(wrapper.to_owned());
    }
    Ok("crun".into())
}
