//! Interrupts every other thread of the process in the system call in which it waits, and holds it
//! there.

use std::sync::atomic::{AtomicU32, Ordering};

use super::registers::{self, Registers};
use crate::die::{die, errno};

/// Most threads a zygote may have beside the one that forks.
pub(super) const MAX_THREADS: usize = 64;
/// Sent to interrupt a thread. QEMU's threads block all signals but the ones of faults; of these
/// nothing in QEMU handles this one, and nothing raises it by kill(2).
const SIGNAL: i32 = libc::SIGFPE;
/// Attempts to find all threads waiting, a millisecond apart.
const ATTEMPTS: u32 = 200;
/// Waits of 5 ms each for one thread to stop.
const MAX_WAITS: u32 = 200;
/// Offset of the thread's id in glibc's `struct pthread` (x86-64, nptl/descr.h, since 2.25).
/// Checked for each thread.
const TID_OFFSET: u64 = 0x2d0;

/// What it takes to make a thread again.
#[repr(C)]
pub(super) struct Thread {
    /// Id in the zygote; 0 for an unused slot.
    pub tid: AtomicU32,
    /// [`RUNNING`], [`WAITING`] or [`BUSY`].
    state: AtomicU32,
    /// Thread-local storage, which is also glibc's `struct pthread`.
    pub tls: u64,
    /// Registers with which the signal handler goes on.
    pub registers: Registers,
    /// Robust futexes, from get_robust_list(2).
    pub robust_list: (u64, usize),
}

/// Not interrupted yet.
const RUNNING: u32 = 0;
/// Interrupted in a system call.
const WAITING: u32 = 1;
/// Interrupted while it was computing, perhaps with a lock held: cannot be forked now.
const BUSY: u32 = 2;

impl Thread {
    const fn new() -> Self {
        Self {
            tid: AtomicU32::new(0),
            state: AtomicU32::new(RUNNING),
            tls: 0,
            registers: Registers::new(),
            robust_list: (0, 0),
        }
    }

    /// Returns where glibc keeps this thread's id.
    pub fn tid_field(&self) -> *mut i32 {
        (self.tls + TID_OFFSET) as *mut i32
    }
}

struct Table(std::cell::UnsafeCell<[Thread; MAX_THREADS]>);
// SAFETY: the forking thread writes slots only while no thread is parked; a parked thread writes
// only its own slot, before it announces itself with a release store that the forking thread
// acquires.
unsafe impl Sync for Table {}

static THREADS: Table = Table(std::cell::UnsafeCell::new([const { Thread::new() }; MAX_THREADS]));
/// Counted up to let the parked threads go.
static RELEASE: AtomicU32 = AtomicU32::new(0);

fn slot(at: usize) -> *mut Thread {
    // SAFETY: stays within the array.
    unsafe { THREADS.0.get().cast::<Thread>().add(at.min(MAX_THREADS - 1)) }
}

/// The thread's own storage, as glibc's pthread_self(3) returns it.
pub(super) fn own_tls() -> u64 {
    // SAFETY: pthread_self has no preconditions; on x86-64 glibc it is the base of fs.
    unsafe { libc::pthread_self() as u64 }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a thread id is a positive int"
)]
pub(super) fn own_tid() -> u32 {
    // SAFETY: gettid has no preconditions.
    unsafe { libc::syscall(libc::SYS_gettid) as u32 }
}

/// Where glibc keeps the calling thread's id, if its layout is the known one.
pub(super) fn own_tid_field() -> Option<*mut i32> {
    let field = (own_tls() + TID_OFFSET) as *mut i32;
    // SAFETY: lies within this thread's `struct pthread`, which is larger (0x900 bytes).
    (unsafe { field.read_volatile() } == own_tid().cast_signed()).then_some(field)
}

pub(super) fn futex(word: &AtomicU32, operation: i32, value: u32) {
    // SAFETY: the word outlives the call; a private futex without a timeout.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            operation | libc::FUTEX_PRIVATE_FLAG,
            value,
            0,
            0,
            0,
        );
    }
}

/// Installs the signal handler; once, before the first [`all`].
pub(super) fn install() {
    // SAFETY: a zeroed sigaction is a valid one; the handler has the signature that SA_SIGINFO asks
    // for.
    let failed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        libc::sigfillset(&raw mut action.sa_mask);
        libc::sigaction(SIGNAL, &raw const action, std::ptr::null_mut()) != 0
    };
    if failed {
        die("cannot handle the signal that parks threads", errno());
    }
}

extern "C" fn handler(_: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    // SAFETY: the kernel gives valid pointers to a handler with SA_SIGINFO.
    let (code, context) = unsafe { ((*info).si_code, &*context.cast::<libc::ucontext_t>()) };
    if code != libc::SI_TKILL {
        // A real arithmetic fault: as without us.
        // SAFETY: restores the default action; the instruction faults again on return.
        unsafe { libc::signal(SIGNAL, libc::SIG_DFL) };
        return;
    }
    let tid = own_tid();
    // Before the look for the slot: who gives this thread up empties that first, and then counts.
    let generation = RELEASE.load(Ordering::Acquire);
    let Some(at) = (0..MAX_THREADS).find(|&at| {
        // SAFETY: the field is atomic, and the slot exists.
        unsafe { (*slot(at)).tid.load(Ordering::Acquire) == tid }
    }) else {
        return;
    };
    let thread = slot(at);
    let ip = context.uc_mcontext.gregs[libc::REG_RIP as usize] as *const [u8; 2];
    // The call was interrupted and either begins again or has just returned EINTR. SAFETY: the
    // instruction pointer and the two bytes before it are mapped code: the thread was there.
    let in_call =
        unsafe { ip.read_unaligned() == SYSCALL || ip.sub(1).read_unaligned() == SYSCALL };
    // SAFETY: this thread's slot, see `Table`; `save` returns twice, the second time in the child
    // on a copy of this very stack, where nothing has to be undone but to return.
    unsafe {
        (*thread).tls = own_tls();
        let (mut head, mut len) = (0_u64, 0_usize);
        libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut len);
        (*thread).robust_list = (head, len);
        if registers::save(&raw mut (*thread).registers) != 0 {
            return;
        }
        let state = &(*thread).state;
        state.store(if in_call { WAITING } else { BUSY }, Ordering::Release);
        futex(state, libc::FUTEX_WAKE, 1);
        while RELEASE.load(Ordering::Acquire) == generation {
            futex(&RELEASE, libc::FUTEX_WAIT, generation);
        }
    }
}

/// Parked threads; they go on when this is dropped.
pub(super) struct Parked {
    count: usize,
}

impl Parked {
    /// Returns the slots of the parked threads.
    pub fn threads(&self) -> impl Iterator<Item = *mut Thread> {
        (0..self.count).map(slot)
    }

    /// Returns whether every thread waits in a system call and has the known layout, so that it can
    /// be made again.
    fn can_fork(&self) -> bool {
        self.threads().all(|thread| {
            // SAFETY: a parked thread's slot and thread-local storage stay as they are.
            unsafe {
                let thread = &*thread;
                thread.state.load(Ordering::Acquire) == WAITING
                    && thread.tid_field().read_volatile()
                        == thread.tid.load(Ordering::Relaxed).cast_signed()
            }
        })
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        RELEASE.fetch_add(1, Ordering::AcqRel);
        futex(&RELEASE, libc::FUTEX_WAKE, i32::MAX as u32);
    }
}

/// Parks every thread but the calling one, each in a system call.
pub(super) fn at_rest() -> Result<Parked, &'static str> {
    for _ in 0..ATTEMPTS {
        let parked = all()?;
        if parked.can_fork() {
            return Ok(parked);
        }
        drop(parked);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Err("the VMM does not come to rest: is it stopped?")
}

/// Parks every thread but the calling one.
fn all() -> Result<Parked, &'static str> {
    let own = own_tid();
    let process = std::process::id();
    let mut parked = Parked { count: 0 };
    for at in 0..MAX_THREADS {
        // SAFETY: the slot exists, and the field is atomic.
        unsafe { (*slot(at)).tid.store(0, Ordering::Release) };
    }
    let tasks = std::fs::read_dir("/proc/self/task").map_err(|_| "cannot list the threads")?;
    let tids: Vec<u32> =
        tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse().ok()).collect();
    for tid in tids.into_iter().filter(|tid| *tid != own) {
        if parked.count == MAX_THREADS {
            return Err("too many threads");
        }
        // SAFETY: the slot is not in use: no thread looks for an id it does not have.
        let thread = unsafe { &*slot(parked.count) };
        thread.state.store(RUNNING, Ordering::Relaxed);
        thread.tid.store(tid, Ordering::Release);
        // SAFETY: signals a thread of this process; one that has ended meanwhile is an error and
        // nothing else.
        if unsafe { libc::syscall(libc::SYS_tgkill, process, tid, SIGNAL) } != 0 {
            thread.tid.store(0, Ordering::Release);
            continue;
        }
        let mut spins = 0;
        while thread.state.load(Ordering::Acquire) == RUNNING {
            futex_timed(&thread.state, RUNNING);
            spins += 1;
            if spins > MAX_WAITS {
                // A thread that ended between the list and the signal, or sleeps uninterruptibly.
                thread.tid.store(0, Ordering::Release);
                return Err("a thread does not stop");
            }
        }
        parked.count += 1;
    }
    Ok(parked)
}

fn futex_timed(word: &AtomicU32, value: u32) {
    let limit = libc::timespec { tv_sec: 0, tv_nsec: 5_000_000 };
    // SAFETY: word and limit outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            value,
            &raw const limit,
            0,
            0,
        );
    }
}
