//! Hosts that lack something: how a program of this host is made to run on one.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::home::{Home, program_path};
use crate::program::Program;

/// Fault of `/dev/kvm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kvm {
    /// The device is missing.
    Missing,
    /// The device is on a file system on which devices must not be opened (mount(2), `MS_NODEV`).
    Forbidden,
    /// The device has the number of a driver that does not exist.
    Dead,
}

/// Makes a `/dev` with what programs need, and the `kvm` that is wanted, in a mount namespace of
/// its own.
const SCRIPT: &str = r#"set -e
mount -t tmpfs -o "mode=0755,$2" none "$1"
for device in null zero full random urandom tty userfaultfd; do
    touch "$1/$device"
    mount --bind "/dev/$device" "$1/$device"
done
[ -z "$3" ] || mknod "$1/kvm" c 10 "$3"
mount --move "$1" /dev
shift 3
exec "$@""#;

/// Creates a run of the `mayfly` program with the roots of `home`, where `/dev/kvm` is not as it
/// should be. It needs unshare(1).
pub fn with_kvm(home: &Home, kvm: Kvm, args: &[&str]) -> Program {
    let at = home.layout().run().join("dev");
    std::fs::create_dir_all(&at).expect("a folder");
    // Minor numbers of misc devices: that of KVM, and the last before the dynamic ones, which Linux
    // gives to none (include/linux/miscdevice.h).
    let (options, minor) = match kvm {
        Kvm::Missing => ("dev", ""),
        Kvm::Forbidden => ("nodev", "232"),
        Kvm::Dead => ("dev", "254"),
    };
    let (at, program) = (at.display().to_string(), program_path().display().to_string());
    let own = [
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        SCRIPT,
        "sh",
        &at,
        options,
        minor,
        &program,
    ];
    home.program(Path::new("unshare"), own.into_iter().chain(args.iter().copied()))
}

/// Has the kernel refuse user namespaces to a program and all that it starts, as the seccomp
/// profiles of container runtimes do.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a filter has 16 bits for a code and 32 for the number of a call, and few steps"
)]
pub fn refuse_user_namespaces(command: &mut Command) {
    // struct sock_filter of <linux/filter.h>; struct seccomp_data has the number of the call at 0
    // and its first argument at 16.
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const HAS: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut steps = [
        step(LOAD, 0, 0, 0),
        step(EQUAL, 1, 0, libc::SYS_unshare as u32),
        step(EQUAL, 0, 2, libc::SYS_clone as u32),
        step(LOAD, 0, 0, 16),
        step(HAS, 1, 0, libc::CLONE_NEWUSER as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
    ];
    // SAFETY: the closure runs between fork and exec and makes one system call, which copies the
    // filter (seccomp(2)). Root needs no `no_new_privs` for it.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
            match libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
}
