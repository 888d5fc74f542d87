//! Every frame either end parses: no panic, and what decodes encodes again to something that
//! decodes to the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mayfly_protocol::{
    DirEntry, ExecInput, ExecOutput, FileChunk, GuestStats, Health, MAX_FRAME, Metadata,
    QuiesceReport, Reply, Request, WatchInput, WatchOutput, Written, decode_frame, encode_frame, split_frame,
};
use std::path::{Component, Path};

fn check<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(
    payload: &[u8],
) {
    if let Ok(value) = decode_frame::<T>(payload) {
        let frame = encode_frame(&value).unwrap();
        let range = split_frame(&frame).unwrap().unwrap();
        assert_eq!(decode_frame::<T>(&frame[range]).unwrap(), value);
    }
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Some(range)) = split_frame(bytes) {
        assert!(range.end <= bytes.len() && range.len() <= MAX_FRAME);
    }
    check::<Request>(bytes);
    check::<ExecInput>(bytes);
    check::<ExecOutput>(bytes);
    check::<FileChunk>(bytes);
    check::<Reply<()>>(bytes);
    check::<Reply<Health>>(bytes);
    check::<Reply<Metadata>>(bytes);
    check::<Reply<QuiesceReport>>(bytes);
    check::<Reply<Vec<DirEntry>>>(bytes);
    check::<Reply<u64>>(bytes);
    check::<Reply<GuestStats>>(bytes);
    check::<Reply<Written>>(bytes);
    check::<WatchInput>(bytes);
    check::<WatchOutput>(bytes);
    if let Ok(WatchOutput::Events(events)) = decode_frame::<WatchOutput>(bytes) {
        for event in events.iter().filter(|event| event.is_contained()) {
            for path in [Some(&event.path), event.from.as_ref()].into_iter().flatten() {
                let joined = Path::new("/base").join(path.as_path());
                assert!(
                    joined.starts_with("/base")
                        && joined.components().all(|part| part != Component::ParentDir)
                );
            }
        }
    }
});
