//! Makes a guest that has nothing to do wake up seldom: under software emulation each of hundreds of
//! idle guests costs its host as much as they wake up.

use crate::port::write_file;
use std::io;

/// What the kernel does now and then, and a guest that lives for minutes can do without.
const SETTINGS: [(&str, &str); 2] = [
    // Counters of memory are folded into their sums once a second.
    ("/proc/sys/vm/stat_interval", "60"),
    // The compaction of memory is looked after twice a second unless it is told not to be proactive.
    ("/proc/sys/vm/compaction_proactiveness", "0"),
];

/// Does it all; what could not be done.
pub fn prepare() -> Vec<String> {
    let mut warnings: Vec<String> = SETTINGS
        .iter()
        .filter_map(|(path, value)| {
            write_file(path, value).err().map(|error| format!("{path}: {error}"))
        })
        .collect();
    if let Err(error) = stop_interval_timer() {
        warnings.push(format!("the interval timer: {error}"));
    }
    warnings
}

/// Stops channel 0 of the interval timer (Intel 8254), which nobody listens to: the kernel has the
/// timer of the local APIC, and has stopped this one only since Linux 6.13 where it never used it. A
/// VMM emulates its 36 edges a second all the same.
#[cfg(target_arch = "x86_64")]
fn stop_interval_timer() -> io::Result<()> {
    const CHANNEL_0: u16 = 0x40;
    const CONTROL: u16 = 0x43;
    /// Channel 0, low byte and high byte, mode 0: it counts down once.
    const COUNT_ONCE: u8 = 0x30;
    let ports = (libc::c_ulong::from(CHANNEL_0), libc::c_ulong::from(CONTROL - CHANNEL_0 + 1));
    // SAFETY: takes numbers.
    if unsafe { libc::ioperm(ports.0, ports.1, 1) } != 0 {
        return Err(io::Error::last_os_error());
    }
    for (port, byte) in [(CONTROL, COUNT_ONCE), (CHANNEL_0, 0), (CHANNEL_0, 0)] {
        // SAFETY: the process may write to these ports, whose device has no access to memory.
        unsafe {
            std::arch::asm!("out dx, al", in("dx") port, in("al") byte, options(nomem, nostack));
        }
    }
    // SAFETY: takes numbers; what is started from here on has no such right.
    match unsafe { libc::ioperm(ports.0, ports.1, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn stop_interval_timer() -> io::Result<()> {
    Ok(())
}
