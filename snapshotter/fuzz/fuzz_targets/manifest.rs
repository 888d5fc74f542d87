//! Manifests: no bytes make decoding panic, and what decodes encodes to something that decodes the
//! same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mayfly_snapshotter::Manifest;

/// Frames a payload, so that the fuzzer gets past the checksum.
fn seal(payload: &[u8]) -> Vec<u8> {
    let mut bytes = b"MFMA".to_vec();
    bytes.extend_from_slice(&Manifest::FORMAT_VERSION.to_le_bytes());
    bytes.extend_from_slice(payload);
    let sum = mayfly_snapshotter::Digest::of(&bytes);
    bytes.extend_from_slice(sum.as_bytes());
    bytes
}

fuzz_target!(|data: &[u8]| {
    let _ = Manifest::decode(data);
    if let Ok(manifest) = Manifest::decode(&seal(data)) {
        assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
    }
});
