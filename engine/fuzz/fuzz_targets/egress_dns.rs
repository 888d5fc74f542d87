//! A guest's DNS messages, to what answers them.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| mayfly_hostile_input::egress_dns(bytes));
