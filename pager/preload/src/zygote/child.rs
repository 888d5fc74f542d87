//! The forked child, before its threads go on: everything here is system calls, nothing allocates or takes a lock.

use std::os::fd::AsRawFd;

use seccompiler::BpfProgram;

use super::descriptors::Changes;
use super::park::{self, Parked};
use super::request::Request;
use super::{filter, revive};
use crate::die::{die, errno};
use crate::register;

/// Everything the child needs, made before the fork.
pub(super) struct Plan<'a> {
    pub request: Request,
    pub changes: Changes,
    pub programs: &'a [BpfProgram; 2],
    pub scratch: *mut u8,
    /// Where glibc keeps the id of the thread that forks.
    pub tid_field: *mut i32,
}

/// Becomes a VMM of its own: dies with its owner, enters its cgroups, takes its descriptors, memory and user, gives up all
/// privileges, and lets the threads go on.
pub(super) fn run(plan: &Plan<'_>, parked: &Parked) -> ! {
    let request = &plan.request;
    let failed = |what: &str| -> ! { die(what, errno()) };
    // SAFETY: plain system calls on the calling process, which has one thread.
    unsafe {
        // Its standard error first: what fails from here on is said there.
        if let Some((to, from)) = request.replace.iter().find(|(number, _)| *number == 2) {
            libc::dup3(from.as_raw_fd(), *to, 0);
        }
        for cgroup in &request.cgroups {
            if libc::write(cgroup.as_raw_fd(), c"0".as_ptr().cast(), 1) != 1 {
                failed("cannot enter the session's cgroup");
            }
        }
        libc::setpgid(0, 0);
    }
    // Before the changes: their last ones close what the request brought.
    register::again(request.uffd_device.as_raw_fd(), request.handshake.as_raw_fd());
    plan.changes.apply();
    for cgroup in &request.cgroups {
        // SAFETY: closes a descriptor of the child's own table that nothing uses any more; the owner object is never dropped.
        unsafe { libc::close(cgroup.as_raw_fd()) };
    }
    // SAFETY: the device has done its work; as above.
    unsafe { libc::close(request.uffd_device.as_raw_fd()) };
    drop_privileges(request.uid, request.owner);
    if !plan.programs.iter().all(filter::install) {
        failed("cannot install the seccomp filter");
    }
    // SAFETY: the field was checked in the zygote; this thread is the copy of the one that forked, under a new id. The
    // threads of `parked` exist no more in this process but for their memory.
    unsafe {
        plan.tid_field.write_volatile(park::own_tid() as i32);
        revive::all(parked, plan.scratch);
        loop {
            libc::pause();
        }
    }
}

fn drop_privileges(uid: u32, owner: i32) {
    /// `struct __user_cap_header_struct` and two `__user_cap_data_struct` (capget(2)), version 3.
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let header = Header { version: 0x2008_0522, pid: 0 };
    let none = [0_u32; 6];
    // The raw system calls: libc's would tell all threads to do the same, and there are none.
    // SAFETY: plain system calls; setgroups reads no entry, capset reads the two structs above.
    unsafe {
        let steps = [
            libc::syscall(libc::SYS_setgroups, 0, 0),
            libc::syscall(libc::SYS_setresgid, uid, uid, uid),
            libc::syscall(libc::SYS_setresuid, uid, uid, uid),
            i64::from(libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)),
            libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()),
            i64::from(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)),
            // After setresuid, which clears it (prctl(2)).
            i64::from(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL)),
            i64::from(libc::prctl(libc::PR_SET_DUMPABLE, 0)),
        ];
        if steps.iter().any(|result| *result != 0) {
            die("cannot give up privileges", errno());
        }
        if libc::getppid() != owner {
            die("the owner is gone", 0);
        }
    }
}
