use super::*;
use crate::cgroup::controller::Controller;
use crate::cgroup::place::Owner;
use crate::cgroup::testing::{Sleeper, V2Group, unique};
use crate::cgroup::{directories, disk, remove_tree};

fn subject(dir: &Path) -> Subject {
    Subject { guest_memory: 64 << 20, disk_dir: dir.to_owned() }
}

/// What the kernel has for a bound: the file of the group by its name of v1, or of v2.
fn bound(cgroup: &SessionCgroup, v1: &str, v2: &str) -> String {
    let name = if cgroup.version() == Version::V2 { v2 } else { v1 };
    let path = cgroup.folders().into_iter().map(|dir| dir.join(name)).find(|path| path.exists());
    let path = path.unwrap_or_else(|| panic!("no {name} in {:?}", cgroup.folders()));
    std::fs::read_to_string(&path).unwrap().trim().to_owned()
}

#[test]
#[ignore = "needs root"]
fn the_kernel_has_the_bounds_that_were_set_also_when_they_are_raised() {
    let dir = tempfile::tempdir().unwrap();
    let name = unique("bounds");
    let limits =
        |mib: u64| Limits { memory_bytes: Some(mib << 20), cpus: Some(0.5), ..Limits::default() };
    let cgroup = SessionCgroup::create(&name, &limits(100), subject(dir.path())).unwrap();
    for mib in [100, 200, 50] {
        cgroup.set(&limits(mib)).unwrap();
        let bytes = (mib << 20).to_string();
        assert_eq!(bound(&cgroup, "memory.limit_in_bytes", "memory.max"), bytes);
        if cgroup.bounds_swap() {
            let swap = bound(&cgroup, "memory.memsw.limit_in_bytes", "memory.swap.max");
            assert_eq!(swap, if cgroup.version() == Version::V2 { "0" } else { &*bytes });
        }
    }
    if cgroup.version() == Version::V2 {
        assert_eq!(bound(&cgroup, "", "memory.oom.group"), "1");
    }
    assert_eq!(bound(&cgroup, "pids.max", "pids.max"), "64");
    assert_eq!(bound(&cgroup, "cpu.cfs_quota_us", "cpu.max").split(' ').next(), Some("50000"));
    // A bound that is not wanted any more goes.
    cgroup.set(&Limits::default()).unwrap();
    assert!(["-1", "max 100000"].contains(&&*bound(&cgroup, "cpu.cfs_quota_us", "cpu.max")));
    let default = (64_u64 << 20) + crate::cgroup::VMM_OVERHEAD;
    assert_eq!(bound(&cgroup, "memory.limit_in_bytes", "memory.max"), default.to_string());
    cgroup.remove().unwrap();
    assert!(directories(&name).is_empty());
}

#[test]
#[ignore = "needs root"]
fn the_least_share_of_a_processor_is_what_the_kernel_takes() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { cpus: Some(0.001), ..Limits::default() };
    let cgroup = SessionCgroup::create(&unique("least"), &limits, subject(dir.path())).unwrap();
    assert_eq!(bound(&cgroup, "cpu.cfs_quota_us", "cpu.max").split(' ').next(), Some("1000"));
    cgroup.remove().unwrap();
}

#[test]
#[ignore = "needs root"]
fn background_work_is_idle_and_has_its_full_weight_when_it_becomes_a_session() {
    let dir = tempfile::tempdir().unwrap();
    let background = Limits { background: true, ..Limits::default() };
    let cgroup = SessionCgroup::create(&unique("idle"), &background, subject(dir.path())).unwrap();
    let weight = || bound(&cgroup, "cpu.shares", "cpu.weight");
    let has_idle = cgroup.folders().iter().any(|dir| dir.join("cpu.idle").exists());
    let idle = || if has_idle { bound(&cgroup, "cpu.idle", "cpu.idle") } else { String::new() };
    for _ in 0..2 {
        // Set again while it is idle already.
        cgroup.set(&background).unwrap();
        if has_idle {
            assert_eq!(idle(), "1");
        } else {
            assert!(["64", "6"].contains(&&*weight()));
        }
    }
    cgroup.set(&Limits::default()).unwrap();
    assert!(["0", ""].contains(&&*idle()));
    assert!(["1024", "100"].contains(&&*weight()), "{}", weight());
    cgroup.remove().unwrap();
}

#[test]
#[ignore = "needs root"]
fn disk_io_is_bounded_on_the_disk_that_holds_the_overlays_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let name = unique("io");
    let limits = Limits { io_bytes_per_second: Some(5 << 20), ..Limits::default() };
    match (disk::of(dir.path()), SessionCgroup::create(&name, &limits, subject(dir.path()))) {
        (Ok((major, minor)), Ok(cgroup)) => {
            let read = bound(&cgroup, "blkio.throttle.read_bps_device", "io.max");
            assert!(
                read.starts_with(&format!("{major}:{minor} "))
                    && read.contains(&(5 << 20).to_string()),
                "{read}"
            );
            let write = bound(&cgroup, "blkio.throttle.write_bps_device", "io.max");
            assert!(write.contains(&(5 << 20).to_string()), "{write}");
            cgroup.set(&Limits::default()).unwrap();
            assert_eq!(bound(&cgroup, "blkio.throttle.read_bps_device", "io.max"), "");
            cgroup.remove().unwrap();
        }
        (Err(CgroupError::NoDevice { .. }), Err(error)) => {
            assert!(error.to_string().contains("without a device"), "{error}");
        }
        (disk, made) => panic!("{disk:?}: {made:?}"),
    }
    assert!(directories(&name).is_empty());
}

#[test]
#[ignore = "needs root"]
fn a_host_without_io_lacks_that_bound_only_where_it_is_asked_for() {
    let Some(group) = V2Group::with_controllers("no-io") else { return };
    group.write("cgroup.subtree_control", "+memory +pids +cpu");
    let unit = group.dir().join("unit");
    std::fs::create_dir(&unit).unwrap();
    let place =
        Place(Kind::V2(crate::cgroup::place::Parent { dir: unit, ..group.parent(Owner::Unit) }));
    let dir = tempfile::tempdir().unwrap();
    SessionCgroup::create_at(&place, "engine/session", &Limits::default(), subject(dir.path()))
        .unwrap()
        .remove()
        .unwrap();
    let limits = Limits { io_bytes_per_second: Some(1), ..Limits::default() };
    let error = SessionCgroup::create_at(&place, "engine/session", &limits, subject(dir.path()))
        .unwrap_err();
    assert!(matches!(error, CgroupError::NoIo), "{error}");
    assert!(place.folders("engine/session").iter().all(|dir| !dir.exists()));
}

#[test]
#[ignore = "needs root"]
fn groups_that_lost_their_controllers_get_them_again() {
    let Some(group) = V2Group::with_controllers("again") else { return };
    let place = Place(Kind::V2(group.parent(Owner::Unit)));
    let dir = tempfile::tempdir().unwrap();
    for turned_off in [None, Some("mayfly/engine"), Some("mayfly"), Some("")] {
        if let Some(inner) = turned_off {
            // From below, as the kernel wants it.
            for inner in
                ["mayfly/engine", "mayfly", ""].iter().filter(|name| name.starts_with(inner))
            {
                std::fs::write(
                    group.dir().join(inner).join("cgroup.subtree_control"),
                    "-memory -pids -cpu",
                )
                .unwrap();
            }
        }
        let cgroup = SessionCgroup::create_at(
            &place,
            "engine/session",
            &Limits::default(),
            subject(dir.path()),
        )
        .unwrap();
        assert_eq!(bound(&cgroup, "", "pids.max"), "64");
        cgroup.remove().unwrap();
    }
    let on = Controller::named_in(&group.read("mayfly/engine/cgroup.subtree_control"));
    assert!(on.len() >= 3, "{on:?}");
}

#[test]
#[ignore = "needs root"]
fn what_still_lives_in_a_group_is_killed_when_it_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let name = unique("killed");
    for dropped in [false, true] {
        let cgroup = SessionCgroup::create(&name, &Limits::default(), subject(dir.path())).unwrap();
        let sleeper = Sleeper::start_in(&cgroup.folders()[0]);
        if dropped {
            drop(cgroup);
        } else {
            cgroup.remove().unwrap();
        }
        assert!(sleeper.was_killed());
        assert!(directories(&name).is_empty());
    }
}

/// Runs `work` in a thread of its own as the user nobody (the raw system call: that of libc would
/// change all threads).
fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: takes numbers and changes the calling thread only, which ends below.
            let changed = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
            assert_eq!(changed, 0);
            work()
        });
        thread.join().unwrap()
    })
}

#[test]
#[ignore = "needs root"]
fn without_the_right_to_make_groups_it_is_said_who_has_it() {
    let dir = tempfile::tempdir().unwrap();
    Place::of_this_process().unwrap().prepare().unwrap();
    let name = unique("nobody");
    let error = as_nobody(|| {
        SessionCgroup::create(&name, &Limits::default(), subject(dir.path())).unwrap_err()
    });
    let text = error.to_string();
    assert!(
        text.contains("Permission denied")
            && text.ends_with("run as root, in a container with --privileged"),
        "{text}"
    );
    assert!(directories(&name).is_empty());
}

#[test]
#[ignore = "needs root"]
fn cgroups_that_are_mounted_read_only_are_told_from_missing_rights() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::of_this_process().unwrap();
    place.prepare().unwrap();
    let name = unique("read-only");
    let error = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            use nix::mount::{MsFlags, mount};
            const NONE: Option<&str> = None;
            nix::sched::unshare(
                nix::sched::CloneFlags::CLONE_FS | nix::sched::CloneFlags::CLONE_NEWNS,
            )
            .unwrap();
            mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).unwrap();
            let points: Vec<PathBuf> = match &place.0 {
                Kind::V1(hierarchies) => {
                    hierarchies.iter().map(|(mount, _)| mount.point.clone()).collect()
                }
                Kind::V2(parent) => vec![parent.mount.point.clone()],
            };
            for point in points {
                let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
                mount(NONE, &point, NONE, flags, NONE).unwrap();
            }
            SessionCgroup::create(&name, &Limits::default(), subject(dir.path())).unwrap_err()
        });
        thread.join().unwrap()
    });
    let text = error.to_string();
    assert!(text.contains("Read-only file system") && text.contains("--privileged"), "{text}");
    assert!(directories(&name).is_empty());
}

#[test]
#[ignore = "needs root"]
fn an_engines_groups_go_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let engine = unique("engine");
    let make = |id: &str| {
        SessionCgroup::create(&format!("{engine}/{id}"), &Limits::default(), subject(dir.path()))
    };
    let (first, second) = (make("a").unwrap(), make("b").unwrap());
    first.remove().unwrap();
    let _left = std::mem::ManuallyDrop::new(second);
    assert!(!directories(&engine).is_empty());
    remove_tree(&engine).unwrap();
    assert!(directories(&engine).is_empty());
    remove_tree(&engine).unwrap();
}

#[test]
#[ignore = "needs root"]
fn what_is_written_to_a_file_of_a_group_counts_for_it_from_the_first_byte() {
    const LEN: usize = 1 << 20;
    let home = crate::layout::Layout::from_env();
    // Not every temporary folder is on a disk.
    let dir = tempfile::tempdir_in(home.home()).or_else(|_| tempfile::tempdir()).unwrap();
    let (cgroup, file) =
        SessionCgroup::create_with_file(&unique("file"), &Limits::default(), subject(dir.path()))
            .unwrap();
    let file = file.unwrap();
    assert_eq!(file.metadata().unwrap().len(), 0);
    io::Write::write_all(&mut &file, &vec![1; LEN]).unwrap();
    file.sync_all().unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    assert!(
        cgroup
            .unnamed_file(Path::new("/no/such/folder"))
            .is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
    );
    match (cgroup.version(), disk::of(dir.path())) {
        (Version::V2, Ok(_)) => {
            let stat = bound(&cgroup, "", "io.stat");
            let written = stat
                .split_whitespace()
                .filter_map(|word| word.strip_prefix("wbytes=")?.parse::<u64>().ok());
            assert!(written.sum::<u64>() >= LEN as u64, "{stat}");
        }
        _ => mayfly_skip::skip("the kernel of this host counts no write-back, or there is no disk"),
    }
    cgroup.remove().unwrap();
}
