//! The decoders of the wire, for every kind of message.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| highwater_fuzz_targets::batch_decoder(data));
