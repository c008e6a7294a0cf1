//! Any bytes as a call of the CNI plugin, a request at the agent's socket, or another node's word.
//!
//! `cargo +nightly fuzz run control` in `tests/`. What must hold, and the language of the input, stand in
//! `stellwerk_tests::control`; every find stays in the corpus.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| stellwerk_tests::control::fuzz(data));
