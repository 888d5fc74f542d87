//! The controllers in use.

use std::fmt;

/// A controller (cgroups(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Controller {
    Memory,
    Pids,
    Cpu,
    Io,
}

use Controller::{Cpu, Io, Memory, Pids};

/// Without one of these there are no sessions.
pub(super) const REQUIRED: [Controller; 3] = [Memory, Pids, Cpu];
/// All of them. A host without `io` lacks only that bound, where it is asked for.
pub(super) const ALL: [Controller; 4] = [Memory, Pids, Cpu, Io];

impl Controller {
    pub fn v2_name(self) -> &'static str {
        match self {
            Memory => "memory",
            Pids => "pids",
            Cpu => "cpu",
            Io => "io",
        }
    }

    pub fn v1_name(self) -> &'static str {
        match self {
            Io => "blkio",
            other => other.v2_name(),
        }
    }

    /// Returns the controllers that a text of v2 names, such as that of `cgroup.controllers`.
    pub fn named_in(text: &str) -> Vec<Self> {
        ALL.into_iter()
            .filter(|controller| text.split_whitespace().any(|name| name == controller.v2_name()))
            .collect()
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.v2_name())
    }
}

/// The required ones that are not among `found`.
pub(super) fn missing_of(found: &[Controller]) -> Vec<Controller> {
    REQUIRED.into_iter().filter(|controller| !found.contains(controller)).collect()
}

/// `a, b and c`.
pub(super) fn list(controllers: &[Controller]) -> String {
    let names: Vec<&str> = controllers.iter().map(|controller| controller.v2_name()).collect();
    match names.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        None => String::new(),
    }
}

/// The word of the kernel's command line that turned one of these off (`kernel-parameters.txt`,
/// `cgroup_disable=`).
pub(super) fn disabled_in(command_line: &str, controllers: &[Controller]) -> Option<String> {
    let mut words = command_line.split_whitespace();
    let word = words.find(|word| {
        let names = word.strip_prefix("cgroup_disable=");
        names.is_some_and(|names| {
            names.split(',').any(|name| controllers.iter().any(|c| c.v2_name() == name))
        })
    });
    word.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::super::CgroupError;
    use super::super::error::{Missing, MissingIn};
    use super::*;

    #[test]
    fn what_was_turned_off_at_boot_is_found_on_the_command_line() {
        let missing = [Memory];
        let line = "BOOT_IMAGE=/vmlinuz root=/dev/vda1 ro cgroup_disable=hugetlb,memory quiet\n";
        let word = disabled_in(line, &missing).unwrap();
        assert_eq!(word, "cgroup_disable=hugetlb,memory");
        assert_eq!(disabled_in(line, &[Pids]), None);
        assert_eq!(disabled_in("cgroup_disable=memory_recursiveprot quiet", &missing), None);
        assert_eq!(
            CgroupError::Controllers(Missing::new(&missing, MissingIn::Boot { word })).to_string(),
            "the kernel was booted with cgroup_disable=hugetlb,memory, and sessions need memory; \
             boot without cgroup_disable=hugetlb,memory"
        );
    }
}
