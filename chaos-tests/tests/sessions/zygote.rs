//! Standbys forked from a zygote: each a VM of its own, in every respect but the price.

use std::time::Instant;

use mayfly_engine::cgroup::Limits;

use crate::support::{engine, sh};

#[tokio::test(flavor = "multi_thread")]
async fn forks_are_sessions_of_their_own() {
    let (engine, golden) = engine().await;
    let begun = Instant::now();
    let zygote = engine.prepare_zygote(&golden, &Limits::default()).await.unwrap().unwrap();
    println!("zygote {:?}", begun.elapsed());
    for round in 0..20 {
        let begun = Instant::now();
        let standby = zygote.fork(&Limits::default()).await.unwrap();
        let forked = begun.elapsed();
        let idle = standby.private_memory().unwrap() >> 10;
        let begun = Instant::now();
        let session = standby.hand_over(&Limits::default()).await.unwrap();
        let agent = begun.elapsed();
        session.docker_ping().await.unwrap();
        let docker = begun.elapsed();
        let name = sh(&session, "hostname; cat /proc/sys/kernel/random/boot_id").await;
        let exec = begun.elapsed();
        let memory = session.private_memory().unwrap() >> 10;
        let begun = Instant::now();
        session.discard().await.unwrap();
        let discard = begun.elapsed();
        println!("{round} fork {forked:?} agent {agent:?} docker {docker:?} exec {exec:?} discard {discard:?} idle {idle} KiB used {memory} KiB {name:?}");
    }
}
