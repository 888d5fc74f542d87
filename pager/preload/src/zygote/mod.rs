//! A zygote: a VMM that was restored and warmed up, and is forked for each session.
//!
//! Under software emulation nearly all of a session's first second is translation of guest code. A forked VMM inherits the
//! translated code, the open disk and the built machine copy-on-write, and starts in the time of a fork(2).
//!
//! fork(2) duplicates one thread only. So, as checkpointing tools do (DMTCP, "Transparent Checkpointing for Cluster
//! Computations and the Desktop", IPDPS 2009), every other thread is first interrupted by a signal in the system call in
//! which it waits ([`park`]), and made again in the child with its own stack, thread-local storage and registers
//! ([`revive`]), where it returns from that signal and waits on.
//!
//! # Protocol
//! One `SOCK_SEQPACKET` message for a fork ([`request`]) with all descriptors the child is to have in place of the zygote's,
//! and one message back: `pid N`, or `error WHAT`. The child is a sibling of the zygote (`CLONE_PARENT`): its parent is who
//! started the zygote. What fails in the child is one line on its own stderr and exit status 71.
//!
//! The VM must be stopped while it is forked. In a zygote `madvise(MADV_DONTFORK)` has no effect.

mod child;
mod descriptors;
mod filter;
mod park;
mod registers;
mod request;
mod revive;
mod serve;

pub(crate) use serve::start;
