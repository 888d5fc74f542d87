//! The forked child, before its threads go on: everything here is system calls, nothing allocates
//! or takes a lock.

use std::os::fd::{AsRawFd, OwnedFd};

use mayfly_vmm_contract::EMPTY_FOLDER;
use mayfly_vmm_contract::confine::{
    MAX_OPEN_FILES, Rlimits, Step, confine, enter_cgroups, take_cores,
};
use mayfly_vmm_contract::fork::{ForkDescriptors, ForkRequest};

use super::descriptors::Changes;
use super::park::{self, Parked};
use super::revive;
use crate::confine::hardening;
use crate::die::{die, die_saying, errno};
use crate::filter::{self, Programs};
use crate::register;

/// Everything the child needs, made before the fork.
pub(super) struct Plan<'a> {
    pub request: ForkRequest,
    pub descriptors: ForkDescriptors<OwnedFd>,
    pub changes: Changes,
    pub programs: &'a Programs,
    pub scratch: *mut u8,
    /// Address at which glibc keeps the id of the thread that forks.
    pub tid_field: *mut i32,
}

/// Becomes a VMM of its own: dies with its owner, enters its cgroups, takes its descriptors,
/// memory, user and root, gives up all privileges, and lets the threads go on.
pub(super) fn run(plan: &Plan<'_>, parked: &Parked) -> ! {
    let Plan { request, descriptors, .. } = plan;
    // Its standard error first: what fails from here on is said there.
    let mut replaced = request.replace.iter().zip(&descriptors.replace);
    if let Some((to, from)) = replaced.find(|(number, _)| **number == libc::STDERR_FILENO) {
        // SAFETY: both are descriptors of the calling process.
        unsafe { libc::dup3(from.as_raw_fd(), *to, 0) };
    }
    enter_cgroups(descriptors.cgroups.iter().map(AsRawFd::as_raw_fd))
        .unwrap_or_else(|failed| refuse(&failed));
    // SAFETY: takes nothing. A just forked child leads no process group, so that it cannot fail.
    unsafe { libc::setsid() };
    // Before the changes: their last ones close what the request brought.
    register::again(
        descriptors.userfaultfd_device.as_raw_fd(),
        descriptors.handshake.as_raw_fd(),
        descriptors.gate.as_raw_fd(),
    );
    plan.changes.apply();
    for done in descriptors.cgroups.iter().chain([&descriptors.userfaultfd_device]) {
        // SAFETY: closes a descriptor of the child's own table that nothing uses any more; the
        // owner object is never dropped.
        unsafe { libc::close(done.as_raw_fd()) };
    }
    wait_for_user(descriptors.gate.as_raw_fd());
    leave_root();
    if hardening().own_cores {
        // Not the zygote's, which it has inherited.
        take_cores().unwrap_or_else(|failed| refuse(&failed));
    }
    let rlimits = Rlimits {
        file_bytes: request.file_bytes,
        threads: request.threads,
        open_files: MAX_OPEN_FILES,
    };
    let owner = descriptors.owner.as_raw_fd();
    confine(Some(rlimits), Some(request.uid), owner).unwrap_or_else(|failed| refuse(&failed));
    // SAFETY: prctl takes numbers; the descriptor is not used any more.
    unsafe {
        // Other processes of its user, should there be any, may not look into it.
        if libc::prctl(libc::PR_SET_DUMPABLE, 0) != 0 {
            die("cannot give up privileges", errno());
        }
        libc::close(owner);
    }
    if !filter::install(plan.programs, false) {
        die("cannot install the seccomp filter", errno());
    }
    // SAFETY: the field was checked in the zygote; this thread is the copy of the one that forked,
    // under a new id. The threads of `parked` exist no more in this process but for their memory.
    unsafe {
        plan.tid_field.write_volatile(park::own_tid().cast_signed());
        revive::all(parked, plan.scratch);
        loop {
            libc::pause();
        }
    }
}

fn refuse((step, error): &(Step, std::io::Error)) -> ! {
    match (step, error.raw_os_error()) {
        (Step::Owner, Some(libc::ESRCH)) => die("the owner is gone", 0),
        (step, errno) => die_saying(&[b"cannot ", step.what().as_bytes()], errno.unwrap_or(0)),
    }
}

/// Waits until the owner has said who this process is in its user namespace (user_namespaces(7)).
fn wait_for_user(gate: i32) {
    let mut byte = 0_u8;
    // SAFETY: read fills one byte that outlives the call; the descriptor is not used any more.
    unsafe {
        if libc::read(gate, (&raw mut byte).cast(), 1) != 1 {
            die("the owner is gone", 0);
        }
        libc::close(gate);
    }
}

/// Makes an empty folder the root, and lets go of everything else: all that a VMM needs is open.
/// The calls of mount(2) itself are denied by QEMU's sandbox.
#[expect(clippy::cast_possible_truncation, reason = "a descriptor is an int")]
fn leave_root() {
    // SAFETY: plain system calls on the calling process; strings are static and NUL-terminated.
    unsafe {
        let empty = c"".as_ptr();
        let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
        let tree = libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, EMPTY_FOLDER.as_ptr(), flags);
        let done = tree >= 0
            && libc::syscall(
                libc::SYS_move_mount,
                tree,
                empty,
                libc::AT_FDCWD,
                EMPTY_FOLDER.as_ptr(),
                libc::MOVE_MOUNT_F_EMPTY_PATH,
            ) == 0
            && libc::chdir(EMPTY_FOLDER.as_ptr()) == 0
            && libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) == 0
            && libc::umount2(c".".as_ptr(), libc::MNT_DETACH) == 0
            && libc::chdir(c"/".as_ptr()) == 0;
        if !done {
            die("cannot take an empty root directory", errno());
        }
        libc::close(tree as i32);
    }
}
