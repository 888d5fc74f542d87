//! The thread that waits for requests and forks.

use std::sync::atomic::{AtomicI32, Ordering};

use seccompiler::BpfProgram;

use super::child::{self, Plan};
use super::descriptors::Changes;
use super::request::{self, Request};
use super::{filter, park, revive};
use crate::die::{die, errno};
use crate::register;

/// Attempts to find all threads waiting, a millisecond apart.
const ATTEMPTS: u32 = 200;

static CONTROL: AtomicI32 = AtomicI32::new(-1);

/// Starts serving requests on descriptor `control`; once.
pub(crate) fn start(control: i32) {
    if CONTROL.swap(control, Ordering::AcqRel) >= 0 {
        return;
    }
    park::install();
    // The thread blocks all signals: they are QEMU's to handle.
    // SAFETY: the sets are initialised by sigfillset and pthread_sigmask.
    let made = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut old: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old);
        let made = std::thread::Builder::new().name("zygote".into()).spawn(move || serve(control));
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old, std::ptr::null_mut());
        made
    };
    if made.is_err() {
        die("cannot start the thread that forks", errno());
    }
}

fn serve(control: i32) {
    let programs = filter::programs();
    while let Some((text, descriptors)) = request::receive(control) {
        let answer = match Request::parse(&text, descriptors).and_then(|request| {
            let programs = programs.as_ref().map_err(|_| "cannot compile the seccomp filter")?;
            fork(request, control, programs)
        }) {
            Ok(pid) => format!("pid {pid}"),
            Err(reason) => format!("error {reason}"),
        };
        // SAFETY: sends from a valid buffer; an owner that is gone is noticed at the next receive.
        unsafe { libc::send(control, answer.as_ptr().cast(), answer.len(), libc::MSG_NOSIGNAL) };
    }
}

fn fork(request: Request, control: i32, programs: &[BpfProgram; 2]) -> Result<i64, &'static str> {
    let tid_field = park::own_tid_field().ok_or("this C library lays out its threads in an unknown way")?;
    let mapping = register::mapping().ok_or("guest memory is not mapped")?;
    let changes = Changes::plan(&request.replace, &[mapping.uffd, mapping.socket, control])?;
    let scratch = scratch()?;
    let plan = Plan { request, changes, programs, scratch, tid_field };
    for _ in 0..ATTEMPTS {
        let parked = park::all()?;
        if parked.can_fork() {
            // SAFETY: the child runs on a copy of this stack and never returns from `run`; it makes system calls only.
            let pid = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_PARENT | libc::SIGCHLD, 0, 0, 0, 0) };
            if pid == 0 {
                child::run(&plan, &parked);
            }
            return if pid < 0 { Err("cannot fork") } else { Ok(pid) };
        }
        drop(parked);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Err("the VMM does not come to rest: is it stopped?")
}

/// Stacks on which a child's threads begin; the same memory for every fork, never used in the zygote itself.
fn scratch() -> Result<*mut u8, &'static str> {
    static SCRATCH: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    let start = *SCRATCH.get_or_init(|| {
        let len = park::MAX_THREADS * revive::SCRATCH;
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new anonymous memory at an address of the kernel's choice; -1, the error, is MAP_FAILED.
        unsafe { crate::wrap::real_mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) as usize }
    });
    if start == libc::MAP_FAILED as usize { Err("no memory for stacks") } else { Ok(start as *mut u8) }
}
