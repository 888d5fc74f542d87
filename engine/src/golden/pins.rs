//! Pins of a golden: properties of a host that a snapshot depends on.

use mayfly_snapshotter::{Digest, HostPins};
use mayfly_vmm::{Accel, Driver};

/// Returns the pins of this host for goldens that run with `accel`. The kernel belongs to the
/// golden; the caller passes it on.
pub fn host_pins(driver: &dyn Driver, accel: Accel, kernel_blake3: Digest) -> HostPins {
    // Under KVM the guest sees the host's very CPU.
    let cpu_model = match accel {
        Accel::Tcg => driver.cpu_model(accel).to_owned(),
        Accel::Kvm => format!("{} on {}", driver.cpu_model(accel), cpu_identity()),
    };
    HostPins {
        arch: std::env::consts::ARCH.to_owned(),
        vmm: driver.name(accel).to_owned(),
        vmm_version: driver.version(accel).to_owned(),
        machine: driver.machine().to_owned(),
        accel: accel.to_string(),
        cpu_model,
        kernel_blake3,
    }
}

/// Vendor, family, model, stepping and feature flags of the first CPU (proc(5), `/proc/cpuinfo`).
fn cpu_identity() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let first = info.split("\n\n").next().unwrap_or_default();
    let field = |name: &str| {
        let line =
            first.lines().find(|l| l.split(':').next().is_some_and(|key| key.trim() == name));
        line.and_then(|l| l.split_once(':')).map_or("?", |(_, value)| value.trim())
    };
    let flags = blake3::hash(field("flags").as_bytes()).to_hex();
    format!(
        "{} {}/{}/{} flags {}",
        field("vendor_id"),
        field("cpu family"),
        field("model"),
        field("stepping"),
        &flags[..16]
    )
}
