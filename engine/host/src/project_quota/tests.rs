use std::os::unix::fs::FileExt;
use std::process::Command;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::*;
use crate::cgroup::unnamed_file;

/// A project that no VMM has: below every range of user ids.
const ID: u32 = 60_001;

const EXT4: &[&str] = &["mkfs.ext4", "-q", "-O", "quota,project"];
/// XFS counts projects without being told at its making.
const XFS: &[&str] = &["mkfs.xfs", "-q"];

/// A file system on a loop device. Unmounted when dropped.
struct Mounted(tempfile::TempDir);

impl Mounted {
    /// `Err` says what this host lacks.
    fn new(make: &[&str], options: &str) -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        File::create(&image).unwrap().set_len(320 << 20).unwrap();
        std::fs::create_dir(dir.path().join("mount")).unwrap();
        let run = |program: &str, args: &[&str]| {
            let output = Command::new(program).args(args).output();
            let output = output.map_err(|error| format!("{program}: {error}"))?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if output.status.success() { Ok(()) } else { Err(format!("{program}: {said}")) }
        };
        let image = image.to_str().unwrap();
        let this = Self(dir);
        run(make[0], &[&make[1..], &[image]].concat())?;
        run("mount", &["-o", options, image, this.path().to_str().unwrap()])?;
        Ok(this)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("mount")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = nix::mount::umount(&self.path());
    }
}

/// What a process without capabilities gets from `work`, which makes system calls only.
fn as_nobody(work: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child makes system calls only and ends by _exit; setresuid(2) with a raw call
    // concerns its one thread.
    match unsafe { fork() }.unwrap() {
        // SAFETY: takes numbers, and never returns.
        ForkResult::Child => unsafe {
            libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534);
            libc::_exit(work())
        },
        ForkResult::Parent { child } => match waitpid(child, None).unwrap() {
            WaitStatus::Exited(_, code) => code,
            other => panic!("{other:?}"),
        },
    }
}

fn errno_of(result: i32) -> i32 {
    if result == 0 { 0 } else { nix::errno::Errno::last_raw() }
}

#[test]
#[ignore = "needs root"]
fn a_bounded_file_takes_no_more_space_by_whatever_call() {
    for make in [EXT4, XFS] {
        match Mounted::new(make, "loop,prjquota") {
            Ok(mounted) => takes_no_more(&mounted),
            Err(lacking) => mayfly_skip::skip(format!("no project quotas: {lacking}")),
        }
    }
}

fn takes_no_more(mounted: &Mounted) {
    let dir = mounted.path();
    check(&dir).unwrap();
    let (file, free) = (unnamed_file(&dir).unwrap(), unnamed_file(&dir).unwrap());
    join(&file, ID, 4 << 20).unwrap();
    let allocate = |file: &File, mode: i32, bytes: i64| {
        let number = file.as_raw_fd();
        // SAFETY: fallocate(2) takes numbers.
        as_nobody(move || errno_of(unsafe { libc::fallocate(number, mode, 0, bytes) }))
    };
    let keep = libc::FALLOC_FL_KEEP_SIZE;
    // All of a file of the size that was asked for fits, and not much more.
    assert_eq!(allocate(&file, 0, 4 << 20), 0);
    // XFS says that of a project as of a disk.
    let refused = allocate(&file, keep, 16 << 20);
    assert!([libc::EDQUOT, libc::ENOSPC].contains(&refused), "{refused}");
    // The control: another file of the same file system, without a project.
    assert_eq!(allocate(&free, keep, 16 << 20), 0);
    let (space, most) = used(&file, ID).unwrap();
    assert!(space >= 4 << 20 && space <= most && most < 6 << 20, "{space} of {most}");
    // Whoever has the file open for writing cannot take it out of its project.
    let number = file.as_raw_fd();
    let left = as_nobody(move || {
        let mut attributes = Attributes::default();
        // SAFETY: the kernel writes and reads one struct that outlives the calls.
        unsafe {
            if get_attributes(number, &raw mut attributes).is_err() {
                return 99;
            }
            attributes.project = 0;
            set_attributes(number, &raw const attributes).map_or_else(|errno| errno as i32, |_| 0)
        }
    });
    assert!([libc::EPERM, libc::EACCES].contains(&left), "{left}");
    // A larger limit holds at once, and without one the file system forgets the project.
    limit(&file, ID, 32 << 20).unwrap();
    assert_eq!(allocate(&file, keep, 16 << 20), 0);
    lift(&file, ID).unwrap();
    assert_eq!(used(&file, ID).unwrap().1, 0);
}

#[test]
#[ignore = "needs root"]
fn limits_that_are_not_enforced_are_none() {
    for (make, options) in
        [(EXT4, "loop"), (&["mkfs.ext4", "-q", "-O", "^quota"][..], "loop"), (XFS, "loop")]
    {
        let mounted = match Mounted::new(make, options) {
            Ok(mounted) => mounted,
            Err(lacking) => {
                mayfly_skip::skip(lacking);
                continue;
            }
        };
        let refused = check(&mounted.path()).unwrap_err();
        assert!(matches!(refused, NoProjectQuota::NotEnforced { .. }), "{refused}");
    }
}

#[test]
fn a_file_system_without_projects_says_so_and_a_missing_folder_is_named() {
    let shm = Path::new("/dev/shm");
    let refused = check(shm).unwrap_err();
    assert!(matches!(refused, NoProjectQuota::NotEnforced { cause: Some(_), .. }), "{refused}");
    let missing = check(Path::new("/no/such/folder")).unwrap_err().to_string();
    assert!(missing.contains("/no/such/folder"), "{missing}");
    // A file without a project has no quota to tell of.
    let file = unnamed_file(shm).unwrap();
    file.write_all_at(&[1], 0).unwrap();
    used(&file, ID).unwrap_err();
}
