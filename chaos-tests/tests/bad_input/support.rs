//! Checks that every failure here must pass.

use mayfly_chaos_tests::home::Home;
use mayfly_chaos_tests::program::Finished;

/// Checks that a run failed with one clear line that holds each of `words`, and left nothing behind.
pub fn check_failure(home: &Home, ended: &Finished, words: &[&str]) {
    let complaint = ended.complaint();
    for word in words {
        assert!(complaint.contains(word), "no {word:?} in: {complaint}");
    }
    assert_eq!(home.leaks_of(ended.pid), [], "after: {complaint}");
}
