//! See `clip_fuzz::manifest`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| clip_fuzz::manifest::run(bytes));
