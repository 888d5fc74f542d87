//! Lines of QMP from a VMM that was taken over, to the real client.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| mayfly_hostile_input::qmp(bytes));
