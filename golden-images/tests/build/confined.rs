//! What a recipe and its packages run at build time is kept from the host, and the image is what it
//! would be without that.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use mayfly_golden_images::{BootArtifacts, Recipe, Sandbox};

use crate::{build, builder, cache, can_build, debugfs, serial};

const ATTEMPTS: &str = include_str!("attempts.sh");

/// Builds a recipe with one setup command, which must not have been built before.
fn build_with(setup: &str, packages: &str) -> BootArtifacts {
    // A string of JSON is one of TOML.
    let setup = serde_json::to_string(setup).expect("a string");
    let text = format!(
        "name = \"confined\"\nsetup = [{setup}]\n[debian]\npackages = [{packages}]\n[vm]\ndisk_mib = 512\n"
    );
    build(&Recipe::parse(&text, Path::new("/confined.toml")).expect("valid")).expect("builds")
}

fn forget(built: &BootArtifacts) {
    let key = built.key.to_string();
    builder(&cache()).prune(|other| other != key, &AtomicBool::new(false)).expect("prunes");
}

/// A block device of this host, with the content of a file.
struct Disk(String);

impl Disk {
    fn of(file: &Path) -> Option<Self> {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        made.status.success().then(|| Self(String::from_utf8_lossy(&made.stdout).trim().to_owned()))
    }

    /// Major and minor number.
    fn numbers(&self) -> String {
        let device = std::fs::metadata(&self.0).expect("there").rdev();
        format!("{} {}", nix::sys::stat::major(device), nix::sys::stat::minor(device))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
#[ignore = "needs root"]
fn a_setup_command_has_no_right_on_the_host() {
    if !can_build() {
        return;
    }
    let _serial = serial();
    let dir = tempfile::tempdir().expect("temp dir");
    // Others may look in: what is tried is the file itself.
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("set");
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "of the host").expect("written");
    std::fs::set_permissions(&secret, Permissions::from_mode(0o600)).expect("set");
    let sectors = dir.path().join("sectors");
    std::fs::write(&sectors, [7; 4096]).expect("written");
    let Some(disk) = Disk::of(&sectors) else {
        return mayfly_skip::skip("losetup(8) makes no block device to try to read");
    };
    let namespace = std::fs::read_link("/proc/self/ns/user").expect("there");
    let script = format!(
        "SECRET='{}' FOLDER='{}' DISK='{}' USER_NAMESPACE='{}'\n{ATTEMPTS}",
        secret.display(),
        dir.path().display(),
        disk.numbers(),
        namespace.display(),
    );

    // The control: the host's root can do all of it, in namespaces as they were enough once.
    let mut control = Vec::new();
    let done = Sandbox::new("sh")
        .args(["-c", &format!("mount -t proc proc /proc\n{script}")])
        .run(&AtomicBool::new(false), |line| control.extend(line.map(str::to_owned)));
    assert!(done.expect("runs").status.success(), "{control:?}");
    let done_by = |lines: &[String]| -> Vec<String> {
        lines.iter().filter_map(|line| line.strip_suffix(" yes")).map(str::to_owned).collect()
    };
    assert_eq!(control.len(), 6, "{control:?}");
    assert_eq!(done_by(&control).len(), 6, "the attempts are no attempts: {control:?}");
    std::fs::remove_file(dir.path().join("planted")).expect("planted by the control");

    let built = build_with(&format!("{{\n{script}}} >/etc/attempts\n"), "\"mount\"");
    let said = debugfs(&built.base_disk.path, "cat /etc/attempts");
    let said: Vec<String> = said.lines().map(str::to_owned).collect();
    forget(&built);
    assert_eq!(said.len(), 6, "{said:?}");
    assert_eq!(done_by(&said), Vec::<String>::new(), "a setup command can do this on the host");
    assert!(!dir.path().join("planted").exists());
}

#[test]
#[ignore = "needs root"]
fn owners_modes_capabilities_and_devices_are_those_of_a_system() {
    if !can_build() {
        return;
    }
    let _serial = serial();
    let dir = tempfile::tempdir().expect("temp dir");
    let setup = format!(
        ": {}\nmkdir /made; cd /made; touch owned setuid setgid capable
         chown 1000:65534 owned; chown daemon:games setuid; chmod 4750 setuid; chmod 2755 setgid
         cp /bin/true capable; setcap cap_net_raw+ep capable; mkdir sticky; chmod 1777 sticky
         mkfifo pipe; setfattr -n user.note -v text owned",
        dir.path().display()
    );
    let built = build_with(&setup, "\"attr\", \"libcap2-bin\"");
    let image = &built.base_disk.path;
    let stat = |path: &str| {
        let text = debugfs(image, &format!("stat {path}"));
        let after = |label: &str| {
            let rest = text.split_once(label).unwrap_or_else(|| panic!("{path}: {text}")).1;
            rest.split_whitespace().next().unwrap_or_default().to_owned()
        };
        [after("Type:"), after("Mode:"), after("User:"), after("Group:")].join(" ")
    };
    assert_eq!(stat("/made"), "directory 0755 0 0");
    assert_eq!(stat("/made/owned"), "regular 0644 1000 65534");
    assert_eq!(stat("/made/setuid"), "regular 04750 1 60");
    assert_eq!(stat("/made/setgid"), "regular 02755 0 0");
    assert_eq!(stat("/made/sticky"), "directory 01777 0 0");
    assert_eq!(stat("/made/pipe"), "FIFO 0644 0 0");
    assert_eq!(stat("/usr/bin/su"), "regular 04755 0 0");
    assert_eq!(stat("/usr/lib/mayfly/agent"), "regular 0755 0 0");
    assert_eq!(stat("/etc/hostname"), "regular 0644 0 0");
    assert_eq!(stat("/"), "directory 0755 0 0");
    // struct vfs_cap_data of <linux/capability.h>, version 2: that of a file of the host's root,
    // not the version 3 that files of other user namespaces have.
    let capability = debugfs(image, "ea_get -x /made/capable security.capability");
    let bytes: String = capability.chars().filter(char::is_ascii_hexdigit).collect();
    assert!(bytes.ends_with("0100000200200000000000000000000000000000"), "{capability}");
    assert!(debugfs(image, "ea_get /made/owned user.note").contains("text"));
    for (name, numbers) in [
        ("console", "05:01"),
        ("full", "01:07"),
        ("null", "01:03"),
        ("ptmx", "05:02"),
        ("random", "01:08"),
        ("tty", "05:00"),
        ("urandom", "01:09"),
        ("zero", "01:05"),
    ] {
        let path = format!("/dev/{name}");
        assert_eq!(stat(&path), "character 0666 0 0");
        let text = debugfs(image, &format!("stat {path}"));
        assert!(text.contains(&format!("Device major/minor number: {numbers}")), "{text}");
    }
    assert!(debugfs(image, "stat /dev/fd").contains("/proc/self/fd"));
    let meta = std::fs::metadata(image).expect("there");
    assert_eq!((meta.uid(), meta.gid()), (0, 0), "the image is the host's");
    forget(&built);
}
