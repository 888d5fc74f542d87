//! Standbys forked from a zygote: each a VM of its own, in every respect but the price.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use mayfly_chaos_tests::program;
use mayfly_engine::golden::{Extent, LoadedGolden};
use mayfly_engine::{Engine, Session, Zygote};
use mayfly_host::cgroup::Limits;

use crate::support::{engine, sh, start};

async fn zygote(engine: &Engine, golden: &Arc<LoadedGolden>) -> Zygote {
    engine
        .prepare_zygote(golden, &Limits::default(), Extent::Quick)
        .await
        .unwrap()
        .expect("a VMM under TCG can be forked")
}

async fn session(zygote: &Zygote) -> Session {
    zygote.fork(&Limits::default()).await.unwrap().hand_over(&Limits::default()).await.unwrap()
}

fn status(pid: u32, field: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What must be one process's own: its sockets, by inode.
fn sockets(pid: u32) -> BTreeSet<String> {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let targets = links.filter_map(|link| {
        Some(std::fs::read_link(link.path()).ok()?.to_string_lossy().into_owned())
    });
    targets.filter(|target| target.starts_with("socket:")).collect()
}

fn namespace(pid: u32, kind: &str) -> PathBuf {
    std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

/// What is in the root directory of a process.
fn root_of(pid: u32) -> BTreeSet<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/root/")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn forks_share_nothing_that_can_be_changed() {
    let (engine, golden) = engine().await;
    let zygote = zygote(&engine, &golden).await;
    let (a, b) = (session(&zygote).await, session(&zygote).await);

    // Identity and entropy.
    let who = "hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | base64";
    let (of_a, of_b) = (sh(&a, who).await, sh(&b, who).await);
    for (line_a, line_b) in of_a.lines().zip(of_b.lines()) {
        assert_ne!(line_a, line_b);
    }
    assert_eq!(of_a.lines().count(), 4, "{of_a}");

    // Disk and memory, written in one and looked for in its sibling and in a later relative.
    sh(
        &a,
        "echo secret > /root/mark; sync; echo secret > /dev/shm/mark; docker volume create mine",
    )
    .await;
    let later = session(&zygote).await;
    for relative in [&b, &later] {
        let seen = sh(relative, "ls /root/mark /dev/shm/mark 2>&1; docker volume ls -q").await;
        assert_eq!(seen.matches("No such file").count(), 2, "{seen}");
        assert!(!seen.contains("mine"), "{seen}");
    }
    assert_eq!(
        sh(&a, "cat /root/mark /dev/shm/mark").await.lines().collect::<Vec<_>>(),
        ["secret", "secret"]
    );

    // Processes.
    let mut users = BTreeSet::new();
    for relative in [&a, &b, &later] {
        let pid = relative.vmm_pid();
        assert!(users.insert(status(pid, "Uid")), "two forks under one user");
        assert_eq!(status(pid, "NoNewPrivs"), "1");
        assert_eq!(status(pid, "Seccomp"), "2");
        for set in ["CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd"] {
            assert_eq!(u64::from_str_radix(&status(pid, set), 16).unwrap(), 0, "{set}");
        }
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(cgroups.contains(relative.id()), "{cgroups}");
        assert!(
            sockets(pid).is_disjoint(&sockets(zygote.vmm_pid())),
            "a fork shares a socket with its zygote"
        );
    }
    assert!(users.iter().all(|user| *user != status(zygote.vmm_pid(), "Uid")));
    // A zygote has no privileges either, and less to see than the host, but more than its forks.
    assert_eq!(u64::from_str_radix(&status(zygote.vmm_pid(), "CapEff"), 16).unwrap(), 0);
    assert!(root_of(zygote.vmm_pid()).contains("usr"));
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts"] {
        let pids =
            [std::process::id(), zygote.vmm_pid(), a.vmm_pid(), b.vmm_pid(), later.vmm_pid()];
        let different: BTreeSet<_> = pids.iter().map(|pid| namespace(*pid, kind)).collect();
        // Only its user namespace is the host's in a zygote: there it has no capability.
        assert_eq!(different.len(), if kind == "user" { 4 } else { 5 }, "{kind}: {different:?}");
    }
    for fork in [&a, &b, &later] {
        assert_eq!(root_of(fork.vmm_pid()), BTreeSet::new());
    }
    assert!(sockets(a.vmm_pid()).is_disjoint(&sockets(b.vmm_pid())));

    for session in [a, b, later] {
        session.discard().await.unwrap();
    }
    zygote.discard().await.unwrap();
}

/// Prints ten numbers of the processor's random source, one a line.
const RDRAND: &str = r#"
#include <immintrin.h>
#include <stdio.h>
int main(void) {
    for (int i = 0; i < 10; i++) {
        unsigned long long n;
        while (!_rdrand64_step(&n)) {}
        printf("%llx\n", n);
    }
}"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_processors_of_forks_draw_different_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("rdrand.c"), dir.path().join("rdrand"));
    std::fs::write(&source, RDRAND).unwrap();
    let mut compiler = std::process::Command::new("gcc");
    let compiled = compiler
        .args(["-static", "-O1", "-mrdrnd", "-o"])
        .arg(&program)
        .arg(&source)
        .status()
        .unwrap();
    assert!(compiled.success());
    let program = std::fs::read(&program).unwrap();

    let (engine, golden) = engine().await;
    let zygote = zygote(&engine, &golden).await;
    let mut seen = BTreeSet::new();
    let mut sessions = Vec::new();
    for _ in 0..3 {
        let session = session(&zygote).await;
        session.guest().write_file("/root/rdrand", 0o755, &program).await.unwrap();
        let drawn = sh(&session, "/root/rdrand").await;
        assert_eq!(drawn.lines().count(), 10, "{drawn}");
        for number in drawn.lines() {
            assert!(seen.insert(number.to_owned()), "{number} was drawn twice");
        }
        sessions.push(session);
    }
    for session in sessions {
        session.discard().await.unwrap();
    }
    zygote.discard().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_one_is_not_the_end_of_its_relatives() {
    let (engine, golden) = engine().await;
    let zygote = zygote(&engine, &golden).await;
    let (a, b) = (session(&zygote).await, session(&zygote).await);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(a.vmm_pid()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    a.state().failed().await;
    assert_eq!(sh(&b, "echo alive").await, "alive");
    let c = session(&zygote).await;
    zygote.discard().await.unwrap();
    for survivor in [&b, &c] {
        survivor.docker_ping().await.unwrap();
        // A page that nobody has touched yet: the tie to the pager is the fork's own.
        assert_eq!(
            sh(survivor, "sha256sum $(command -v dockerd) >/dev/null && echo read").await,
            "read"
        );
    }
    for session in [a, b, c] {
        session.discard().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forks_leave_nothing_behind() {
    let (engine, golden) = engine().await;
    let zygote = zygote(&engine, &golden).await;
    let threads = || std::fs::read_dir(format!("/proc/{}/task", zygote.vmm_pid())).unwrap().count();
    let descriptors = |pid: u32| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    session(&zygote).await.discard().await.unwrap();
    let before = (descriptors(std::process::id()), descriptors(zygote.vmm_pid()), threads());
    for _ in 0..20 {
        let standby = zygote.prepare_standby(&Limits::default()).await.unwrap();
        standby.hand_over(&Limits::default()).await.unwrap().discard().await.unwrap();
    }
    let fine =
        |now: &(usize, usize, usize)| now.0 <= before.0 && now.1 <= before.1 && now.2 <= before.2;
    let after = program::settle(
        || (descriptors(std::process::id()), descriptors(zygote.vmm_pid()), threads()),
        fine,
    );
    assert!(
        fine(&after),
        "descriptors of the engine and the zygote, threads of the zygote: {before:?}, then {after:?}"
    );
    zygote.discard().await.unwrap();
}

/// Sizes in bytes of a VMM's guest memory that is mapped, and of that which it has written. Zero
/// pages are in neither.
fn guest_memory(pid: u32) -> (u64, u64) {
    let maps = procfs::process::Process::new(pid.cast_signed()).unwrap().smaps().unwrap();
    let is_memory = |map: &&procfs::process::MemoryMap| {
        matches!(&map.pathname, procfs::process::MMapPath::Path(path)
            if path.to_string_lossy().starts_with("/memfd:mayfly-page-cache"))
    };
    let map = maps.iter().find(is_memory).expect("a VMM maps the page cache");
    (map.extension.map["Rss"], map.extension.map["Anonymous"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zygote_keeps_mapped_only_what_it_has_written() {
    let (engine, golden) = engine().await;
    let zygote = zygote(&engine, &golden).await;
    // A fork copies the page tables of what is mapped.
    let (mapped, written) = guest_memory(zygote.vmm_pid());
    assert_eq!(mapped, written);
    assert!(written > 1 << 20, "its guest has run, and written {written} bytes");
    // What it has read is there all the same, and what it has written is what it wrote.
    let fork = session(&zygote).await;
    assert_eq!(sh(&fork, "docker ps -q | wc -l; md5sum < /bin/sh | wc -c").await, "0\n36");
    let (mapped, written) = guest_memory(fork.vmm_pid());
    assert!(mapped > written, "it has read nothing: {mapped} bytes are mapped");
    fork.discard().await.unwrap();
    zygote.discard().await.unwrap();
}

/// Threads that the kernel lets the user of a VMM have at its start (`RLIMIT_NPROC`).
const MOST_THREADS: usize = 128;

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_is_the_user_of_a_zygote_whose_forks_live() {
    let (engine, golden) = engine().await;
    let zygote = zygote(&engine, &golden).await;
    let user = status(zygote.vmm_pid(), "Uid");
    let (mut forks, mut threads) = (Vec::new(), 0);
    // The kernel counts the threads of forks for their zygote's user, too. With that many, no other
    // VMM of this user could be started: its execve(2) fails with EAGAIN.
    while threads <= MOST_THREADS {
        let fork = session(&zygote).await;
        threads += status(fork.vmm_pid(), "Threads").parse::<usize>().unwrap();
        forks.push(fork);
    }
    zygote.discard().await.unwrap();
    let cold = start(&engine, &golden).await;
    assert_ne!(status(cold.vmm_pid(), "Uid"), user);
    assert_eq!(sh(&cold, "echo $((40 + 2))").await, "42");
    cold.discard().await.unwrap();
    for fork in forks {
        fork.discard().await.unwrap();
    }
}
