//! See `clip_fuzz::tar_walk`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| clip_fuzz::tar_walk::run(bytes));
