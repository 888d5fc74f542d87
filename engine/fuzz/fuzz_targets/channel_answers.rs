//! A guest's answers to each kind of request, to the real client: listings, metadata, watches,
//! commands, files, Docker's ping.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| mayfly_hostile_input::channel_answers(bytes));
