//! How far the kernel reads ahead in a file that is read in order: 128 KiB unless told otherwise. With 1 MiB one message
//! brings eight times as much (measured). INIT cannot raise it, sysfs can (sysfs-class-bdi, `read_ahead_kb`).
//!
//! For FUSE only. EROFS asks for what it reads ahead piece by piece, and for each again when it failed: with 1 MiB a read
//! of a dead registry took not up to four times the read timeout but nineteen times (measured).

/// One READ of the largest size.
const READ_AHEAD_KIB: &str = "1024";

/// Raises it for the FUSE filesystem with the device number `MAJOR:MINOR`. It only costs speed where it fails: without root, or without
/// a sysfs that can be written to.
pub fn raise(device: &str) {
    let setting = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = std::fs::write(&setting, READ_AHEAD_KIB) {
        tracing::debug!(%setting, %error, "cannot raise the read-ahead");
    }
}
