use super::*;

const POINT: &str = "/sys/fs/cgroup";

/// Where groups would live for a process in `group`, in a hierarchy in which `delegated` groups are
/// marked.
fn parent(group: &str, delegated: &[&str], root_is_the_hosts: bool) -> (PathBuf, Owner) {
    let mount = Mount { point: POINT.into(), root: "/".into() };
    let is_delegated =
        |dir: &Path| delegated.iter().any(|group| dir == Path::new(&format!("{POINT}{group}")));
    let own = Own { group: Path::new(group), is_delegated: &is_delegated, root_is_the_hosts };
    let parent = Parent::choose(mount, &own);
    (parent.dir, parent.owner)
}

fn root() -> PathBuf {
    POINT.into()
}

#[test]
fn from_a_login_shell_groups_live_at_the_root() {
    assert_eq!(
        parent("/user.slice/user-0.slice/session-3.scope", &[], true),
        (root(), Owner::Host)
    );
    assert_eq!(parent("/", &[], true), (root(), Owner::Host));
}

#[test]
fn in_a_delegated_unit_they_live_below_its_group_also_when_the_process_is_in_a_leaf_of_it() {
    let unit = "/system.slice/mayfly.service";
    let expected = (root().join("system.slice/mayfly.service"), Owner::Unit);
    for own in [unit.to_owned(), format!("{unit}/supervisor"), format!("{unit}/a/b")] {
        assert_eq!(parent(&own, &[unit], true), expected, "{own}");
    }
    // A unit in a unit: the nearest.
    let inner = format!("{unit}/inner.scope");
    let below = root().join("system.slice/mayfly.service/inner.scope");
    assert_eq!(parent(&inner, &[unit, &inner], true), (below, Owner::Unit));
}

#[test]
fn what_was_delegated_to_the_service_manager_of_a_user_is_not_ours() {
    let manager = "/user.slice/user-0.slice/user@0.service";
    let own = format!("{manager}/app.slice/run-7.scope");
    assert_eq!(parent(&own, &[manager], true), (root(), Owner::Host));
    // But what that manager delegates is.
    let scope = root().join(own.trim_start_matches('/'));
    assert_eq!(parent(&own, &[manager, &own], true), (scope, Owner::Unit));
}

#[test]
fn in_a_service_without_delegation_they_live_at_the_root() {
    assert_eq!(parent("/system.slice/cron.service", &[], true), (root(), Owner::Host));
    let service = |group: &str| service_of(Path::new(group));
    assert_eq!(service("/system.slice/cron.service").as_deref(), Some("cron.service"));
    assert_eq!(
        service("/system.slice/runner@1.service/inner").as_deref(),
        Some("runner@1.service")
    );
    // The nearest unit counts: what a terminal multiplexer starts in is a scope.
    assert_eq!(service("/user.slice/user-0.slice/user@0.service/tmux-spawn-1.scope"), None);
    assert_eq!(service("/user.slice/user-0.slice/session-3.scope"), None);
    assert_eq!(service("/"), None);
}

#[test]
fn in_a_container_they_live_below_its_root_wherever_in_it_the_process_is() {
    for group in ["/", "/init", "/system.slice/some.service", "/../elsewhere"] {
        assert_eq!(parent(group, &[], false), (root(), Owner::Namespace), "{group}");
    }
    // With a service manager of its own it is as on a host.
    let unit = "/system.slice/mayfly.service";
    assert_eq!(parent(unit, &[unit], false), (root().join(&unit[1..]), Owner::Unit));
}

#[test]
#[ignore = "needs root"]
fn a_mark_of_delegation_is_read_from_the_group() {
    let Some(group) = crate::cgroup::testing::V2Group::make("mark") else { return };
    assert!(!is_delegated(group.dir()));
    let path = CString::new(group.dir().as_os_str().as_bytes()).unwrap();
    for (value, expected) in [(b"1", true), (b"0", false), (b"1", true)] {
        // SAFETY: all strings outlive the call; the value has the length that is told.
        let set = unsafe {
            libc::setxattr(
                path.as_ptr(),
                c"trusted.delegate".as_ptr(),
                value.as_ptr().cast(),
                value.len(),
                0,
            )
        };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
        assert_eq!(is_delegated(group.dir()), expected);
    }
}

#[test]
fn this_host_has_a_place_and_processes_are_found_in_it() {
    let place = Place::of_this_process().unwrap();
    let own = place.folder_of(std::process::id(), "memory").unwrap();
    let members = std::fs::read_to_string(own.join("cgroup.procs")).unwrap();
    assert!(
        members.lines().any(|pid| pid.parse() == Ok(std::process::id())),
        "{}: {members}",
        own.display()
    );
    assert_eq!(place.lineage("memory").first(), Some(&own));
    assert!(
        place.folder_of(std::process::id(), "no-such-controller").is_err()
            || place.version() == Version::V2
    );
}

/// A process in a cgroup namespace sees its own group as the root, and so does what is found out
/// there.
#[test]
#[ignore = "needs root"]
fn the_root_of_a_cgroup_namespace_is_told_from_the_hosts() {
    let Some(group) = crate::cgroup::testing::V2Group::make("namespace") else { return };
    let script = r#"echo $$ > "$0/cgroup.procs" && exec unshare --cgroup --mount sh -c '
        mount -t tmpfs none /mnt && mkdir /mnt/all && mount -t cgroup2 none /mnt/all || exit 1
        test -e /mnt/all/cgroup.type && echo typed; cat /proc/self/mountinfo; echo --; cat /proc/self/cgroup'"#;
    let output =
        std::process::Command::new("sh").args(["-c", script]).arg(group.dir()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.starts_with("typed\n"), "{output:?}");
    let (mountinfo, own) = text.split_once("--\n").unwrap();
    assert_eq!(mounts::group(own, None), Some("/".into()));
    // The host's own mount, seen from within, shows what is above.
    let all: Vec<Mount> = mountinfo
        .lines()
        .filter(|line| line.contains(" - cgroup2 "))
        .filter_map(|line| Mounts::parse(line).v2().cloned())
        .collect();
    assert!(
        all.iter().any(|mount| mount.folder(Path::new("/")) == Some("/mnt/all/".into())),
        "{all:?}"
    );
    assert!(all.iter().any(|mount| mount.folder(Path::new("/")).is_none()), "{all:?}");
}
