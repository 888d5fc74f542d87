//! A session's own Docker daemon, with no network behind it.

use mayfly_chaos_tests::home::{GOLDEN, Home};
use mayfly_chaos_tests::slots;

/// Whether the host has a docker client.
fn has_client() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join("docker").is_file())
}

#[test]
fn the_hosts_docker_client_runs_containers_in_a_session() {
    if !has_client() {
        eprintln!("SKIPPED: there is no docker client on PATH");
        return;
    }
    let home = Home::shared();
    let _slot = slots::take(1);
    let args = ["run", GOLDEN, "--docker", "--", "docker", "run", "--rm", "-i", "busybox"];
    let script = "cat; hostname >/dev/null; echo oops >&2; exit 9";
    let ended =
        home.mayfly(args.into_iter().chain(["sh", "-c", script])).stdin("through and back").run();
    assert_eq!(ended.code(), 9, "{ended}");
    assert_eq!((&*ended.stdout, &*ended.stderr), ("through and back", "oops\n"));
    assert_eq!(home.leaks_of(ended.pid), []);
}

#[test]
fn docker_builds_an_image_in_a_guest_without_a_network() {
    let home = Home::shared();
    let _slot = slots::take(1);
    let script = r"
        set -e
        ip -o route show default | wc -l
        cd $(mktemp -d)
        printf 'FROM busybox\nCOPY input /input\nRUN tr a-z A-Z </input >/output\n' >Dockerfile
        echo built offline >input
        docker build -q -t chaos . >/dev/null
        docker run --rm --network none chaos cat /output";
    let ended = home.mayfly(["run", GOLDEN, "--", "sh", "-c", script]).run();
    assert!(ended.success(), "{ended}");
    assert_eq!(ended.stdout, "0\nBUILT OFFLINE\n");
}
