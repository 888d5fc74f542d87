//! A guest's archive, unpacked by the real code: nothing appears outside.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| mayfly_hostile_input::tar(bytes));
