#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| watershed_fuzz::run("reply", octets));
