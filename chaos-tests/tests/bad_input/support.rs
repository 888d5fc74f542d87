//! Checks that every failure here must pass.

use std::fs;
use std::path::PathBuf;

use mayfly_chaos_tests::home::Home;
use mayfly_chaos_tests::program::Finished;
use serde_json::Value;

/// Checks that a run failed with one clear line that holds each of `words`, and left nothing
/// behind.
pub fn check_failure(home: &Home, ended: &Finished, words: &[&str]) {
    let complaint = ended.complaint();
    for word in words {
        assert!(complaint.contains(word), "no {word:?} in: {complaint}");
    }
    assert_eq!(home.leaks_of(ended.pid), [], "after: {complaint}");
}

/// Returns the path of the base disk in a home that has none any more, nor shares the boot
/// artifacts with others, and the length that it should have.
pub fn missing_base_disk(home: &Home) -> (PathBuf, u64) {
    let manifest: Value = serde_json::from_str(&home.manifest()).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let (key, name) =
        (text(&manifest["labels"]["image_key"]), text(&manifest["base_disk"]["file_name"]));
    // Not through the link to the boot artifacts that all homes share.
    fs::remove_file(home.layout().images()).unwrap();
    let dir = home.layout().images().join("rootfs").join(key);
    fs::create_dir_all(&dir).unwrap();
    (dir.join(name), manifest["base_disk"]["len"].as_u64().unwrap())
}
