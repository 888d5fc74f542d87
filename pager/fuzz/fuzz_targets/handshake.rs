//! Region lists from a VMM: refused, or inside the image and disjoint.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mayfly_pager::handshake::parse;

const IMAGE: u64 = 1 << 30;

fuzz_target!(|bytes: &[u8]| {
    let Ok(regions) = parse(bytes, IMAGE) else { return };
    assert!(!regions.is_empty());
    for (i, r) in regions.iter().enumerate() {
        assert!(r.size > 0 && r.base > 0 && r.offset + r.size <= IMAGE && r.end() <= 1 << 56);
        assert!((r.base | r.size | r.offset) % 4096 == 0);
        for s in &regions[..i] {
            assert!(r.end() <= s.base || s.end() <= r.base);
            assert!(r.offset + r.size <= s.offset || s.offset + s.size <= r.offset);
        }
    }
});
