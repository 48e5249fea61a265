//! See `clip_fuzz::archive_open`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| clip_fuzz::archive_open::run(bytes));
