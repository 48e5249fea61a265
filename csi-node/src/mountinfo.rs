//! Which lines of the mount table are ours. A restarted plugin learns from them what it has mounted.

use clip_engine::mount_points::{MountPoint, SOURCE_PREFIX};
use clip_registry::Digest;

/// The source under which the archive is mounted.
pub fn source_of(archive: &Digest) -> String {
    format!("{SOURCE_PREFIX}{archive}")
}

/// The archive that is mounted; `None` when the mount is not ours.
pub fn archive_of(mount: &MountPoint) -> Option<Digest> {
    mount.archive()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_digest_makes_a_mount_ours() {
        let digest: Digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        let mut mount = MountPoint {
            device: "0:1".to_owned(),
            root: "/".into(),
            path: "/m".into(),
            fs_type: "fuse.clip".to_owned(),
            source: source_of(&digest),
        };
        assert_eq!(archive_of(&mount), Some(digest));
        mount.source = "clip:sha256:abc".to_owned();
        assert_eq!(archive_of(&mount), None);
    }
}
