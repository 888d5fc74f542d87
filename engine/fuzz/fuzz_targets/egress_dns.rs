//! A guest's DNS messages, to what answers them.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| mayfly_engine_fuzz::hostile::egress_dns(bytes));
