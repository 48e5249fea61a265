//! Memory for many connections.
//!
//! fuser gives each of its threads a buffer of 16 MiB for writes, which nobody sends to a read-only filesystem. Pages that
//! are never touched cost nothing, if the buffer is fresh from the kernel: glibc takes large blocks from there until the
//! first one is freed, then raises its threshold (mallopt(3), `M_MMAP_THRESHOLD`), and clears the next ones by hand. With
//! 500 mounts that were 14.7 GB (measured). A threshold that was set is never raised. Huge pages would do the same harm:
//! 2 MiB for the first byte.

#![allow(unsafe_code)]

use anyhow::{Context, ensure};

/// From this size on memory comes from the kernel, and goes back there.
const FROM_KERNEL_BYTES: i32 = 1 << 20;

/// Has large buffers cost what is used of them. Call it before there are any.
pub fn pay_for_what_is_used() -> anyhow::Result<()> {
    // SAFETY: it changes a number of the allocator's, and there is but one thread.
    let done = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, FROM_KERNEL_BYTES) };
    ensure!(done == 1, "the allocator does not take a threshold");
    nix::sys::prctl::set_thp_disable(true).context("cannot do without huge pages")
}
