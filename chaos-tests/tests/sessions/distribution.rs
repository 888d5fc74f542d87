//! What programs expect of a guest because every distribution has it: limits, kernel settings, room
//! for networks of containers.

use crate::support::{engine, sh, start};
use mayfly_chaos_tests::slots;

/// Soft and hard limit of open files, as systemd sets them.
const OPEN_FILES: &str = "1024\n524288";
const SHOW: &str = "ulimit -Sn; ulimit -Hn";

#[tokio::test(flavor = "multi_thread")]
async fn commands_containers_and_builds_have_the_usual_limit_of_open_files() {
    let (engine, golden) = engine().await;
    let _slot = slots::take(1);
    let session = start(&engine, &golden).await;
    assert_eq!(sh(&session, SHOW).await, OPEN_FILES);
    assert_eq!(sh(&session, &format!("bash -lc '{SHOW}'")).await, OPEN_FILES);
    let run = format!("docker run --rm busybox sh -c '{SHOW}'");
    assert_eq!(sh(&session, &run).await, OPEN_FILES);
    let exec = format!(
        "docker run -d --name one busybox sleep 600 >/dev/null && docker exec one sh -c '{SHOW}'"
    );
    assert_eq!(sh(&session, &exec).await, OPEN_FILES);
    let build = format!(
        "cd $(mktemp -d) && printf 'FROM busybox\\nRUN ({SHOW}) >/limits\\n' >Dockerfile && \
         docker build -q -t limits . >/dev/null && docker run --rm limits cat /limits"
    );
    assert_eq!(sh(&session, &build).await, OPEN_FILES);
    // Who needs more takes it; programs in Go leave one of them.
    let others = "for pid in $(pidof dockerd) $(pidof containerd) $PPID; do \
         awk '/Max open files/ { print ($4 >= 524287), $5 }' /proc/$pid/limits; done";
    assert_eq!(sh(&session, others).await, "1 524288\n1 524288\n1 524288");
    session.discard().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_watchers_and_maps_of_a_search_engine_fit() {
    let (engine, golden) = engine().await;
    let _slot = slots::take(1);
    let session = start(&engine, &golden).await;
    // inotify_init1(2); perl is essential in Debian.
    let watchers = "perl -e 'for (1..200) { syscall(294, 0) >= 0 or die \"$_: $!\" } print 200'";
    assert_eq!(sh(&session, watchers).await, "200");
    let settings = "cat /proc/sys/fs/inotify/max_user_watches /proc/sys/vm/max_map_count \
         /proc/sys/net/ipv4/ip_forward";
    assert_eq!(sh(&session, settings).await, "524288\n1048576\n1");
    session.discard().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn forty_networks_of_containers_fit() {
    let (engine, golden) = engine().await;
    let _slot = slots::take(1);
    let session = start(&engine, &golden).await;
    let script = "for n in $(seq 40); do docker network create net$n >/dev/null || exit 1; done; \
         docker network ls -q --filter driver=bridge | wc -l; \
         docker network inspect -f '{{(index .IPAM.Config 0).Subnet}}' $(docker network ls -q \
         --filter driver=bridge) | sort -u | wc -l";
    // With the one that is always there, and none of them twice.
    assert_eq!(sh(&session, script).await, "41\n41");
    let use_one = "docker run -d --network net40 --name peer busybox sleep 600 >/dev/null && \
         docker run --rm --network net40 busybox ping -c 1 -W 20 peer >/dev/null && echo reached";
    assert_eq!(sh(&session, use_one).await, "reached");
    session.discard().await.unwrap();
}
