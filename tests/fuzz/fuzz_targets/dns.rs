//! Any bytes as a query for names, of anybody, over UDP and TCP.
//!
//! `cargo +nightly fuzz run dns` in `tests/`. What must hold, and the language of the input, stand in
//! `stellwerk_tests::names`; every find stays in the corpus.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| stellwerk_tests::names::fuzz(data));
