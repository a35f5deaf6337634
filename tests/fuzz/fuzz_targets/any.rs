//! The target whose name is in `WATERSHED_FUZZ_TARGET`: one program to build instead of all.

#![no_main]

use std::sync::LazyLock;

static TARGET: LazyLock<String> =
    LazyLock::new(|| std::env::var("WATERSHED_FUZZ_TARGET").expect("WATERSHED_FUZZ_TARGET names a target"));

libfuzzer_sys::fuzz_target!(|octets: &[u8]| watershed_fuzz::run(&TARGET, octets));
