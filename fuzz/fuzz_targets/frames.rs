//! The frames of a NATS connection, and what is looked up in header blocks.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| highwater_fuzz_targets::frames(data));
