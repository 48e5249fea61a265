//! How far the kernel reads ahead in a file that is read in order: 128 KiB unless told otherwise. With 1 MiB one message
//! brings eight times as much (measured). INIT cannot raise it, sysfs can (sysfs-class-bdi, `read_ahead_kb`).
//!
//! It only costs speed where it fails: without root, or without a sysfs that can be written to.

use std::{collections::BTreeSet, path::Path};

/// One READ of the largest size.
const READ_AHEAD_KIB: &str = "1024";
const BDI: &str = "/sys/class/bdi";

/// Raises it for the filesystem with this device number, which names its entry, as FUSE's does.
pub fn raise_for_device(major: u32, minor: u32) {
    raise([&format!("{major}:{minor}")]);
}

/// Raises it for these entries.
pub fn raise<'a>(entries: impl IntoIterator<Item = &'a String>) {
    for entry in entries {
        let setting = Path::new(BDI).join(entry).join("read_ahead_kb");
        if let Err(error) = std::fs::write(&setting, READ_AHEAD_KIB) {
            tracing::debug!(setting = %setting.display(), %error, "cannot raise the read-ahead");
        }
    }
}

/// The entries of all EROFS without a block device. Their numbers say nothing of the mount: a new mount is known by the
/// entry that was not there before. One that somebody else makes at the same moment gets the same, and no harm from it.
pub fn of_erofs() -> BTreeSet<String> {
    let names = std::fs::read_dir(BDI).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with("erofs-")).collect()
}
