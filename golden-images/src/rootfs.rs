//! Our own files in the root directory: the agent, what it starts, and the configuration of
//! containerd and dockerd.

use std::fs::File;
use std::path::Path;

use crate::error::{Error, IoContext as _};
use crate::recipe::Recipe;
use crate::root_dir::RootDir;

/// Where the initramfs finds the agent to run as the first process of the root.
const AGENT: &str = "/usr/lib/mayfly/agent";
/// Name of the guest before a session gives it its own.
const HOSTNAME: &str = "mayfly\n";
/// machine-id(5): all zeros is "not set". Sessions bind their own over it.
const MACHINE_ID: &str = "00000000000000000000000000000000\n";
const HOSTS: &str =
    "127.0.0.1 localhost\n127.0.1.1 mayfly\n::1 localhost ip6-localhost ip6-loopback\n";
/// The agent answers here while a session has egress; nobody does otherwise, and a look-up fails at
/// once.
const RESOLV_CONF: &str = "nameserver 127.0.0.1\n";
/// Containers get those name servers of the guest that are not on its loopback interface.
const RESOLV_CONF_DOCKER: &str = "nameserver 127.0.0.1\nnameserver 172.17.0.1\n";
/// The root disk is /dev/vda; the agent's initramfs half mounts it.
const FSTAB: &str = "/dev/vda / ext4 rw,noatime 0 0\n";

/// What the agent starts, in order (`NAME=PROGRAM ARG...`, `wait=PATH`, `ready=docker:PATH`).
const SERVICES: &str = "\
containerd=/usr/bin/containerd --log-level=error
wait=/run/containerd/containerd.sock
dockerd=/usr/sbin/dockerd --host=unix:///run/docker.sock --containerd=/run/containerd/containerd.sock
ready=docker:/run/docker.sock
";

/// dockerd: a fixed storage driver (no probing), no userland proxy process per published port,
/// quiet, the bridge at the address that the agent knows. It pulls through the agent's proxy port,
/// where nobody listens unless a session has egress. Containers have the open files limit of the
/// guest's own commands. Networks are of 254 addresses, in the ranges from which Docker takes them
/// by default, where there are 31 of up to 65,534: 3,584 beside the bridge's, then 256.
const DAEMON_JSON: &str = r#"{
  "bip": "172.17.0.1/16",
  "default-address-pools": [
    { "base": "172.18.0.0/15", "size": 24 },
    { "base": "172.20.0.0/14", "size": 24 },
    { "base": "172.24.0.0/13", "size": 24 },
    { "base": "192.168.0.0/16", "size": 24 }
  ],
  "default-ulimits": {
    "nofile": { "Name": "nofile", "Soft": 1024, "Hard": 524288 }
  },
  "proxies": {
    "http-proxy": "http://127.0.0.1:3128",
    "https-proxy": "http://127.0.0.1:3128",
    "no-proxy": "localhost,127.0.0.0/8,::1"
  },
  "storage-driver": "overlay2",
  "userland-proxy": false,
  "live-restore": false,
  "log-level": "warn",
  "log-driver": "json-file",
  "log-opts": { "max-size": "10m", "max-file": "1" }
}
"#;

const DAEMON_JSON_PATH: &str = "/etc/docker/daemon.json";
/// Settings that a recipe may not make: where dockerd listens, and the bridge's address.
const FIXED_SETTINGS: [&str; 3] = ["bip", "hosts", "bridge"];

/// containerd: without the plugins that dockerd never uses, so that it starts faster and holds less
/// memory. Its garbage collector looks again and again whether anything changed, with pauses of what
/// a collection has taken divided by `pause_threshold`: with the default of 0.02 four times a second,
/// which was most of what an idle session did. So the pauses are long, and a deletion is collected
/// at once (containerd, docs/garbage-collection.md). The debug socket is for the first step that
/// has containerd collect the garbage of its memory; root alone may use it.
const CONTAINERD_TOML: &str = r#"version = 2
disabled_plugins = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.internal.v1.opt",
  "io.containerd.internal.v1.restart",
  "io.containerd.internal.v1.tracing",
  "io.containerd.nri.v1.nri",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp",
]
oom_score = -999

[debug]
address = "/run/containerd/debug.sock"

[plugins."io.containerd.gc.v1.scheduler"]
pause_threshold = 0.0001
deletion_threshold = 1
"#;

/// The templates, for the build key.
pub(crate) const TEMPLATES: &[&str] = &[
    HOSTNAME,
    MACHINE_ID,
    HOSTS,
    RESOLV_CONF,
    RESOLV_CONF_DOCKER,
    FSTAB,
    SERVICES,
    DAEMON_JSON,
    CONTAINERD_TOML,
    PROFILE_USER.1,
    PROFILE_SCRIPTS.1,
];

/// A login shell of Debian runs two programs to find out what the shell knows. Most commands that
/// clients send begin with one, and each program takes as long as the shell itself.
const MAX_PROFILE: usize = 64 << 10;
const PROFILE_USER: (&str, &str) = ("\"$(id -u)\"", "\"${EUID:-$(id -u)}\"");
const PROFILE_SCRIPTS: (&str, &str) = (
    r"$(run-parts --list --regex '^[a-zA-Z0-9_][a-zA-Z0-9._-]*\.sh$' /etc/profile.d)",
    "/etc/profile.d/*.sh",
);

/// Programs that docker sessions need and the packages that usually have them.
const DOCKER_PROGRAMS: [(&str, &str); 4] = [
    ("/usr/sbin/dockerd", "docker.io"),
    ("/usr/bin/containerd", "docker.io"),
    ("/usr/bin/docker", "docker-cli"),
    ("/usr/sbin/iptables", "iptables"),
];

/// Character devices of a new system, as debootstrap(8) makes them (kernel
/// `Documentation/admin-guide/devices.txt`). A build has no right to.
const DEVICES: [(&str, u64, u64); 8] = [
    ("console", 5, 1),
    ("full", 1, 7),
    ("null", 1, 3),
    ("ptmx", 5, 2),
    ("random", 1, 8),
    ("tty", 5, 0),
    ("urandom", 1, 9),
    ("zero", 1, 5),
];
const DEVICE_LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stderr", "/proc/self/fd/2"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
];

/// Fills `/dev` of the root directory. Needs root.
pub(crate) fn populate_dev(root: &RootDir) -> Result<(), Error> {
    for (name, major, minor) in DEVICES {
        root.character_device(&format!("/dev/{name}"), major, minor)?;
    }
    for (name, target) in DEVICE_LINKS {
        root.symlink(Path::new(target), &format!("/dev/{name}"))?;
    }
    for name in ["pts", "shm"] {
        root.mkdir(&format!("/dev/{name}"))?;
    }
    Ok(())
}

/// Puts our files into the root directory.
pub(crate) fn configure(recipe: &Recipe, agent: &[u8], root: &RootDir) -> Result<(), Error> {
    root.write(AGENT, agent, 0o755)?;
    for (path, text) in [
        ("/etc/hostname", HOSTNAME),
        ("/etc/machine-id", MACHINE_ID),
        ("/etc/hosts", HOSTS),
        ("/etc/resolv.conf", RESOLV_CONF),
        ("/etc/fstab", FSTAB),
    ] {
        root.write(path, text.as_bytes(), 0o644)?;
    }
    // One of another encoding, or of this length, is not Debian's.
    let is_short = |profile: &Vec<u8>| profile.len() <= MAX_PROFILE;
    let profile = root.read_all("/etc/profile")?.filter(is_short).map(String::from_utf8);
    if let Some(Ok(profile)) = profile {
        let quick = profile.replace(PROFILE_USER.0, PROFILE_USER.1);
        let quick = quick.replace(PROFILE_SCRIPTS.0, PROFILE_SCRIPTS.1);
        if quick != profile {
            root.write("/etc/profile", quick.as_bytes(), 0o644)?;
        }
    }
    if let Some(name) = &recipe.default_user {
        let passwd = root.read_text("/etc/passwd")?;
        if !passwd.lines().any(|line| line.split(':').next() == Some(name)) {
            return Err(Error::DefaultUserMissing { name: name.clone() });
        }
    }
    root.mkdir("/etc/mayfly/hooks.d")?;
    for (number, path) in recipe.hooks.after_restore.iter().enumerate() {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("hook");
        let file = File::open(path).context("open", path)?;
        root.write(&format!("/etc/mayfly/hooks.d/{number:02}-{name}"), file, 0o755)?;
    }
    if !recipe.docker.enabled {
        return Ok(());
    }
    for (path, package) in DOCKER_PROGRAMS {
        // A program may be an alternatives link, which resolves inside the root.
        if root.read(path)?.is_none() {
            return Err(Error::DockerMissing { path, package });
        }
    }
    root.write("/etc/resolv.conf", RESOLV_CONF_DOCKER.as_bytes(), 0o644)?;
    root.write("/etc/mayfly/services", SERVICES.as_bytes(), 0o644)?;
    root.write(DAEMON_JSON_PATH, daemon_json(root)?.as_slice(), 0o644)?;
    root.write("/etc/containerd/config.toml", CONTAINERD_TOML.as_bytes(), 0o644)
}

/// Settings of dockerd: ours, and over them those that the recipe's `setup` has left in the root.
fn daemon_json(root: &RootDir) -> Result<Vec<u8>, Error> {
    let Some(own) = root.read_all(DAEMON_JSON_PATH)? else {
        return Ok(DAEMON_JSON.as_bytes().to_vec());
    };
    let refused = |reason: String| Error::DaemonJson { path: DAEMON_JSON_PATH, reason };
    let parsed = serde_json::from_slice(&own).map_err(|error| refused(error.to_string()))?;
    let serde_json::Value::Object(own) = parsed else {
        return Err(refused("it is not a JSON object".into()));
    };
    if let Some(key) = FIXED_SETTINGS.iter().find(|key| own.contains_key(**key)) {
        return Err(refused(format!("\"{key}\" cannot be changed: the guest agent relies on it")));
    }
    let mut all: serde_json::Map<_, _> =
        serde_json::from_str(DAEMON_JSON).expect("a unit test parses it");
    for (key, value) in own {
        // A table of limits by name: one of the recipe is no reason to lose the others.
        match (all.get_mut(&key), value) {
            (Some(serde_json::Value::Object(ours)), serde_json::Value::Object(theirs))
                if key == "default-ulimits" =>
            {
                ours.extend(theirs);
            }
            (_, value) => drop(all.insert(key, value)),
        }
    }
    Ok(serde_json::to_vec_pretty(&all).expect("it was JSON before"))
}

/// Whether `path` looks like a root directory, so that a failure of the package tool is not taken
/// for success.
pub(crate) fn check(root: &Path) -> Result<RootDir, Error> {
    let dir = RootDir::open(root)?;
    if dir.read("/bin/sh")?.is_none() {
        let missing = std::io::Error::other(
            "it has no /bin/sh: mmdebstrap made an incomplete root directory",
        );
        return Err(missing).context("use", root);
    }
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(text: &str) -> Recipe {
        Recipe::parse(text, Path::new("r.toml")).expect("valid")
    }

    #[test]
    fn docker_without_its_packages_names_the_package() {
        let dir = tempfile::tempdir().expect("temp dir");
        let root = RootDir::open(dir.path()).expect("opens");
        let error = configure(&recipe("name = \"x\"\n[docker]\nenabled = true\n"), b"agent", &root)
            .expect_err("no dockerd");
        assert!(error.to_string().contains("add \"docker.io\""), "{error}");
    }

    #[test]
    fn a_default_user_must_be_there() {
        let dir = tempfile::tempdir().expect("temp dir");
        let root = RootDir::open(dir.path()).expect("opens");
        root.write("/etc/passwd", &b"root:x:0:0::/root:/bin/sh\n"[..], 0o644).expect("written");
        configure(&recipe("name = \"x\"\ndefault_user = \"root\"\n"), b"agent", &root)
            .expect("is there");
        let error = configure(&recipe("name = \"x\"\ndefault_user = \"roo\"\n"), b"agent", &root)
            .expect_err("is not");
        assert!(error.to_string().contains("no user \"roo\""), "{error}");
    }

    #[test]
    fn a_root_without_docker_has_no_services() {
        let dir = tempfile::tempdir().expect("temp dir");
        let root = RootDir::open(dir.path()).expect("opens");
        configure(&recipe("name = \"x\"\n"), b"agent", &root).expect("configured");
        assert!(!dir.path().join("etc/mayfly/services").exists());
        assert_eq!(
            std::fs::read(dir.path().join("usr/lib/mayfly/agent")).expect("there"),
            b"agent"
        );
        assert!(check(dir.path()).is_err(), "an empty directory is no root");
    }

    #[test]
    fn a_login_shell_runs_no_program_to_know_itself() {
        let dir = tempfile::tempdir().expect("temp dir");
        let root = RootDir::open(dir.path()).expect("opens");
        let debian = format!(
            "if [ {} -eq 0 ]; then\n  ROOT=yes\nfi\nfor i in {}; do\n  . $i\ndone\n",
            PROFILE_USER.0, PROFILE_SCRIPTS.0
        );
        root.write("/etc/profile", debian.as_bytes(), 0o644).expect("written");
        configure(&recipe("name = \"x\"\n"), b"agent", &root).expect("configured");
        let quick = root.read_text("/etc/profile").expect("there");
        assert!(quick.contains("ROOT=yes") && quick.contains("for i in /etc/profile.d/*.sh"));
        assert!(!quick.contains("run-parts"), "{quick}");
        // It is still asked for in shells that do not know.
        assert_eq!(quick.matches("id -u").count(), 1, "{quick}");
    }

    #[test]
    fn settings_of_a_recipe_are_put_over_ours() {
        let merged = |own: &str| {
            let dir = tempfile::tempdir().expect("temp dir");
            let root = RootDir::open(dir.path()).expect("opens");
            root.write(DAEMON_JSON_PATH, own.as_bytes(), 0o644).expect("written");
            daemon_json(&root)
                .map(|json| -> serde_json::Value { serde_json::from_slice(&json).expect("JSON") })
        };
        let own = r#"{"mtu": 1400, "storage-driver": "vfs",
            "default-ulimits": {"core": {"Name": "core", "Soft": 0, "Hard": 0}}}"#;
        let json = merged(own).expect("valid");
        assert_eq!((&json["mtu"], &json["storage-driver"]), (&1400.into(), &"vfs".into()));
        assert_eq!(json["default-ulimits"]["nofile"]["Soft"], 1024);
        assert_eq!(json["default-ulimits"]["core"]["Hard"], 0);
        assert_eq!(json["bip"], "172.17.0.1/16");
        let own = r#"{"default-ulimits": {"nofile": {"Name": "nofile", "Soft": 9, "Hard": 9}},
            "default-address-pools": []}"#;
        let json = merged(own).expect("valid");
        assert_eq!(json["default-ulimits"]["nofile"]["Soft"], 9);
        assert_eq!(json["default-address-pools"], serde_json::json!([]));
        for (bad, why) in [("{", "EOF"), ("[]", "object"), (r#"{"bip": "10.0.0.1/8"}"#, "\"bip\"")]
        {
            let message = merged(bad).expect_err("refused").to_string();
            assert!(message.contains(why), "{message}");
        }
    }

    #[test]
    fn networks_of_containers_leave_the_bridge_and_private_networks_of_class_a_alone() {
        let json: serde_json::Value = serde_json::from_str(DAEMON_JSON).expect("JSON");
        let mut networks = 0;
        for pool in json["default-address-pools"].as_array().expect("a list") {
            let (base, bits) = pool["base"].as_str().and_then(|b| b.split_once('/')).expect("CIDR");
            let base = u32::from(base.parse::<std::net::Ipv4Addr>().expect("an address"));
            let bits: u32 = bits.parse().expect("a number");
            assert_eq!(base << bits, 0, "the base is the first address");
            let contains = |address: [u8; 4]| {
                u32::from_be_bytes(address) >> (32 - bits) == base >> (32 - bits)
            };
            assert!(![[172, 17, 0, 1], [127, 0, 0, 1], [10, 0, 0, 1]].into_iter().any(contains));
            networks += 1 << (pool["size"].as_u64().expect("a number") - u64::from(bits));
        }
        assert!(networks >= 1000, "{networks}");
    }

    #[test]
    fn the_templates_are_what_their_readers_parse() {
        let json: serde_json::Value = serde_json::from_str(DAEMON_JSON).expect("JSON");
        assert_eq!(json["storage-driver"], "overlay2");
        let bridge =
            json["bip"].as_str().and_then(|bip| bip.split_once('/')).expect("an address").0;
        assert!(
            RESOLV_CONF_DOCKER.contains(bridge),
            "containers ask the name server at the bridge"
        );
        toml::from_str::<toml::Table>(CONTAINERD_TOML).expect("TOML");
        assert!(SERVICES.lines().all(|l| l.split_once('=').is_some_and(|(_, v)| !v.is_empty())));
    }
}
