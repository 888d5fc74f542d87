//! Limit of open descriptors of this process.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises this process's soft limit of open descriptors to its hard limit (getrlimit(2),
/// `RLIMIT_NOFILE`). A session costs a pager three and a daemon about ten of them: the usual soft
/// limit of 1024 would end at some 100 sessions.
pub fn raise_limit() {
    // A failure leaves it as it was.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
