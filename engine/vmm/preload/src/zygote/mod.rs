//! A zygote: a VMM that was restored and warmed up, and is forked for each session.
//!
//! Under software emulation nearly all of a session's first second is translation of guest code. A
//! forked VMM inherits the translated code, the open disk and the built machine copy-on-write, and
//! starts in the time of a fork(2).
//!
//! fork(2) duplicates one thread only. So, as checkpointing tools do (DMTCP, "Transparent
//! Checkpointing for Cluster Computations and the Desktop", IPDPS 2009), every other thread is
//! first interrupted by a signal in the system call in which it waits ([`park`]), and made again in
//! the child with its own stack, thread-local storage and registers ([`revive`]), where it returns
//! from that signal and waits on.
//!
//! # Protocol
//! A request and its answer are in `mayfly_vmm_contract::fork`. The answer's descriptor is one of
//! the new process, since a process id would be one of the zygote's own PID namespace. The child is
//! a sibling of the zygote (`CLONE_PARENT`): its parent is who started the zygote, who then writes
//! the maps of the child's user namespace and opens its gate. What fails in the child is one line
//! on its own stderr and exit status 71.
//!
//! # Privileges
//! A zygote has none. Its child begins with all capabilities in a user namespace of its own, in
//! which only the one user id exists that its owner gave it, takes that id and an empty root, and
//! gives the capabilities up.
//!
//! The VM must be stopped while it is forked. In a zygote `madvise(MADV_DONTFORK)` has no effect.

mod child;
mod descriptors;
mod park;
mod registers;
mod request;
mod revive;
mod serve;
mod unmap;

pub(crate) use serve::start;
pub(crate) use unmap::prepare;
