//! The thread that waits for requests and forks.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use mayfly_vmm_contract::fork::{ForkAnswer, ForkDescriptors, ForkRequest};

use super::child::{self, Plan};
use super::descriptors::Changes;
use super::request;
use super::{park, revive};
use crate::confine::hardening;
use crate::die::{die, errno};
use crate::filter::{self, Programs};
use crate::{register, rights};

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
    let programs = filter::for_vmm(hardening().unlisted_calls);
    while let Some((text, descriptors)) = request::receive(control) {
        let mut number = 0;
        let forked = ForkRequest::parse(&text).and_then(|request| {
            number = request.number;
            let descriptors = request.tell_apart(descriptors)?;
            let programs = programs.as_ref().map_err(|_| "cannot compile the seccomp filter")?;
            fork(request, descriptors, control, programs)
        });
        // An owner that is gone is noticed at the next receive.
        match forked {
            Ok(child) => {
                let answer = ForkAnswer { number, refused: None }.to_string();
                rights::send(control, answer.as_bytes(), child);
                // SAFETY: closes a descriptor that `fork` just made and nobody else knows.
                unsafe { libc::close(child) };
            }
            Err(reason) => {
                let answer = ForkAnswer { number, refused: Some(reason.into()) }.to_string();
                // SAFETY: sends from a valid buffer.
                unsafe {
                    libc::send(control, answer.as_ptr().cast(), answer.len(), libc::MSG_NOSIGNAL)
                };
            }
        }
    }
}

/// Makes one fork; returns a descriptor of the process.
fn fork(
    request: ForkRequest,
    descriptors: ForkDescriptors<OwnedFd>,
    control: i32,
    programs: &Programs,
) -> Result<i32, &'static str> {
    let tid_field =
        park::own_tid_field().ok_or("this C library lays out its threads in an unknown way")?;
    let mapping = register::mapping().ok_or("guest memory is not mapped")?;
    let passing = [
        &descriptors.userfaultfd_device,
        &descriptors.handshake,
        &descriptors.owner,
        &descriptors.gate,
    ];
    let passing: Vec<i32> =
        passing.into_iter().chain(&descriptors.cgroups).map(AsRawFd::as_raw_fd).collect();
    let changes = Changes::plan(
        &request.replace,
        &descriptors.replace,
        &[mapping.socket, control],
        &passing,
    )?;
    let scratch = scratch()?;
    let plan = Plan { request, descriptors, changes, programs, scratch, tid_field };
    for _ in 0..ATTEMPTS {
        let parked = park::all()?;
        if parked.can_fork() {
            let mut child = -1_i32;
            // SAFETY: the child runs on a copy of this stack and never returns from `run`; it makes
            // system calls only. The kernel writes one descriptor to `child`, in the zygote alone
            // (clone(2), `CLONE_PIDFD`).
            let pid =
                unsafe { libc::syscall(libc::SYS_clone, filter::FORK, 0, &raw mut child, 0, 0) };
            if pid == 0 {
                child::run(&plan, &parked);
            }
            return if pid < 0 { Err(refused(errno())) } else { Ok(child) };
        }
        drop(parked);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Err("the VMM does not come to rest: is it stopped?")
}

fn refused(errno: i32) -> &'static str {
    match errno {
        libc::EPERM => {
            "the kernel denies it a user namespace: see `sysctl kernel.unprivileged_userns_clone`"
        }
        libc::ENOSPC | libc::EUSERS => "there are too many namespaces: see `sysctl user`",
        libc::EAGAIN => "there are too many processes in its cgroup or of its user",
        _ => "cannot fork",
    }
}

/// Stacks on which a child's threads begin; the same memory for every fork, never used in the
/// zygote itself.
fn scratch() -> Result<*mut u8, &'static str> {
    static SCRATCH: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    let start = *SCRATCH.get_or_init(|| {
        let len = park::MAX_THREADS * revive::SCRATCH;
        let (prot, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new anonymous memory at an address of the kernel's choice; -1, the error, is
        // MAP_FAILED.
        unsafe { crate::wrap::real_mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) as usize }
    });
    if start == libc::MAP_FAILED as usize {
        Err("no memory for stacks")
    } else {
        Ok(start as *mut u8)
    }
}
