//! Having written bytes go to the disk soon.
//!
//! The kernel lets dirty pages pile up for half a minute. They count against the memory limit of our container, and a
//! fetch that meets the limit waits until they are written. Begun at once, writing goes on while the next span is fetched.
#![allow(unsafe_code)]

use nix::libc;
use std::{fs::File, ops::Range, os::fd::AsRawFd};

/// Begins to write these bytes of `file` to the disk, and does not wait for it.
pub fn begin(file: &File, bytes: Range<u64>) {
    let (offset, len) = (bytes.start as i64, (bytes.end - bytes.start) as i64);
    // SAFETY: no pointers; the descriptor is open for the time of the call. A failure changes nothing: the kernel writes
    // the pages later, and what it cannot write is not believed after the next start of the machine.
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE);
    }
}
