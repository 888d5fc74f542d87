//! Pins: what a golden image demands of a host, and the check of it.

use crate::Digest;
use serde::{Deserialize, Serialize};

/// The properties of a host a snapshot can only be restored on unchanged.
///
/// A VMM guarantees that device state loads only in the machine it was saved from: same version,
/// machine line, CPU model (QEMU manual, "Migration: guest ABI"). The kernel is pinned because its
/// text is in the snapshot's RAM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPins {
    /// CPU architecture, as `uname -m` says it.
    pub arch: String,
    /// The VMM program, such as `qemu`.
    pub vmm: String,
    /// Full version of the VMM, `10.0.2`.
    pub vmm_version: String,
    /// The machine line, as given to the VMM.
    pub machine: String,
    /// The accelerator that the VMM was given, such as `kvm`: device and CPU state of one cannot be
    /// loaded under another.
    pub accel: String,
    /// The CPU model line, as given to the VMM.
    pub cpu_model: String,
    /// Hash of the guest kernel image.
    pub kernel_blake3: Digest,
}

/// The shape of the VM, needed to start an identical one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmShape {
    /// Number of virtual CPUs.
    pub vcpus: u32,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// The kernel command line the guest was booted with.
    pub kernel_cmdline: String,
}

/// A golden image and a host that do not fit: the first field that differs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is `{host}` here, the image needs `{golden}`; {advice}")]
pub struct Mismatch {
    /// Name of the field of [`HostPins`].
    pub field: &'static str,
    /// Value of it in the golden image.
    pub golden: String,
    /// Value of it on this host.
    pub host: String,
    /// Advice on what to do about it.
    pub advice: String,
}

impl HostPins {
    /// Compares the pins of a golden image (`self`) with those of a host.
    ///
    /// # Errors
    /// [`Mismatch`] for the first field that differs, in the order of declaration.
    pub fn check(&self, host: &HostPins) -> Result<(), Mismatch> {
        const REBUILD: &str = "or build it again here: `mayfly golden build`";
        let kernels = (self.kernel_blake3.to_string(), host.kernel_blake3.to_string());
        let fields = [
            (
                "arch",
                &self.arch,
                &host.arch,
                format!("restore it on an {} host, {REBUILD}", self.arch),
            ),
            (
                "vmm",
                &self.vmm,
                &host.vmm,
                format!("restore it with the VMM program {}, {REBUILD}", self.vmm),
            ),
            (
                "vmm_version",
                &self.vmm_version,
                &host.vmm_version,
                format!("install {} {}, {REBUILD}", self.vmm, self.vmm_version),
            ),
            (
                "machine",
                &self.machine,
                &host.machine,
                format!("start the VMM with that machine line, {REBUILD}"),
            ),
            (
                "accel",
                &self.accel,
                &host.accel,
                format!("restore it on a host with {}, {REBUILD}", self.accel),
            ),
            (
                "cpu_model",
                &self.cpu_model,
                &host.cpu_model,
                format!("start the VMM with that CPU model, {REBUILD}"),
            ),
            (
                "kernel_blake3",
                &kernels.0,
                &kernels.1,
                format!("put the kernel it was built with in place, {REBUILD}"),
            ),
        ];
        for (field, golden, host, advice) in fields {
            if golden != host {
                return Err(Mismatch { field, golden: golden.clone(), host: host.clone(), advice });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pins() -> HostPins {
        HostPins {
            arch: "x86_64".into(),
            vmm: "qemu".into(),
            vmm_version: "10.0.2".into(),
            machine: "microvm".into(),
            accel: "tcg".into(),
            cpu_model: "max".into(),
            kernel_blake3: Digest::of(b"kernel"),
        }
    }

    #[test]
    fn every_field_is_checked_and_named() {
        type Change = fn(&mut HostPins);
        assert_eq!(pins().check(&pins()), Ok(()));
        let changes: [(&str, Change); 7] = [
            ("arch", |p| p.arch = "aarch64".into()),
            ("vmm", |p| p.vmm = "firecracker".into()),
            ("vmm_version", |p| p.vmm_version = "7.2.0".into()),
            ("machine", |p| p.machine = "q35".into()),
            ("accel", |p| p.accel = "kvm".into()),
            ("cpu_model", |p| p.cpu_model = "host".into()),
            ("kernel_blake3", |p| p.kernel_blake3 = Digest::of(b"other")),
        ];
        for (field, change) in changes {
            let mut host = pins();
            change(&mut host);
            let mismatch = pins().check(&host).unwrap_err();
            assert_eq!(mismatch.field, field);
            let text = mismatch.to_string();
            for part in
                [field, mismatch.golden.as_str(), mismatch.host.as_str(), "mayfly golden build"]
            {
                assert!(text.contains(part), "{text}");
            }
        }
    }

    #[test]
    fn tcg_golden_is_refused_under_kvm_and_the_other_way_round() {
        let mut kvm = pins();
        kvm.accel = "kvm".into();
        assert_eq!(pins().check(&kvm).unwrap_err().field, "accel");
        assert_eq!(kvm.check(&pins()).unwrap_err().field, "accel");
    }
}
