//! Packs: no bytes make a walk panic, and record headers that parse are canonical.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mayfly_snapshotter::pack::{PackHeader, RECORD_HEADER_LEN, RecordHeader, Walk};

fuzz_target!(|data: &[u8]| {
    if let Ok(header) = RecordHeader::parse(data) {
        assert_eq!(header.encode(), data[..RECORD_HEADER_LEN]);
    }
    let mut pack = PackHeader { pack: 1 }.encode().to_vec();
    pack.extend_from_slice(data);
    for bytes in [data, &pack] {
        let Ok((_, walk)) = Walk::new(bytes) else { continue };
        for record in walk.flatten() {
            assert_eq!(record.stored.len(), record.header.stored_len as usize);
        }
    }
});
