//! `mayfly audit`, as a person uses it.

use mayfly_chaos_tests::home::{GOLDEN, Home};
use mayfly_chaos_tests::slots::{self, ALL};
use mayfly_host::cgroup;

#[test]
fn the_list_names_every_check() {
    let listed = Home::shared().mayfly(["audit", "--list"]).run();
    assert!(listed.success(), "{listed}");
    for id in
        ["guest.memory", "vmm.files", "host.user", "quota.disk", "egress.off", "destruction.rm"]
    {
        assert!(listed.stdout.lines().any(|line| line.starts_with(id)), "no {id} in {listed}");
    }
}

#[test]
fn an_unknown_check_or_form_is_refused_before_anything_is_started() {
    let unknown = Home::shared().mayfly(["audit", GOLDEN, "--only", "guest.magic"]).run();
    assert!(unknown.complaint().contains("guest.magic"), "{unknown}");
    let form = Home::shared().mayfly(["audit", GOLDEN, "--report", "/tmp/report.docx"]).run();
    assert!(form.complaint().contains(".md"), "{form}");
}

#[test]
fn a_passed_audit_exits_with_0_and_writes_its_report_in_every_form() {
    let home = Home::shared();
    let _slots = slots::take(ALL);
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (md, html, json) = (path("report.md"), path("report.html"), path("report.json"));
    let args = [
        "audit",
        GOLDEN,
        "--only",
        "host.user",
        "guest.devices",
        "--report",
        &md,
        "--report",
        &html,
        "--report",
        &json,
    ];
    let ended = home.mayfly(args).run();
    assert!(ended.success(), "{ended}");
    assert!(
        ended.stdout.ends_with("2 checks: 2 held, 0 BREACH, 0 not proven, 0 not applicable\n"),
        "{ended}"
    );
    let markdown = std::fs::read_to_string(md).unwrap();
    assert!(
        markdown.contains("| `host.user` |") && markdown.contains("## guest.devices: held"),
        "{markdown}"
    );
    assert!(std::fs::read_to_string(html).unwrap().contains("<h2 id=\"guest.devices\">"));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(report["checks"][0]["verdict"], "held");
    assert!(
        report["checks"][0]["attempts"][0]["control"]
            .as_str()
            .is_some_and(|control| !control.is_empty())
    );
    assert_eq!(home.leaks_of(ended.pid), []);
}

#[test]
fn a_breach_exits_with_1_and_is_named() {
    let home = Home::shared();
    let _slots = slots::take(ALL);
    let ended = home
        .mayfly(["--json", "audit", GOLDEN, "--only", "host.user", "--plant", "unconfined-vmm"])
        .run();
    assert_eq!(ended.code(), 1, "{ended}");
    assert_eq!(ended.complaint(), "breached: host.user");
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["checks"][0]["verdict"], "breach");
    assert_eq!(home.leaks_of(ended.pid), []);
}

#[test]
fn an_interrupted_audit_leaves_nothing_behind() {
    use nix::sys::signal::Signal;
    let home = Home::shared();
    let _slots = slots::take(ALL);
    let mut audit = home.mayfly(["audit", GOLDEN, "--only", "guest.memory", "vmm.files"]).start();
    let pid = audit.pid();
    audit.until("a session", |running| {
        let engines = std::fs::read_dir(home.layout().engines()).ok()?;
        let own = format!("{}-", running.pid());
        let name = engines
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .find(|n| n.starts_with(&own))?;
        // The cgroups of its sessions are below its own.
        let groups = cgroup::directories(&name)
            .into_iter()
            .filter_map(|dir| std::fs::read_dir(dir).ok())
            .flatten();
        groups.flatten().any(|entry| entry.path().is_dir()).then_some(())
    });
    audit.signal(Signal::SIGINT);
    let ended = audit.wait();
    assert_eq!(ended.code(), 130, "{ended}");
    assert_eq!(home.leaks_of(pid), []);
}
