//! The key encoding: round trips, order, and whatever bytes a store may hold.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| highwater_fuzz_targets::key_encoding(data));
