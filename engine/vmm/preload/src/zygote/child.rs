//! The forked child, before its threads go on: everything here is system calls, nothing allocates or takes a lock.

use std::os::fd::AsRawFd;

use super::descriptors::Changes;
use super::park::{self, Parked};
use super::request::Request;
use super::revive;
use crate::die::{die, errno};
use crate::filter::{self, Programs};
use crate::register;

/// An empty folder in the root of a zygote; where there is none the zygote was not confined.
const VOID: &std::ffi::CStr = c"/void";

/// Everything the child needs, made before the fork.
pub(super) struct Plan<'a> {
    pub request: Request,
    pub changes: Changes,
    pub programs: &'a Programs,
    pub scratch: *mut u8,
    /// Where glibc keeps the id of the thread that forks.
    pub tid_field: *mut i32,
}

/// Becomes a VMM of its own: dies with its owner, enters its cgroups, takes its descriptors, memory, user and root, gives up
/// all privileges, and lets the threads go on.
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
        libc::setsid();
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
    become_user(request);
    leave_root();
    drop_privileges(request);
    if !filter::install(plan.programs, false) {
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

/// Waits until the owner has said who this process is in its user namespace (user_namespaces(7)), and becomes that user.
fn become_user(request: &Request) {
    let (gate, uid) = (request.gate.as_raw_fd(), request.uid);
    let mut byte = 0_u8;
    // The raw system calls: libc's would tell all threads to do the same, and there are none.
    // SAFETY: read fills one byte that outlives the call; setgroups reads no entry; the descriptor is not used any more.
    unsafe {
        if libc::read(gate, (&raw mut byte).cast(), 1) != 1 {
            die("the owner is gone", 0);
        }
        libc::close(gate);
        let steps = [
            libc::syscall(libc::SYS_setgroups, 0, 0),
            libc::syscall(libc::SYS_setresgid, uid, uid, uid),
            libc::syscall(libc::SYS_setresuid, uid, uid, uid),
        ];
        if steps.iter().any(|result| *result != 0) {
            die("cannot become the session's user", errno());
        }
    }
}

/// Makes an empty folder the root, and lets go of everything else: all that a VMM needs is open. The calls of mount(2)
/// itself are denied by QEMU's sandbox.
fn leave_root() {
    // SAFETY: plain system calls on the calling process; strings are static and NUL-terminated.
    unsafe {
        let empty = c"".as_ptr();
        let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
        let tree = libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, VOID.as_ptr(), flags);
        let done = tree >= 0
            && libc::syscall(
                libc::SYS_move_mount,
                tree,
                empty,
                libc::AT_FDCWD,
                VOID.as_ptr(),
                libc::MOVE_MOUNT_F_EMPTY_PATH,
            ) == 0
            && libc::chdir(VOID.as_ptr()) == 0
            && libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) == 0
            && libc::umount2(c".".as_ptr(), libc::MNT_DETACH) == 0
            && libc::chdir(c"/".as_ptr()) == 0;
        if !done {
            die("cannot take an empty root directory", errno());
        }
        libc::close(tree as i32);
    }
}

fn drop_privileges(request: &Request) {
    /// `struct __user_cap_header_struct` and two `__user_cap_data_struct` (capget(2)), version 3.
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let header = Header { version: 0x2008_0522, pid: 0 };
    let none = [0_u32; 6];
    let mut owner = libc::pollfd { fd: request.owner.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: plain system calls; capset reads the two structs above, poll and setrlimit one that outlives the call.
    unsafe {
        // Up to the first number the kernel does not know.
        let dropped = (0..64).take_while(|cap| libc::prctl(libc::PR_CAPBSET_DROP, *cap as libc::c_ulong, 0, 0, 0) == 0);
        if dropped.count() == 0 {
            die("cannot empty the capability bounding set", errno());
        }
        let steps = [
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
        for (resource, most) in [(libc::RLIMIT_FSIZE, request.bounds.0), (libc::RLIMIT_NPROC, request.bounds.1)] {
            let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
            if libc::setrlimit(resource, &raw const limit) != 0 {
                die("cannot bound the fork", errno());
            }
        }
        // The owner may have died before it was asked for.
        if libc::poll(&raw mut owner, 1, 0) != 0 {
            die("the owner is gone", 0);
        }
        libc::close(owner.fd);
    }
}
