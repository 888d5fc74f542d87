//! The end of a session: by discard, by the death of its VMM, its engine or its pager. Nothing is
//! left each time.

use std::path::Path;
use std::time::Duration;

use mayfly_chaos_tests::home::{GOLDEN, Home};
use mayfly_chaos_tests::{leaks, program, slots};
use mayfly_engine::session::SessionState;
use mayfly_host::cgroup;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{engine, sh, start};

fn session_cgroups(id: &str) -> usize {
    let engines = cgroup::directories("")
        .into_iter()
        .flat_map(|root| std::fs::read_dir(root).into_iter().flatten());
    engines.flatten().filter(|engine| engine.path().join(id).is_dir()).count()
}

fn kill_process(pid: u32) {
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn discard_leaves_nothing() {
    let (engine, golden) = engine().await;
    let _slot = slots::take(1);
    let session = start(&engine, &golden).await;
    let (id, pid) = (session.id().to_owned(), session.vmm_pid());
    let socket = session.forward_docker().unwrap();
    let path = socket.path().to_owned();
    assert!(program::is_alive(pid) && path.exists() && session_cgroups(&id) > 0);
    sh(&session, "nohup sleep 1000 >/dev/null 2>&1 & dd if=/dev/zero of=/var/tmp/x bs=1M count=8 2>/dev/null").await;
    drop(socket);
    session.discard().await.unwrap();
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "the VMM is still there");
    assert_eq!(session_cgroups(&id), 0);
    assert!(!path.exists());
    let own_vmms = || leaks::vmms_of(std::process::id()).contains(&pid);
    assert!(!own_vmms());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_session_goes_by_itself() {
    let (engine, golden) = engine().await;
    let _slot = slots::take(1);
    let session = start(&engine, &golden).await;
    let (id, pid) = (session.id().to_owned(), session.vmm_pid());
    drop(session);
    let gone = tokio::task::spawn_blocking(move || {
        program::settle(
            || (program::is_alive(pid), session_cgroups(&id)),
            |seen| *seen == (false, 0),
        )
    });
    assert_eq!(gone.await.unwrap(), (false, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_vmm_fails_its_session_with_the_reason() {
    let (engine, golden) = engine().await;
    let _slot = slots::take(1);
    let session = start(&engine, &golden).await;
    kill_process(session.vmm_pid());
    let reason =
        tokio::time::timeout(Duration::from_secs(60), session.state().failed()).await.unwrap();
    assert!(reason.contains("VMM") && reason.contains("SIGKILL"), "{reason}");
    assert!(session.docker_ping().await.unwrap_err().to_string().contains("SIGKILL"));
    let (state, id) = (session.state().clone(), session.id().to_owned());
    session.discard().await.unwrap();
    assert_eq!((state.get(), session_cgroups(&id)), (SessionState::Discarded, 0));
}

#[test]
fn an_engine_that_is_killed_takes_its_vmms_along_and_the_next_one_cleans_up() {
    // One of its own: any engine that starts in a shared one cleans up.
    let home = Home::with_golden();
    let _slot = slots::take(1);
    let mut engine = home.mayfly(["run", GOLDEN, "--", "sh", "-c", "echo up; sleep 1000"]).start();
    let pid = engine.pid();
    engine.until("the session", |running| running.stdout().contains("up").then_some(()));
    let vmms = leaks::vmms_of(pid);
    assert_eq!(vmms.len(), 1, "{vmms:?}");
    engine.signal(Signal::SIGKILL);
    engine.wait();
    assert!(
        !program::settle(|| program::is_alive(vmms[0]), |alive| !alive),
        "the VMM outlives its engine"
    );
    let left = leaks::of_engine(home.layout(), pid);
    assert!(
        left.iter().any(|leak| matches!(leak, leaks::Leak::Cgroup(_))),
        "a killed engine cannot clean up: {left:?}"
    );
    assert!(
        left.iter().any(|leak| matches!(leak, leaks::Leak::Runtime(_))),
        "a killed engine cannot clean up: {left:?}"
    );
    let next = home.mayfly(["run", GOLDEN, "--", "true"]).run();
    assert!(next.success(), "{next}");
    assert_eq!(home.leaks_of(pid), []);
    assert_eq!(home.leaks_of(next.pid), []);
}

#[test]
fn a_killed_pager_fails_its_sessions_clearly_and_the_next_start_works() {
    let home = Home::with_golden();
    let _slot = slots::take(1);
    let mut running = home.mayfly(["run", GOLDEN, "--", "sh", "-c", "echo up; sleep 1000"]).start();
    running.until("the session", |running| running.stdout().contains("up").then_some(()));
    kill_process(home.pager().ping().unwrap().pid);
    let ended = running.wait();
    assert!(ended.stderr.lines().last().unwrap().starts_with("mayfly: "), "{ended}");
    assert!(ended.code() == 125 && ended.stderr.contains("pager process has ended"), "{ended}");
    assert_eq!(home.leaks_of(ended.pid), []);
    let next = home.mayfly(["run", GOLDEN, "--", "echo", "again"]).run();
    assert_eq!((next.code(), &*next.stdout), (0, "again\n"), "{next}");
}
