//! Looks for what should not be there any more: processes, mounts, cgroups, sockets, folders and
//! files of ours.
//!
//! It looks at the host itself (`/proc`, `/sys/fs/cgroup`, the state roots), not through the
//! engine: what the engine does not know it has forgotten, it would not find.

use std::fmt;
use std::fs;
use std::ops::RangeInclusive;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use mayfly_host::layout::Layout;
use mayfly_snapshotter::Store;
use procfs::process::{ProcState, Process};

/// User ids of VMM processes of all engines on a host, unless configured otherwise.
pub const VMM_UIDS: RangeInclusive<u32> = 0x7000_0000..=0x70ff_ffff;
/// How temporary files and folders of ours begin that are not in a state root.
const TEMP_PREFIX: &str = "mayfly-";
/// How many letters and digits end their names, after a hyphen or a dot: as many as the `tempfile`
/// crate and mktemp(1), with the templates of the launcher, choose at random.
const TEMP_RANDOM: usize = 6;

/// Something that was left behind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leak {
    /// A process.
    Process {
        /// Process id.
        pid: i32,
        /// User id.
        uid: u32,
        /// Command line.
        line: String,
    },
    /// A mount point.
    Mount(PathBuf),
    /// A cgroup's folder.
    Cgroup(PathBuf),
    /// A socket, or an engine's folder below the runtime root.
    Runtime(PathBuf),
    /// A temporary file or folder.
    Temporary(PathBuf),
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid, uid, line } => write!(f, "process {pid} of user {uid}: {line}"),
            Self::Mount(path) => write!(f, "mount {}", path.display()),
            Self::Cgroup(path) => write!(f, "cgroup {}", path.display()),
            Self::Runtime(path) => write!(f, "runtime state {}", path.display()),
            Self::Temporary(path) => write!(f, "temporary file {}", path.display()),
        }
    }
}

/// Finds everything of ours on this host that outlived its owner. The pager of `layout` must have
/// been stopped, and nothing of ours be running.
pub fn of_host(layout: &Layout) -> Vec<Leak> {
    let mut leaks = processes(|p| is_ours(p, layout));
    leaks.extend(mounts(layout));
    leaks.extend(cgroups().into_iter().map(Leak::Cgroup));
    leaks.extend(entries(&layout.engines()).map(Leak::Runtime));
    leaks.extend(entries(layout.run()).filter(|path| is_socket(path)).map(Leak::Runtime));
    leaks.extend(unfinished(layout).map(Leak::Temporary));
    let shared = [std::env::temp_dir(), PathBuf::from("/dev/shm")];
    let ours = |path: &PathBuf| is_temporary(&name(path));
    leaks.extend(shared.iter().flat_map(|dir| entries(dir)).filter(ours).map(Leak::Temporary));
    leaks
}

/// Finds what the `mayfly` process `pid`, which has ended, left behind. Sees nothing of other
/// engines, but for the unfinished files and the mounts of a shared home.
pub fn of_engine(layout: &Layout, pid: u32) -> Vec<Leak> {
    let own_name = format!("{pid}-");
    let own_cgroup = format!("/mayfly/{own_name}");
    let mut leaks = processes(|p| {
        let mentioned = || p.line.contains(&*layout.home().to_string_lossy()) && p.name != "mayfly";
        p.cgroups.iter().any(|path| path.contains(&own_cgroup))
            || p.pid.cast_unsigned() == pid
            || mentioned()
    });
    leaks.extend(mounts(layout));
    leaks.extend(
        cgroups().into_iter().filter(|path| name(path).starts_with(&own_name)).map(Leak::Cgroup),
    );
    leaks.extend(
        entries(&layout.engines())
            .filter(|path| name(path).starts_with(&own_name))
            .map(Leak::Runtime),
    );
    leaks.extend(unfinished(layout).map(Leak::Temporary));
    leaks
}

/// Returns the process ids of the VMMs of the engine process `pid`.
pub fn vmms_of(pid: u32) -> Vec<u32> {
    let ours = procfs::process::all_processes().into_iter().flatten().flatten().filter(|process| {
        let parent = process.stat().is_ok_and(|stat| {
            stat.ppid.cast_unsigned() == pid && stat.state().ok() != Some(ProcState::Zombie)
        });
        parent && process.status().is_ok_and(|status| VMM_UIDS.contains(&status.ruid))
    });
    ours.map(|process| process.pid.cast_unsigned()).collect()
}

/// Returns those of [`vmms_of`] that are zygotes, the oldest first: unlike other VMMs they have the
/// user namespace of this host, in which they have no capability. One that was spawned a moment ago
/// may look so, too.
pub fn zygotes_of(pid: u32) -> Vec<u32> {
    let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/user")).ok();
    let own = namespace(std::process::id());
    let begun = |pid: u32| Process::new(pid.cast_signed()).ok()?.stat().ok().map(|s| s.starttime);
    let mut zygotes = vmms_of(pid);
    zygotes.retain(|vmm| own.is_some() && namespace(*vmm) == own);
    zygotes.sort_by_key(|zygote| begun(*zygote));
    zygotes
}

/// What is looked at of a process.
struct Seen {
    pid: i32,
    uid: u32,
    name: String,
    line: String,
    cgroups: Vec<String>,
    /// In a PID namespace of its own, as what keeps that of zygotes is.
    apart: bool,
}

impl Seen {
    /// `None` for a process that has ended meanwhile, or waits to be reaped by the host's own init.
    fn of(process: &Process) -> Option<Self> {
        let status = process.status().ok()?;
        if status.state.starts_with(['Z', 'X']) && status.ppid == 1 {
            return None;
        }
        let arguments = process.cmdline().unwrap_or_default();
        // The path of a replaced program ends in " (deleted)".
        let program =
            process.exe().map(|path| name(&path).trim_end_matches(" (deleted)").to_owned());
        let line = if arguments.is_empty() {
            format!("[{}] {}", status.name, status.state)
        } else {
            arguments.join(" ")
        };
        let cgroups = process
            .cgroups()
            .map(|groups| groups.into_iter().map(|group| group.pathname).collect());
        let name = program.unwrap_or(status.name);
        let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let apart = namespace(process.pid)
            .is_some_and(|of_it| Some(of_it) != namespace(std::process::id().cast_signed()));
        Some(Self {
            pid: process.pid,
            uid: status.ruid,
            name,
            line,
            cgroups: cgroups.unwrap_or_default(),
            apart,
        })
    }
}

fn processes(filter: impl Fn(&Seen) -> bool) -> Vec<Leak> {
    let own = std::process::id().cast_signed();
    let all = procfs::process::all_processes()
        .expect("/proc")
        .flatten()
        .filter(|process| process.pid != own);
    let seen = all.filter_map(|process| Seen::of(&process)).filter(|p| filter(p));
    seen.map(|Seen { pid, uid, line, .. }| Leak::Process { pid, uid, line }).collect()
}

fn is_ours(process: &Seen, layout: &Layout) -> bool {
    VMM_UIDS.contains(&process.uid)
        || process.name == "mayfly"
        || process.name.starts_with("qemu-system") && process.line.contains("name=mayfly.agent")
        || process.line == "sleep infinity" && process.apart
        || process.line.contains("mmdebstrap")
            && process.line.contains(&*layout.home().to_string_lossy())
}

fn mounts(layout: &Layout) -> impl Iterator<Item = Leak> {
    let (home, run) = (layout.home().to_owned(), layout.run().to_owned());
    let temporary = std::env::temp_dir();
    let all = Process::myself().and_then(|me| me.mountinfo()).expect("the mount table");
    let ours = move |path: &PathBuf| {
        let below = |root: &Path| path.starts_with(root) && path != root;
        below(&home)
            || below(&run)
            || path.strip_prefix(&temporary).is_ok_and(|rest| {
                rest.iter().next().is_some_and(|first| is_temporary(&first.to_string_lossy()))
            })
    };
    all.into_iter().map(|mount| mount.mount_point).filter(ours).map(Leak::Mount)
}

/// Whether something of ours made a temporary file of this name. A file such as `mayfly-test.log`
/// is somebody else's, most likely the output of the tests.
fn is_temporary(name: &str) -> bool {
    name.strip_prefix(TEMP_PREFIX).is_some_and(|rest| {
        let random = rest.rsplit(['-', '.']).next().unwrap_or_default();
        random.len() == TEMP_RANDOM && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

/// Folders below a root of ours in any hierarchy, cgroup v1 or v2, and whichever group an engine
/// was started in.
fn cgroups() -> Vec<PathBuf> {
    /// Deeper than any service manager's groups.
    const DEPTH: usize = 10;
    fn groups(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
        entries(dir).filter(|path| path.is_dir() && !path.is_symlink())
    }
    fn below(dir: &Path, depth: usize) -> Vec<PathBuf> {
        if name(dir) == mayfly_host::cgroup::ROOT {
            return groups(dir).collect();
        }
        if depth == 0 {
            Vec::new()
        } else {
            groups(dir).flat_map(|group| below(&group, depth - 1)).collect()
        }
    }
    below(Path::new("/sys/fs/cgroup"), DEPTH)
}

/// Files and folders of writers that did not finish: boot artifacts under way, disk files no golden
/// image refers to.
fn unfinished(layout: &Layout) -> impl Iterator<Item = PathBuf> {
    let builds =
        entries(&layout.images().join("rootfs")).filter(|path| name(path).starts_with(".tmp-"));
    let goldens = if layout.store().join("db").exists() {
        let store = Store::open_read_only(layout.store()).expect("a readable store");
        store.list().unwrap_or_default()
    } else {
        Vec::new()
    };
    let referred: Vec<String> = goldens.into_iter().flat_map(|m| m.labels.into_values()).collect();
    let known =
        move |path: &PathBuf| referred.iter().any(|label| name(path) == format!("{label}.qcow2"));
    builds.chain(entries(&layout.disks()).filter(move |path| !known(path)))
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let mut paths: Vec<_> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths.into_iter()
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket())
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
