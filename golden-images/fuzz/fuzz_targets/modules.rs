//! Any module lists give an order in which each file is loaded once, or an error.
#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use mayfly_golden_images::ModuleIndex;

fuzz_target!(|lists: (&str, &str, &str)| {
    let index = ModuleIndex::parse(lists.0, lists.1, lists.2);
    if let Ok(order) = index.load_order("fuzz", &[], &["a", "b", "virtio"]) {
        let distinct: HashSet<_> = order.iter().collect();
        assert_eq!(distinct.len(), order.len());
    }
});
