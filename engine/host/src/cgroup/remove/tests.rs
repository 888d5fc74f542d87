use std::process::Command;

use super::*;
use crate::cgroup::testing::{Sleeper, V2Group, unique};
use crate::cgroup::{Place, Version};

#[test]
#[ignore = "needs root"]
fn a_tree_is_killed_and_removed_whatever_forks_in_it() {
    let Some(group) = V2Group::make("tree") else { return };
    let inner = group.dir().join("engine/session");
    std::fs::create_dir_all(&inner).unwrap();
    let sleeper = Sleeper::start_in(&inner);
    // Its children come and go all the time.
    let script = "echo $$ > \"$0/cgroup.procs\"; while :; do sleep 0.001 & wait; done";
    let mut forker = Command::new("sh").args(["-c", script]).arg(&inner).spawn().unwrap();
    while processes(group.dir()).unwrap().len() < 2 {
        std::thread::sleep(PAUSE);
    }
    let folder = group.dir().join("engine");
    let cleared = clear(std::slice::from_ref(&folder)).unwrap();
    assert_eq!(cleared.groups, 1);
    assert!(cleared.processes >= 2, "{cleared:?}");
    assert!(!folder.exists());
    assert!(sleeper.was_killed());
    assert!(!forker.wait().unwrap().success());
}

#[test]
fn what_is_not_there_needs_no_removal() {
    assert_eq!(clear(&["/sys/fs/cgroup/no-such-group".into()]).unwrap(), Cleared::default());
    assert_eq!(clear(&[]).unwrap(), Cleared::default());
}

#[test]
#[ignore = "needs root"]
fn on_v1_members_are_killed_one_by_one() {
    let place = Place::of_this_process().unwrap();
    if place.version() != Version::V1 {
        mayfly_skip::skip("this host has no controllers on cgroup v1");
        return;
    }
    let folders = place.folders(&unique("members"));
    folders.iter().for_each(|dir| std::fs::create_dir_all(dir.join("session")).unwrap());
    let sleepers = [Sleeper::start_in(&folders[0]), Sleeper::start_in(&folders[1].join("session"))];
    let cleared = clear(&folders).unwrap();
    assert_eq!(cleared, Cleared { groups: 1, processes: 2 });
    assert!(sleepers.into_iter().all(Sleeper::was_killed));
    assert!(folders.iter().all(|dir| !dir.exists()));
}

#[test]
#[ignore = "needs root"]
fn processes_of_a_neighbouring_pid_namespace_are_left_alone() {
    let Some(group) = V2Group::make("neighbour") else { return };
    let sleeper = Sleeper::start_in(group.dir());
    // As seen from a PID namespace that the sleeper is not in, it has no number.
    let script = r#"mount -t proc none /proc && cat "$0/cgroup.procs""#;
    let seen = Command::new("unshare")
        .args(["--pid", "--fork", "--mount", "sh", "-c", script])
        .arg(group.dir())
        .output();
    let seen = seen.unwrap();
    assert_eq!(String::from_utf8_lossy(&seen.stdout), "0\n", "{seen:?}");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("cgroup.procs"), &seen.stdout).unwrap();
    let error = clear(&[folder.path().to_owned()]).unwrap_err();
    assert!(error.to_string().contains("another PID namespace"), "{error}");
    drop(sleeper);
}
