//! Preload library of VMM processes: it hands a stock QEMU's guest memory to the pager, confines it
//! and forks it.
//!
//! `LD_PRELOAD`ed into QEMU, it wraps `open` and `mmap`. When QEMU maps the guest RAM file, the
//! mapping is registered with a userfaultfd and the descriptor is sent to the pager with
//! Firecracker's documented handshake. Any failure is one line on stderr and exit status 71: there
//! is no silent fallback to unpaged memory.
//!
//! # Configuration
//! `MAYFLY_PRELOAD` says which memory is paged, as `mayfly_vmm_contract::preload::PagedMemory`
//! describes it. Without it the library passes everything through. Opening the RAM file that it
//! names gives the page cache, read-only whatever was asked for. The userfaultfd is made here and
//! not by the parent, because it belongs to the address space that makes it. When there is a
//! zygote's socket, forks of the process are asked for on it; see [`zygote`].
//!
//! With `MAYFLY_CONFINE` set, the process gives up what a VMM does not need as soon as its machine
//! is built: all its threads get a seccomp filter on top of QEMU's own (`filter.rs`), and it is not
//! dumpable any more.
//!
//! # When QEMU never maps the RAM file
//! (a misspelt path, another memory backend) the library ends the process when QEMU installs its
//! SIGTERM handler, which it does once the machine is built and before its main loop, or at exit.
//! So no VM that was started with `-S` or `-incoming` ever runs on other memory.
//!
//! # Who keeps the userfaultfd open
//! If the pager dies, the last descriptor must not close with it: the kernel would let faulting
//! threads go on and read zeros. The owner of the process holds one, so that they block until it
//! kills the process. The process itself must hold none, for it may be taken over by its guest:
//! with it, it could unregister its memory, take events away from the pager, or change the status
//! flags that it would share with the pager. For the same reason its descriptors of the RAM file
//! become `/dev/null` once the machine is built.

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
