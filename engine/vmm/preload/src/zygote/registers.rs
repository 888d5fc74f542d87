//! A thread's registers, saved and loaded as by setjmp(3): those that a called function must
//! preserve.

/// rbx, rbp, r12 to r15, rsp, and where to go on.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Registers([u64; 8]);

impl Registers {
    pub const fn new() -> Self {
        Self([0; 8])
    }
}

/// Saves the caller's registers and returns 0. Returns a second time, with 1, in the thread that
/// calls [`load`].
///
/// # Safety
/// `to` is valid, and the caller's stack frame still exists when [`load`] is called.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn save(to: *mut Registers) -> u64 {
    core::arch::naked_asm!(
        "mov [rdi], rbx",
        "mov [rdi + 8], rbp",
        "mov [rdi + 16], r12",
        "mov [rdi + 24], r13",
        "mov [rdi + 32], r14",
        "mov [rdi + 40], r15",
        "lea rdx, [rsp + 8]",
        "mov [rdi + 48], rdx",
        "mov rdx, [rsp]",
        "mov [rdi + 56], rdx",
        "xor eax, eax",
        "ret",
    )
}

/// Goes on where [`save`] was called, with result 1.
///
/// # Safety
/// `from` was filled by [`save`], whose caller's stack frame is intact in this address space and
/// used by no other thread.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn load(from: *const Registers) -> ! {
    core::arch::naked_asm!(
        "mov rbx, [rdi]",
        "mov rbp, [rdi + 8]",
        "mov r12, [rdi + 16]",
        "mov r13, [rdi + 24]",
        "mov r14, [rdi + 32]",
        "mov r15, [rdi + 40]",
        "mov rsp, [rdi + 48]",
        "mov eax, 1",
        "jmp qword ptr [rdi + 56]",
    )
}

/// clone(2) of a thread that runs `entry(argument)` on `stack`; returns its id or a negative errno.
///
/// # Safety
/// `stack` is the 16-byte aligned upper end of memory for the new thread alone; `entry` never
/// returns; `tls` is thread-local storage of the C library that no other thread uses; `tid` is the
/// field of it that holds the thread's id.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn clone_thread(
    flags: u64,
    stack: *mut u8,
    tid: *mut i32,
    tls: u64,
    entry: extern "C" fn(*mut super::park::Thread) -> !,
    argument: *mut super::park::Thread,
) -> i64 {
    // System calls take the fourth argument in r10: clone(flags, stack, parent_tid, child_tid,
    // tls).
    core::arch::naked_asm!(
        "push r12",
        "push r13",
        "mov r12, r8",
        "mov r13, r9",
        "mov r8, rcx",
        "mov r10, rdx",
        "mov eax, 56",
        "syscall",
        "test eax, eax",
        "jz 2f",
        "pop r13",
        "pop r12",
        "ret",
        "2:",
        "xor ebp, ebp",
        "mov rdi, r13",
        "call r12",
        "ud2",
    )
}
