//! Exchange between a host and a guest that only has to show that guests run here.

/// Kernel parameter that makes the initramfs say [`PROBE_ANSWER`] on the console and turn the guest
/// off.
pub const PROBE_PARAMETER: &str = "mayfly.probe";

/// Answer of the guest, once user space runs.
pub const PROBE_ANSWER: &str = "probe ok";
