//! See `clip_fuzz::seek_resume`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| clip_fuzz::seek_resume::run(bytes));
