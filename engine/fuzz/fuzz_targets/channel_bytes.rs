//! A guest's bytes instead of the handshake and instead of yamux, to the real client.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| mayfly_hostile_input::channel_bytes(bytes));
