//! The whole path under any packets on any of a few devices.
//!
//! `cargo +nightly fuzz run path` in `tests/`. What must hold, and the language of the input, stand
//! in `stellwerk_tests::chaos`; every find becomes a packet case.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| stellwerk_tests::chaos::fuzz(data));
