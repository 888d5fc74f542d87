//! Kernel settings that programs expect of a distribution, and that the kernel's own defaults are
//! not.

use crate::port::write_file;

/// Setting (sysctl(8)) and value. For the bounds on memory maps, watches and process ids the guest's
/// memory is the bound that counts: it is one session's.
const SETTINGS: [(&str, &str); 7] = [
    // dockerd forwards between the networks of containers.
    ("net.ipv4.ip_forward", "1"),
    // Watchers of files, of which each program takes one or more: the kernel has 128 for a user,
    // and as many watches as fit in 1 % of the memory (inotify(7)).
    ("fs.inotify.max_user_instances", "8192"),
    ("fs.inotify.max_user_watches", "524288"),
    // Databases and search engines map files in many pieces, and some refuse to start with the
    // kernel's 65530 (kernel, Documentation/admin-guide/sysctl/vm.rst).
    ("vm.max_map_count", "1048576"),
    // systemd sets both: no bound of the whole system on open files, process ids of 22 bits.
    ("fs.file-max", "9223372036854775807"),
    ("kernel.pid_max", "4194304"),
    // Every group may ping (icmp(7)).
    ("net.ipv4.ping_group_range", "0 2147483647"),
];

/// Makes all settings; what could not be made.
pub fn apply() -> Vec<String> {
    let failed = |(name, value): &(&str, &str)| {
        write_file(&path(name), value).err().map(|error| format!("{name}: {error}"))
    };
    SETTINGS.iter().filter_map(failed).collect()
}

fn path(name: &str) -> String {
    format!("/proc/sys/{}", name.replace('.', "/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_one_of_the_kernel() {
        for (name, value) in SETTINGS {
            let now = std::fs::read_to_string(path(name)).expect(name);
            // As many values, of the same kind.
            let is_number = |word: &str| word.parse::<u64>().is_ok();
            assert_eq!(now.split_whitespace().count(), value.split_whitespace().count(), "{name}");
            assert!(value.split_whitespace().all(is_number), "{name}");
        }
    }
}
