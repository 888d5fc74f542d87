//! Hosts, the heads of requests and entries of a policy.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| mayfly_hostile_input::egress_policy(bytes));
