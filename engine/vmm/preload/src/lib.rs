//! Preload library that lets a stock QEMU hand its guest memory to an external userfaultfd pager.
//!
//! `LD_PRELOAD`ed into QEMU, it wraps `open` and `mmap`. When QEMU maps the guest RAM file, the mapping is registered with
//! a userfaultfd and the descriptor is sent to the pager with Firecracker's documented handshake. Any failure is one line
//! on stderr and exit status 71: there is no silent fallback to unpaged memory.
//!
//! # Configuration
//! `MAYFLY_PRELOAD` is a list of `key=value` separated by commas. Without it the library passes everything through.
//! - `ram=PATH`: what QEMU's `memory-backend-file` has as `mem-path`. Opening it gives the RAM file, read-only whatever was
//!   asked for. It need not exist.
//! - `uffd=N`: inherited descriptor of an open `/dev/userfaultfd`. The userfaultfd is made here and not by the parent,
//!   because it belongs to the address space that makes it.
//! - `sock=N`: inherited, connected stream socket to the pager.
//! - `ramfd=N`: inherited read-only descriptor of the page-cache file (shared mode).
//! - `zygote=N`: inherited socket on which forks of the process are asked for; see [`zygote`].
//! - `mode=copy,size=BYTES` instead of `ramfd`: guest memory is anonymous and the pager copies pages into it.
//!
//! With `MAYFLY_CONFINE` set, the process gives up what a VMM does not need as soon as its machine is built: all its threads
//! get a seccomp filter on top of QEMU's own (`filter.rs`), and it is not dumpable any more.
//!
//! # When QEMU never maps the RAM file
//! (a misspelt path, another memory backend) the library ends the process when QEMU installs its SIGTERM handler, which it
//! does once the machine is built and before its main loop, or at exit. So no VM that was started with `-S` or `-incoming`
//! ever runs on other memory.
//!
//! # Why the userfaultfd stays open here
//! If the pager dies, the last descriptor must not close with it: the kernel would let faulting threads go on and read
//! zeros. With a descriptor of the process itself they block until the owner kills it.

mod config;
#[cfg(target_arch = "x86_64")]
mod confine;
mod die;
#[cfg(target_arch = "x86_64")]
mod filter;
mod register;
mod rights;
mod wrap;
#[cfg(target_arch = "x86_64")]
mod zygote;
