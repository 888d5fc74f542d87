//! Console output of a guest: bounded, and without anything that steers a terminal.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| mayfly_hostile_input::console(bytes));
