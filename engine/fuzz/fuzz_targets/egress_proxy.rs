//! What a client of a guest's proxy port sends, to the real proxy.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| mayfly_engine_fuzz::hostile::egress_proxy(bytes));
