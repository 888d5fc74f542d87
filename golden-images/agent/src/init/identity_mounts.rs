//! Puts the identity files in place: bind mounts from /run, so that a session changes memory and
//! not the disk.

use crate::config::Layout;
use nix::mount::{MsFlags, mount};
use std::fs::OpenOptions;
use std::path::Path;

/// Identity file and the place it is mounted over.
const PLACES: [(&str, &str); 4] = [
    ("machine-id", "/etc/machine-id"),
    ("hostname", "/etc/hostname"),
    ("hosts", "/etc/hosts"),
    ("boot_id", "/proc/sys/kernel/random/boot_id"),
];

/// Fills the files with what is in their places now, and mounts them there.
pub fn mount_over(layout: &Layout) -> Result<(), String> {
    for (name, place) in PLACES {
        let source = layout.identity.join(name);
        let mut text = std::fs::read_to_string(place).unwrap_or_default();
        if name == "hosts" && !text.contains("localhost") {
            text = crate::identity::hosts_text("localhost");
        }
        std::fs::write(&source, text).map_err(|error| format!("{}: {error}", source.display()))?;
        if !Path::new(place).exists() {
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(place)
                .map_err(|error| format!("make {place}: {error}"))?;
        }
        mount(Some(&source), place, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|error| format!("mount {} over {place}: {error}", source.display()))?;
    }
    let name = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    let name = if name.trim().is_empty() { "mayfly" } else { name.trim() };
    nix::unistd::sethostname(name).map_err(|error| format!("set host name {name}: {error}"))
}
