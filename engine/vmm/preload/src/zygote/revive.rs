//! Makes the parked threads again in a forked child.

use super::park::{Parked, Thread};
use super::registers;
use crate::die::die;

/// The flags pthread_create(3) uses: the C library must find the new threads as it left the old
/// ones.
const FLAGS: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID;
/// Stack on which a thread runs until it is back on its own, in bytes.
pub(super) const SCRATCH: usize = 16 << 10;
/// Signature of restartable sequences as glibc registers them
/// (sysdeps/unix/sysv/linux/x86/bits/rseq.h), and the size of `struct rseq`.
const RSEQ_SIGNATURE: u32 = 0x5305_3053;
const RSEQ_SIZE: usize = 32;

unsafe extern "C" {
    /// Offset of `struct rseq` from the thread pointer (glibc 2.35 and later).
    static __rseq_offset: isize;
    /// 0 when glibc does not use restartable sequences.
    static __rseq_size: u32;
}

/// Makes all threads of `parked` again; `scratch` has [`SCRATCH`] bytes for each.
///
/// # Safety
/// Runs in a process forked while they were parked, once, with no other thread alive.
#[expect(clippy::cast_possible_truncation, reason = "an error number is an int")]
pub(super) unsafe fn all(parked: &Parked, scratch: *mut u8) {
    for (at, thread) in parked.threads().enumerate() {
        // SAFETY: the slot holds a parked thread's storage and stack, copies of which nobody uses
        // in this process; each gets a scratch stack of its own.
        let made = unsafe {
            let stack = scratch.add((at + 1) * SCRATCH);
            registers::clone_thread(
                FLAGS as u64,
                stack,
                (*thread).tid_field(),
                (*thread).tls,
                go_on,
                thread,
            )
        };
        if made < 0 {
            die("cannot make a thread of the forked VMM", -made as i32);
        }
    }
}

/// First code of a revived thread.
extern "C" fn go_on(thread: *mut Thread) -> ! {
    // SAFETY: registers what the C library had registered for this thread's storage, then leaves
    // for the stack frame that `save` was called from, which is intact in this address space.
    unsafe {
        let (head, len) = (*thread).robust_list;
        if head != 0 {
            libc::syscall(libc::SYS_set_robust_list, head, len);
        }
        if __rseq_size != 0 {
            let area = (*thread).tls.wrapping_add_signed(__rseq_offset as i64);
            libc::syscall(libc::SYS_rseq, area, RSEQ_SIZE, 0, RSEQ_SIGNATURE);
        }
        registers::load(&raw const (*thread).registers)
    }
}
