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
    ("boot_id", BOOT_ID),
];
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Another at each read, of the same form (random(4)).
const RANDOM_UUID: &str = "/proc/sys/kernel/random/uuid";

/// Where the text that a file has until the first identity comes from. The kernel makes its boot id
/// at the first read of any procfs and keeps it (`proc_do_uuid` in `drivers/char/random.c`), and
/// containers have a procfs of their own: read here it would be in the snapshot, and the same in
/// the containers of all sessions.
fn filled_from(place: &'static str) -> &'static str {
    if place == BOOT_ID { RANDOM_UUID } else { place }
}

/// Fills the files, with what is in their places now where that may be read, and mounts them there.
pub fn mount_over(layout: &Layout) -> Result<(), String> {
    for (name, place) in PLACES {
        let source = layout.identity.join(name);
        let mut text = std::fs::read_to_string(filled_from(place)).unwrap_or_default();
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
