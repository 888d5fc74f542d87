//! Bytes from a client of a guest's proxy port, to the real proxy.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| mayfly_hostile_input::egress_proxy(bytes));
