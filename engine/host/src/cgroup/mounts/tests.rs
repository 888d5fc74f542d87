//! The texts are those of real hosts, but for lines that have nothing to do with cgroups.

use std::path::{Path, PathBuf};

use super::*;

/// Debian 12 and 13, which differ in nothing here.
const DEBIAN: &str = "\
24 31 0:22 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
25 31 0:23 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw
31 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
32 24 0:6 / /sys/kernel/security rw,nosuid,nodev,noexec,relatime shared:8 - securityfs securityfs rw
35 24 0:28 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
36 24 0:29 / /sys/fs/pstore rw,nosuid,nodev,noexec,relatime shared:10 - pstore pstore rw
";
const DEBIAN_CONTROLLERS: &str = "cpuset cpu io memory hugetlb pids rdma misc dmem\n";

/// Debian 11 and older, and systemd.unified_cgroup_hierarchy=0: controllers on v1, and v2 for
/// systemd alone.
const HYBRID: &str = "\
25 23 0:22 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,size=4096k,nr_inodes=1024,mode=755
26 25 0:23 / /sys/fs/cgroup/unified rw,nosuid,nodev,noexec,relatime shared:10 - cgroup2 cgroup2 rw,nsdelegate
27 25 0:24 / /sys/fs/cgroup/systemd rw,nosuid,nodev,noexec,relatime shared:11 - cgroup cgroup rw,xattr,name=systemd
31 25 0:28 / /sys/fs/cgroup/memory rw,nosuid,nodev,noexec,relatime shared:15 - cgroup cgroup rw,memory
32 25 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid,nodev,noexec,relatime shared:16 - cgroup cgroup rw,cpu,cpuacct
33 25 0:30 / /sys/fs/cgroup/net_cls,net_prio rw,nosuid,nodev,noexec,relatime shared:17 - cgroup cgroup rw,net_cls,net_prio
34 25 0:31 / /sys/fs/cgroup/pids rw,nosuid,nodev,noexec,relatime shared:18 - cgroup cgroup rw,pids
35 25 0:32 / /sys/fs/cgroup/blkio rw,nosuid,nodev,noexec,relatime shared:19 - cgroup cgroup rw,blkio
36 25 0:33 / /sys/fs/cgroup/cpuset rw,nosuid,nodev,noexec,relatime shared:20 - cgroup cgroup rw,cpuset
";
const HYBRID_OWN: &str = "\
9:cpuset:/
8:blkio:/user.slice
7:pids:/user.slice/user-0.slice/session-1.scope
5:cpu,cpuacct:/user.slice
4:memory:/user.slice/user-0.slice/session-1.scope
1:name=systemd:/user.slice/user-0.slice/session-1.scope
0::/user.slice/user-0.slice/session-1.scope
";

/// `docker run` on a host with v2.
const DOCKER: &str = "\
618 617 0:64 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
621 617 0:67 / /sys ro,nosuid,nodev,noexec,relatime - sysfs sysfs ro
622 621 0:28 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate,memory_recursiveprot
";

/// `docker run` on a host with v1: its groups, not the host's, are the roots.
const DOCKER_V1: &str = "\
812 811 0:70 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - tmpfs tmpfs rw,mode=755
813 812 0:24 /docker/0a1b /sys/fs/cgroup/systemd ro,nosuid,nodev,noexec,relatime master:11 - cgroup cgroup rw,xattr,name=systemd
814 812 0:28 /docker/0a1b /sys/fs/cgroup/memory ro,nosuid,nodev,noexec,relatime master:15 - cgroup cgroup rw,memory
815 812 0:29 /docker/0a1b /sys/fs/cgroup/cpu,cpuacct ro,nosuid,nodev,noexec,relatime master:16 - cgroup cgroup rw,cpu,cpuacct
816 812 0:31 /docker/0a1b /sys/fs/cgroup/pids ro,nosuid,nodev,noexec,relatime master:18 - cgroup cgroup rw,pids
";

fn chosen(mountinfo: &str, v2_controllers: &str) -> Result<Hierarchies, String> {
    Mounts::parse(mountinfo).choose(v2_controllers, "quiet").map_err(|error| error.to_string())
}

fn mount(point: &str, root: &str) -> Mount {
    Mount { point: point.into(), root: root.into() }
}

#[test]
fn debian_and_containers_on_it_have_v2_alone() {
    for text in [DEBIAN, DOCKER] {
        let v2 = Hierarchies::V2(mount("/sys/fs/cgroup", "/"));
        assert_eq!(chosen(text, DEBIAN_CONTROLLERS), Ok(v2));
    }
    let group = group("0::/user.slice/user-0.slice/session-3.scope\n", None).unwrap();
    assert_eq!(group, Path::new("/user.slice/user-0.slice/session-3.scope"));
}

#[test]
fn a_hybrid_host_has_v1_with_controllers_together_where_they_are_mounted_so() {
    use Controller::{Cpu, Io, Memory, Pids};
    let at = |name: &str| mount(&format!("/sys/fs/cgroup/{name}"), "/");
    let v1 = vec![
        (at("memory"), vec![Memory]),
        (at("cpu,cpuacct"), vec![Cpu]),
        (at("pids"), vec![Pids]),
        (at("blkio"), vec![Io]),
    ];
    assert_eq!(chosen(HYBRID, ""), Ok(Hierarchies::V1(v1)));
    assert_eq!(group(HYBRID_OWN, Some(Cpu)), Some("/user.slice".into()));
    assert_eq!(group(HYBRID_OWN, Some(Io)), Some("/user.slice".into()));
    // All in one hierarchy are one.
    let all = "25 23 0:22 / /cgroups rw - cgroup cgroup rw,cpuset,cpu,memory,blkio,pids\n";
    let together = Hierarchies::V1(vec![(mount("/cgroups", "/"), vec![Memory, Pids, Cpu, Io])]);
    assert_eq!(chosen(all, ""), Ok(together));
}

#[test]
fn a_hierarchy_counts_once_however_often_it_is_mounted() {
    let again = format!("{HYBRID}99 23 0:28 / /mnt/memory rw - cgroup cgroup rw,memory\n");
    assert_eq!(chosen(&again, ""), chosen(HYBRID, ""));
    let again = format!("{DEBIAN}99 23 0:28 / /mnt/all rw - cgroup2 none rw\n");
    assert_eq!(chosen(&again, DEBIAN_CONTROLLERS), chosen(DEBIAN, DEBIAN_CONTROLLERS));
}

#[test]
fn controllers_that_sessions_have_no_use_for_decide_nothing() {
    // What VPN software does for its own traffic, on a host with v2.
    let vpn =
        format!("{DEBIAN}90 31 0:50 / /run/net-cls rw,relatime - cgroup net_cls rw,net_cls\n");
    assert_eq!(chosen(&vpn, DEBIAN_CONTROLLERS), chosen(DEBIAN, DEBIAN_CONTROLLERS));
    // I/O is not needed, so that it may be where it is.
    let io = format!("{DEBIAN}90 31 0:50 / /run/blkio rw,relatime - cgroup blkio rw,blkio\n");
    assert_eq!(chosen(&io, "cpuset cpu memory pids"), chosen(DEBIAN, DEBIAN_CONTROLLERS));
}

#[test]
fn a_split_between_both_versions_is_refused_with_what_is_where_and_a_remedy() {
    let mixed = format!("{DEBIAN}90 31 0:50 / /run/memory rw,relatime - cgroup memory rw,memory\n");
    let error = chosen(&mixed, "cpuset cpu io pids").unwrap_err();
    assert_eq!(
        error,
        "controllers are split between cgroup v1 (memory) and v2 (pids and cpu), and sessions need all on one; \
         boot with systemd.unified_cgroup_hierarchy=1 and without mounts of cgroup v1"
    );
}

#[test]
fn what_is_missing_is_named() {
    let no_cgroups = DEBIAN.replace("cgroup2", "tmpfs");
    assert!(chosen(&no_cgroups, "").unwrap_err().starts_with("no cgroup file system is mounted; "));
    let without = HYBRID.replace("rw,pids", "rw,misc").replace("rw,memory", "rw,rdma");
    let error = chosen(&without, "").unwrap_err();
    assert!(
        error.starts_with(
            "no cgroup v1 hierarchy with the controllers memory and pids is mounted; "
        ),
        "{error}"
    );
    let disabled = Mounts::parse(&without).choose("", "quiet cgroup_disable=memory").unwrap_err();
    assert!(disabled.remedy().contains("boot without cgroup_disable=memory"), "{disabled}");
    let nothing = "27 25 0:24 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";
    assert!(chosen(nothing, "").unwrap_err().contains("memory, pids and cpu"));
}

#[test]
fn groups_are_found_below_what_a_mount_shows() {
    let Hierarchies::V1(v1) = chosen(DOCKER_V1, "").unwrap() else { panic!("v1") };
    let (memory, _) = &v1[0];
    assert_eq!(memory, &mount("/sys/fs/cgroup/memory", "/docker/0a1b"));
    let folder = |group: &str| memory.folder(Path::new(group));
    assert_eq!(folder("/docker/0a1b"), Some("/sys/fs/cgroup/memory/".into()));
    assert_eq!(folder("/docker/0a1b/mayfly/1-2"), Some("/sys/fs/cgroup/memory/mayfly/1-2".into()));
    // A neighbour, and one whose name begins alike.
    assert_eq!(folder("/docker/ffff"), None);
    assert_eq!(folder("/docker/0a1bc"), None);
    // Outside of the cgroup namespace (cgroup_namespaces(7)).
    assert_eq!(mount("/sys/fs/cgroup", "/").folder(Path::new("/../init.scope")), None);
}

#[test]
fn a_later_mount_hides_an_earlier_one_and_names_are_read_as_written() {
    let hidden = format!("{HYBRID}99 25 0:70 / /sys/fs/cgroup/pids rw - tmpfs tmpfs rw\n");
    assert!(chosen(&hidden, "").unwrap_err().contains("controllers pids is"));
    let odd = "25 23 0:22 /a\\134b /my\\040own\\011place rw - cgroup2 none rw\n";
    let v2 = Mount { point: PathBuf::from("/my own\tplace"), root: "/a\\b".into() };
    assert_eq!(chosen(odd, DEBIAN_CONTROLLERS), Ok(Hierarchies::V2(v2)));
    for text in ["", "\n", "- - -", "1 2 3", "1 2 3:4 / / rw -", "1 2 3:4 / /x rw - cgroup2\n"] {
        assert_eq!(Mounts::parse(text), Mounts::default(), "{text:?}");
    }
}

#[test]
fn a_removed_group_has_its_name() {
    assert_eq!(group("0::/a/b (deleted)\n", None), Some("/a/b".into()));
    assert_eq!(group("12:pids:/a:b\n0::/\n", Some(Controller::Pids)), Some("/a:b".into()));
    assert_eq!(group("12:pids:/a\n", None), None);
}
