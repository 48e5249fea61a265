//! See `clip_fuzz::tree_expand`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| clip_fuzz::tree_expand::run(bytes));
