#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ol_fuzz::spans(bytes));
