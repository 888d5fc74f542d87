//! The last test of all: nothing of ours may be left on this host. The others here show that it can
//! fail.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::fs;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mayfly_chaos_tests::home::Home;
use mayfly_chaos_tests::leaks::{self, Leak, VMM_UIDS};
use mayfly_chaos_tests::program;
use mayfly_host::cgroup;
use mayfly_host::layout::Layout;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// One test at a time: what one plants the other must not find.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Undoes something when dropped, also when the test fails.
struct Planted<F: FnMut()>(F);

impl<F: FnMut()> Drop for Planted<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// A process that is killed when dropped.
struct Sleeper(Child);

impl Sleeper {
    fn start(mut command: Command) -> Self {
        Self(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }

    fn found(&self, layout: &Layout) -> bool {
        Self::is_found(layout, self.0.id().cast_signed())
    }

    fn child_found(&self, layout: &Layout) -> bool {
        let children = || {
            fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.0.id()))
                .unwrap_or_default()
        };
        let child = program::settle(children, |children| !children.is_empty());
        Self::is_found(layout, child.trim().parse().expect("one child"))
    }

    fn is_found(layout: &Layout, pid: i32) -> bool {
        // Between fork and exec it is still a copy of this test.
        program::settle(
            || {
                leaks::of_host(layout)
                    .iter()
                    .any(|leak| matches!(leak, Leak::Process { pid: p, .. } if *p == pid))
            },
            |found| *found,
        )
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn finds(layout: &Layout, leak: &Leak) -> bool {
    leaks::of_host(layout).contains(leak)
}

#[test]
fn a_process_of_a_vmm_user_is_found() {
    let (_alone, home) = (alone(), Home::empty());
    let mut command = Command::new("/bin/sleep");
    command.arg("1000").uid(*VMM_UIDS.start() + 77).gid(*VMM_UIDS.start() + 77);
    assert!(Sleeper::start(command).found(home.layout()));
}

#[test]
fn what_keeps_the_namespace_of_zygotes_is_found() {
    let (_alone, home) = (alone(), Home::empty());
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "sleep", "infinity"]);
    assert!(Sleeper::start(command).child_found(home.layout()));
}

#[test]
fn a_process_of_our_program_is_found_even_when_its_file_is_gone() {
    let (_alone, home) = (alone(), Home::empty());
    let program = home.layout().run().join("mayfly");
    fs::copy("/bin/sleep", &program).unwrap();
    let mut command = Command::new(&program);
    command.arg("1000");
    let sleeper = Sleeper::start(command);
    fs::remove_file(&program).unwrap();
    assert!(sleeper.found(home.layout()));
}

#[test]
fn a_vmm_without_its_own_user_is_found() {
    let (_alone, home) = (alone(), Home::empty());
    let program = home.layout().run().join("qemu-system-x86_64");
    fs::copy("/bin/sleep", &program).unwrap();
    let mut command = Command::new(&program);
    // sleep(1) takes its first argument as the time and would refuse the others.
    command.arg0("virtserialport,chardev=channel,name=mayfly.agent").arg("1000");
    assert!(Sleeper::start(command).found(home.layout()));
}

#[test]
fn a_cgroup_is_found() {
    let (_alone, home) = (alone(), Home::empty());
    // The name of a living engine, or an engine that is opened meanwhile would remove it as a
    // leftover.
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let begun = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap();
    let name = format!("{}-{begun}-9999", std::process::id());
    let root = Path::new("/sys/fs/cgroup");
    let hierarchy =
        if root.join("cgroup.controllers").exists() { root.to_owned() } else { root.join("pids") };
    let parent = hierarchy.join(cgroup::ROOT);
    let made_parent = fs::create_dir(&parent).is_ok();
    let dir = parent.join(name);
    fs::create_dir(&dir).unwrap();
    let planted = Planted(|| {
        let _ = fs::remove_dir(&dir);
        if made_parent {
            let _ = fs::remove_dir(&parent);
        }
    });
    let leak = Leak::Cgroup(dir.clone());
    assert!(finds(home.layout(), &leak));
    drop(planted);
    assert!(!finds(home.layout(), &leak));
}

#[test]
fn sockets_and_folders_of_engines_are_found() {
    let (_alone, home) = (alone(), Home::empty());
    let layout = home.layout();
    let socket = layout.run().join("left.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    assert!(finds(layout, &Leak::Runtime(socket.clone())));
    drop(listener);
    fs::remove_file(&socket).unwrap();
    let engine = layout.engines().join("1-1");
    fs::create_dir_all(&engine).unwrap();
    assert!(finds(layout, &Leak::Runtime(engine)));
    assert!(!finds(layout, &Leak::Runtime(socket)));
}

#[test]
fn a_mount_is_found() {
    let (_alone, home) = (alone(), Home::empty());
    let target = home.layout().home().join("mnt");
    fs::create_dir(&target).unwrap();
    mount(Some("none"), &target, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
    let planted = Planted(|| {
        let _ = umount2(&target, MntFlags::MNT_DETACH);
    });
    let leak = Leak::Mount(target.clone());
    assert!(finds(home.layout(), &leak));
    // Through another home's eyes, too: it is below the folder for temporary files.
    assert!(finds(&Layout::new("/nonexistent/home", "/nonexistent/run"), &leak));
    drop(planted);
    assert!(!finds(home.layout(), &leak));
}

#[test]
fn unfinished_files_are_found() {
    let (_alone, home) = (alone(), Home::empty());
    let layout = home.layout();
    let overlay = layout.disks().join(".tmpAbCdEf");
    let stale = layout.disks().join(format!("{}.qcow2", "0".repeat(64)));
    let build = layout.images().join("rootfs/.tmp-AbCdEf");
    fs::create_dir_all(layout.disks()).unwrap();
    fs::create_dir_all(&build).unwrap();
    for file in [&overlay, &stale] {
        fs::write(file, "x").unwrap();
    }
    let shared: Vec<PathBuf> = [std::env::temp_dir(), "/dev/shm".into()]
        .map(|dir| dir.join("mayfly-planted.AbC123"))
        .into();
    for file in &shared {
        fs::write(file, "x").unwrap();
    }
    let planted = Planted(|| {
        for file in &shared {
            let _ = fs::remove_file(file);
        }
    });
    for path in shared.iter().chain([&overlay, &stale, &build]) {
        assert!(finds(layout, &Leak::Temporary(path.clone())), "{}", path.display());
    }
    drop(planted);
}

#[test]
fn files_of_a_person_are_none_of_ours() {
    let (_alone, home) = (alone(), Home::empty());
    // Where the output of the tests may well go.
    let log = std::env::temp_dir().join(format!("mayfly-test-{}.log", std::process::id()));
    fs::write(&log, "x").unwrap();
    let planted = Planted(|| {
        let _ = fs::remove_file(&log);
    });
    assert!(!finds(home.layout(), &Leak::Temporary(log.clone())));
    drop(planted);
}

#[test]
#[ignore = "looks at the whole host: runs last, by ./mayfly test"]
fn nothing_of_ours_is_left_on_this_host() {
    let _alone = alone();
    let layout = Layout::from_env();
    let pager = mayfly_pager::client::PagerClient::new(layout.pager_socket());
    if let Ok(pong) = pager.ping() {
        assert_eq!(pong.sessions, 0, "sessions are still attached to the pager");
        pager.shutdown(false).unwrap();
    }
    // What ends by itself may take a moment.
    let left = program::settle(|| leaks::of_host(&layout), Vec::is_empty);
    let lines: Vec<String> = left.iter().map(ToString::to_string).collect();
    assert!(left.is_empty(), "left behind on this host:\n{}", lines.join("\n"));
}
