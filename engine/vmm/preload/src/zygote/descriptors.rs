//! Descriptors of a zygote that its child must not share, and what it has in their place.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use crate::die::{die, errno};

/// One change of the child's descriptor table.
enum Change {
    /// Number `to` becomes a duplicate of `from`, with the status flags it had.
    Duplicate { from: i32, to: i32 },
    /// Number `at` becomes an eventfd of its own: a shared one would wake relatives.
    Eventfd { at: i32, flags: i32, count: u32 },
    /// The number becomes an epoll descriptor of its own, which watches nothing.
    Epoll(i32),
    /// Number `at` becomes a signalfd of its own, for the signals of `mask`.
    Signalfd { at: i32, flags: i32, mask: u64 },
    /// The number becomes a `/dev/null` of its own.
    Null(i32),
    /// Closed.
    Close(i32),
}

/// All changes, worked out before the fork: the child must not allocate.
pub(super) struct Changes(Vec<Change>);

impl Changes {
    /// Plans what to replace: `replace` has a number for each file of `with`; every descriptor of
    /// the same open file as that number is replaced. What is neither replaced nor in `close` the
    /// child has anew, or there is no fork: an open file description in common would let relatives
    /// change its offset and status flags for each other.
    ///
    /// `passing` are the numbers of descriptors that came for this fork alone.
    pub fn plan(
        replace: &[i32],
        with: &[OwnedFd],
        close: &[i32],
        passing: &[i32],
    ) -> Result<Self, &'static str> {
        let mut changes = Vec::new();
        let entries =
            std::fs::read_dir("/proc/self/fd").map_err(|_| "cannot list the descriptors")?;
        let numbers: Vec<i32> =
            entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
        let given: Vec<i32> = with.iter().map(AsRawFd::as_raw_fd).collect();
        let mut done: Vec<i32> = passing.iter().chain(close).chain(&given).copied().collect();
        for (old, new) in replace.iter().zip(with) {
            let identity =
                crate::config::identity(*old).ok_or("a descriptor to replace is not open")?;
            let same = numbers
                .iter()
                .filter(|n| !given.contains(n) && crate::config::identity(**n) == Some(identity));
            done.extend(same.clone());
            changes.extend(same.map(|to| Change::Duplicate { from: new.as_raw_fd(), to: *to }));
        }
        for &number in numbers.iter().filter(|number| !done.contains(number)) {
            let Ok(target) = std::fs::read_link(format!("/proc/self/fd/{number}")) else {
                // The folder that was listed.
                continue;
            };
            match target.to_str() {
                Some("anon_inode:[eventfd]") => changes.push(eventfd(number)?),
                Some("anon_inode:[signalfd]") => changes.push(signalfd(number)?),
                _ if is_null(number) => changes.push(Change::Null(number)),
                // Where the host forbids io_uring QEMU makes one, and does not use it.
                Some("anon_inode:[eventpoll]") if watches_nothing(number) => {
                    changes.push(Change::Epoll(number));
                }
                Some(
                    "anon_inode:[eventpoll]" | "anon_inode:[io_uring]" | "anon_inode:[timerfd]",
                ) => {
                    return Err(
                        "the VMM has an epoll, io_uring or timer descriptor, which a fork would share",
                    );
                }
                _ => return Err("the VMM has a descriptor that a fork would share"),
            }
        }
        changes.extend(close.iter().chain(&given).map(|n| Change::Close(*n)));
        Ok(Self(changes))
    }

    /// Makes the changes; in the child. Ends it when one fails.
    #[expect(clippy::cast_possible_truncation, reason = "a descriptor is an int")]
    pub fn apply(&self) {
        for change in &self.0 {
            // SAFETY: system calls on numbers of the child's own table.
            let failed = unsafe {
                match *change {
                    Change::Duplicate { from, to } => {
                        let flags = libc::fcntl(to, libc::F_GETFL);
                        libc::fcntl(from, libc::F_SETFL, flags) < 0
                            || libc::dup3(from, to, libc::O_CLOEXEC) < 0
                    }
                    Change::Eventfd { at, flags, count } => {
                        let new = libc::eventfd(count, flags);
                        new < 0 || libc::dup3(new, at, libc::O_CLOEXEC) < 0 || libc::close(new) < 0
                    }
                    Change::Epoll(at) => {
                        let new = libc::epoll_create1(libc::EPOLL_CLOEXEC);
                        new < 0 || libc::dup3(new, at, libc::O_CLOEXEC) < 0 || libc::close(new) < 0
                    }
                    Change::Signalfd { at, flags, ref mask } => {
                        let (mask, size) = (std::ptr::from_ref(mask), size_of::<u64>());
                        let new = libc::syscall(libc::SYS_signalfd4, -1, mask, size, flags) as i32;
                        new < 0 || libc::dup3(new, at, libc::O_CLOEXEC) < 0 || libc::close(new) < 0
                    }
                    Change::Null(at) => !crate::register::null_at(at),
                    Change::Close(number) => {
                        libc::close(number);
                        false
                    }
                }
            };
            if failed {
                die("cannot give the forked VMM its own descriptors", errno());
            }
        }
    }
}

/// Whether an epoll descriptor has no target (proc_pid_fdinfo(5), `tfd`).
fn watches_nothing(at: i32) -> bool {
    std::fs::read_to_string(format!("/proc/self/fdinfo/{at}"))
        .is_ok_and(|info| !info.contains("tfd:"))
}

/// Whether a descriptor is an open `/dev/null`: device 1, 3 (null(4)).
fn is_null(at: i32) -> bool {
    std::fs::metadata(format!("/proc/self/fd/{at}")).is_ok_and(|found| {
        found.file_type().is_char_device() && found.rdev() == libc::makedev(1, 3)
    })
}

/// A signalfd like number `at`.
fn signalfd(at: i32) -> Result<Change, &'static str> {
    let mask = told(at, "sigmask:").ok_or("cannot read the signals of a signalfd")?;
    let flags = nonblocking(at, libc::SFD_NONBLOCK) | libc::SFD_CLOEXEC;
    Ok(Change::Signalfd { at, flags, mask })
}

/// An eventfd like number `at`, with its count.
fn eventfd(at: i32) -> Result<Change, &'static str> {
    let count = told(at, "eventfd-count:").and_then(|count| count.try_into().ok());
    let count = count.ok_or("cannot read an eventfd's count")?;
    let flags = nonblocking(at, libc::EFD_NONBLOCK) | libc::EFD_CLOEXEC;
    Ok(Change::Eventfd { at, flags, count })
}

/// What the kernel tells of number `at` under `key`: a hexadecimal number (proc_pid_fdinfo(5)).
fn told(at: i32, key: &str) -> Option<u64> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{at}")).ok()?;
    let text = info.lines().find_map(|line| line.strip_prefix(key))?;
    u64::from_str_radix(text.trim(), 16).ok()
}

/// `flag` where number `at` does not block.
fn nonblocking(at: i32, flag: i32) -> i32 {
    // SAFETY: queries flags of a descriptor.
    let status = unsafe { libc::fcntl(at, libc::F_GETFL) };
    if status & libc::O_NONBLOCK != 0 { flag } else { 0 }
}
