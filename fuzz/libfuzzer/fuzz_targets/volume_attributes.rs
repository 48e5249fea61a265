//! See `clip_fuzz::volume_attributes`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| clip_fuzz::volume_attributes::run(bytes));
