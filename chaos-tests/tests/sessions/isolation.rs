//! Tests of what sessions of one golden image share, and what they must not.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::SystemTime;

use mayfly_chaos_tests::leaks::VMM_UIDS;
use mayfly_chaos_tests::{program, slots};

use crate::support::{engine, sh, start};

#[tokio::test(flavor = "multi_thread")]
async fn restored_siblings_are_different_machines_with_the_right_clock() {
    let (engine, golden) = engine().await;
    let _slots = slots::take(2);
    let (a, b) = tokio::join!(start(&engine, &golden), start(&engine, &golden));
    let script = "head -c 32 /dev/urandom | sha256sum; cat /etc/machine-id; hostname; cat /proc/sys/kernel/random/boot_id";
    let (of_a, of_b) = tokio::join!(sh(&a, script), sh(&b, script));
    let (of_a, of_b): (Vec<_>, Vec<_>) = (of_a.lines().collect(), of_b.lines().collect());
    assert_eq!((of_a.len(), of_b.len()), (4, 4), "{of_a:?} {of_b:?}");
    for (what, (x, y)) in
        ["random bytes", "machine id", "host name", "boot id"].iter().zip(of_a.iter().zip(&of_b))
    {
        assert!(!x.is_empty() && x != y, "the same {what} in two sessions: {x}");
    }
    for session in [&a, &b] {
        let now =
            || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        let before = now();
        let guest: f64 = sh(session, "date +%s.%N").await.parse().unwrap();
        let after = now();
        // Not a measure of speed: the guest's clock must lie between two looks at the host's, give
        // or take two seconds.
        assert!(
            before - 2.0 <= guest && guest <= after + 2.0,
            "guest {guest}, host {before} to {after}"
        );
    }
    a.discard().await.unwrap();
    b.discard().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_siblings_have_different_boot_ids() {
    let (engine, golden) = engine().await;
    let _slots = slots::take(2);
    let (a, b) = tokio::join!(start(&engine, &golden), start(&engine, &golden));
    let script =
        "for run in 1 2; do docker run --rm busybox cat /proc/sys/kernel/random/boot_id; done";
    let (of_a, of_b) = tokio::join!(sh(&a, script), sh(&b, script));
    for said in [&of_a, &of_b] {
        let ids: Vec<_> = said.lines().collect();
        // The control: it is no number that is new at each look.
        assert!(ids.len() == 2 && ids[0] == ids[1] && ids[0].len() == 36, "{ids:?}");
    }
    assert_ne!(of_a, of_b, "the same boot id in containers of two sessions");
    a.discard().await.unwrap();
    b.discard().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_stay_in_their_session() {
    let (engine, golden) = engine().await;
    let _slots = slots::take(2);
    let (writer, sibling) = tokio::join!(start(&engine, &golden), start(&engine, &golden));
    // To disk, all the way; to memory; over a file the golden has; and gone from the golden's disk.
    let write = "echo mine >/var/tmp/chaos && sync && echo mine >/dev/shm/chaos && echo mine >/etc/debian_version \
        && rm /etc/issue && sync && cat /var/tmp/chaos /dev/shm/chaos /etc/debian_version";
    assert_eq!(sh(&writer, write).await, "mine\nmine\nmine");
    let look = "echo 3 >/proc/sys/vm/drop_caches; ls -d /var/tmp/chaos /dev/shm/chaos 2>/dev/null; \
        grep -c mine /etc/debian_version; test -e /etc/issue && echo there";
    assert_eq!(sh(&sibling, look).await, "0\nthere");
    writer.discard().await.unwrap();
    assert_eq!(sh(&sibling, look).await, "0\nthere");
    sibling.discard().await.unwrap();
    let later = start(&engine, &golden).await;
    assert_eq!(sh(&later, look).await, "0\nthere");
    later.discard().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn vmms_run_confined_each_as_its_own_user() {
    let (engine, golden) = engine().await;
    let _slots = slots::take(2);
    let (a, b) = tokio::join!(start(&engine, &golden), start(&engine, &golden));
    let mut users = BTreeSet::new();
    for session in [&a, &b] {
        let pid = session.vmm_pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("no {name} in {status}"))
                .split_whitespace()
                .collect::<Vec<_>>()
        };
        let uid: u32 = field("Uid")[0].parse().unwrap();
        assert!(VMM_UIDS.contains(&uid), "{uid}");
        assert!(
            field("Uid").iter().chain(&field("Gid")).all(|id| **id == uid.to_string()),
            "{status}"
        );
        assert_eq!(field("Groups"), [""; 0], "{status}");
        assert_eq!((field("NoNewPrivs"), field("Seccomp")), (vec!["1"], vec!["2"]));
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb", "CapBnd"] {
            assert_eq!(u64::from_str_radix(field(set)[0], 16), Ok(0), "{set} in {status}");
        }
        for kind in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
            let namespace = |pid| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
            let others =
                [std::process::id(), if pid == a.vmm_pid() { b.vmm_pid() } else { a.vmm_pid() }];
            assert!(
                others.iter().all(|other| namespace(*other) != namespace(pid)),
                "a shared {kind} namespace"
            );
        }
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        let writable: Vec<_> = mounts
            .lines()
            .filter(|line| !line.split(' ').nth(5).unwrap().starts_with("ro,"))
            .collect();
        assert_eq!(writable, [""; 0], "{mounts}");
        assert!(!std::fs::exists(format!("/proc/{pid}/root/etc")).unwrap(), "the host's files");
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(cgroups.contains("/mayfly/") && cgroups.contains(session.id()), "{cgroups}");
        // The page cache that all sessions share is mapped, and nothing else leads to it.
        let open = descriptors(pid);
        let reaches =
            |what: &str| open.iter().any(|target| target.to_string_lossy().contains(what));
        assert!(reaches("/memfd:vmm-stderr"), "{open:?}");
        assert!(!reaches("/memfd:mayfly") && !reaches("userfaultfd"), "{open:?}");
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let shared =
            maps.lines().filter(|line| line.contains("memfd:mayfly") && line.contains("rw-s"));
        assert_eq!(shared.collect::<Vec<_>>(), [""; 0]);
        assert!(maps.contains("/memfd:mayfly"), "the page cache was not found: {maps}");
        users.insert(uid);
    }
    assert_eq!(users.len(), 2, "two sessions of one user");
    a.discard().await.unwrap();
    b.discard().await.unwrap();
}

/// What a process has open.
fn descriptors(pid: u32) -> BTreeSet<PathBuf> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    entries.filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_engine_has_open_by_accident_is_none_of_a_vmms() {
    let (engine, golden) = engine().await;
    let _slots = slots::take(1);
    // As a shell leaves them to the programs it starts: not closed at exec.
    let (stray, _other) = nix::unistd::pipe().unwrap();
    let name = std::fs::read_link(format!("/proc/self/fd/{}", stray.as_raw_fd())).unwrap();
    let mut control = Command::new("sleep").arg("1000").spawn().unwrap();
    let inherited = program::settle(|| descriptors(control.id()).contains(&name), |has| *has);
    control.kill().unwrap();
    control.wait().unwrap();
    assert!(inherited, "the control does not inherit it");
    let session = start(&engine, &golden).await;
    let of_vmm = descriptors(session.vmm_pid());
    assert!(!of_vmm.contains(&name), "{of_vmm:?}");
    session.discard().await.unwrap();
}
