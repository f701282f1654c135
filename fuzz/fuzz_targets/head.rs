//! The property of the same name in `tests/properties/`, for any input.

#![no_main]

#[path = "../../tests/properties/head.rs"]
mod property;

libfuzzer_sys::fuzz_target!(|data: &[u8]| property::check(data));
