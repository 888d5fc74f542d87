//! Runs system calls in another process, with that process's own seccomp filter, namespaces, user
//! and capabilities: what code that took the process over could do, no more and no less.
//!
//! - [`call`] says which system call, and how it came out;
//! - [`tracee`] stops a thread of the process with ptrace(2), has it make the call, and lets it go
//!   on as if nothing had been.

mod call;
mod tracee;

pub use call::{Arg, Call, Outcome};
pub use tracee::{InjectError, Tracee};
