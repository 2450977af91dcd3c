//! Scan requests: between nodes, and as clients write them.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| highwater_fuzz_targets::scan_request(data));
