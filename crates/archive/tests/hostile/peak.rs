//! How much memory a piece of code takes at most: an allocator that counts, per thread.
#![allow(unsafe_code)] // implementing `GlobalAlloc` is unsafe; every call goes to the system's allocator

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static NOW: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

/// Runs `work` and tells the most bytes that were allocated at once meanwhile, on this thread, by Rust code.
pub fn of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = NOW.get();
    PEAK.set(before);
    let result = work();
    (result, PEAK.get().saturating_sub(before))
}

fn grow(len: usize) {
    let _ = NOW.try_with(|now| {
        now.set(now.get().wrapping_add(len));
        PEAK.set(PEAK.get().max(now.get()));
    });
}

fn shrink(len: usize) {
    let _ = NOW.try_with(|now| now.set(now.get().saturating_sub(len)));
}

// SAFETY: all calls are passed to `System` unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promises about `layout` are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        shrink(layout.size());
        // SAFETY: `at` came from `System` with this layout.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        grow(len);
        shrink(layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, len) }
    }
}
