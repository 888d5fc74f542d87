//! An agent that passes on what its guest sends outside, and what it makes up, to the real egress
//! of a session.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| mayfly_hostile_input::egress_agent(bytes));
