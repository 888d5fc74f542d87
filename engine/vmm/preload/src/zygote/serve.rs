//! The thread that waits for requests and forks.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use mayfly_vmm_contract::fork::{Answer, Done, ForkDescriptors, ForkRequest, Request};

use super::child::{self, Plan};
use super::descriptors::Changes;
use super::request;
use super::{park, revive, unmap};
use crate::confine::hardening;
use crate::die::{die, errno};
use crate::filter::{self, Programs};
use crate::{register, rights};

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
        let request = Request::parse(&text);
        let number = request.as_ref().map_or(0, Request::number);
        let answer = |outcome| Answer { number, outcome }.to_string();
        let done = request.and_then(|request| match request {
            Request::Fork(request) => {
                let descriptors = request.tell_apart(descriptors)?;
                let programs =
                    programs.as_ref().map_err(|_| "cannot compile the seccomp filter")?;
                Ok((Done::Forked, Some(fork(request, descriptors, control, programs)?)))
            }
            Request::Unmap { .. } => Ok((Done::Unmapped { pages: unmap::all()? }, None)),
        });
        // An owner that is gone is noticed at the next receive.
        match done {
            Ok((done, Some(child))) => {
                rights::send(control, answer(Ok(done)).as_bytes(), child);
                // SAFETY: closes a descriptor that `fork` just made and nobody else knows.
                unsafe { libc::close(child) };
            }
            Ok((done, None)) => say(control, &answer(Ok(done))),
            Err(reason) => say(control, &answer(Err(reason.into()))),
        }
    }
}

fn say(control: i32, answer: &str) {
    // SAFETY: sends from a valid buffer.
    unsafe { libc::send(control, answer.as_ptr().cast(), answer.len(), libc::MSG_NOSIGNAL) };
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
    let own: Vec<i32> = [mapping.socket, control].into_iter().chain(unmap::descriptor()).collect();
    let changes = Changes::plan(&request.replace, &descriptors.replace, &own, &passing)?;
    let scratch = scratch()?;
    let plan = Plan { request, descriptors, changes, programs, scratch, tid_field };
    let parked = park::at_rest()?;
    let mut child = -1_i32;
    // SAFETY: the child runs on a copy of this stack and never returns from `run`; it makes system
    // calls only. The kernel writes one descriptor to `child`, in the zygote alone (clone(2),
    // `CLONE_PIDFD`).
    let pid = unsafe { libc::syscall(libc::SYS_clone, filter::FORK, 0, &raw mut child, 0, 0) };
    if pid == 0 {
        child::run(&plan, &parked);
    }
    if pid < 0 { Err(refused(errno())) } else { Ok(child) }
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
