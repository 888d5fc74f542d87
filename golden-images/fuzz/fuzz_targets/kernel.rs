//! Any bytes are a kernel image or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mayfly_golden_images::{extract_vmlinux, has_pvh_entry};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(vmlinux) = extract_vmlinux(bytes) {
        has_pvh_entry(&vmlinux);
    }
    has_pvh_entry(bytes);
});
