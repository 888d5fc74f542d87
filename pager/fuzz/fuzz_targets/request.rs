//! Control messages: refused, or a request that reads the same after being written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mayfly_pager::protocol::{Message, parse_request};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(request) = parse_request(bytes) {
        let json = serde_json::to_vec(&request).unwrap();
        assert_eq!(parse_request(&json), Ok(request));
    }
    let _ = serde_json::from_slice::<Message>(bytes);
});
