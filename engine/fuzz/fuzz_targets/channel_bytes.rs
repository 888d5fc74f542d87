//! A guest's bytes instead of the handshake and instead of yamux, to the real client.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| mayfly_engine_fuzz::hostile::channel_bytes(bytes));
