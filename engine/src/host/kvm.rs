//! Whether `/dev/kvm` really runs a Linux guest.
//!
//! That the device opens proves nothing: there are hosts whose KVM is emulated in software and stops on instructions every
//! stock kernel uses. So the golden's own kernel is booted once under KVM, with a short limit, and the verdict kept until
//! the host reboots.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mayfly_protocol::{PROBE_ANSWER, PROBE_PARAMETER};
use mayfly_snapshotter::Digest;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use super::facts::Facts;
use crate::layout::Layout;
use crate::session::{UidPool, UidRange};
use crate::vmm::{
    Accel, Confinement, Descriptors, DirectBoot, Driver, LaunchSpec, MachineShape, Purpose, RamDescriptors, VmmError,
};

/// How long a probe guest may take. Under hardware KVM it needs well under a second.
pub const PROBE_LIMIT: Duration = Duration::from_secs(5);
const FACT: &str = "kvm";
/// Changes with what a probe does, so that no verdict of an earlier way of probing is believed.
const PROBE_VERSION: u32 = 2;

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// A Linux guest ran to user space.
    Usable,
    /// There is no usable device.
    NoDevice {
        /// Why.
        reason: String,
    },
    /// The device opens, but a Linux guest does not run on it.
    Broken {
        /// What happened instead.
        reason: String,
    },
}

/// The verdict about this kernel on this host, from memory or by running a probe guest.
pub async fn probe(
    layout: &Layout,
    driver: &dyn Driver,
    kernel: &Path,
    initramfs: &Path,
    kernel_blake3: &Digest,
) -> Verdict {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        return Verdict::NoDevice { reason: format!("cannot open /dev/kvm: {error}") };
    }
    let facts = Facts::new(layout);
    let subject = format!("{PROBE_VERSION} {kernel_blake3} {}", driver.version());
    if let Some(verdict) = facts.get(FACT, &subject) {
        return verdict;
    }
    let verdict = match run(driver, kernel, initramfs).await {
        Ok(()) => Verdict::Usable,
        Err(reason) => Verdict::Broken { reason },
    };
    tracing::info!(?verdict, "KVM probed");
    facts.put(FACT, &subject, &verdict);
    verdict
}

/// KVM when it is usable, else software emulation.
pub async fn usable_accel(
    layout: &Layout,
    driver: &dyn Driver,
    kernel: &Path,
    initramfs: &Path,
    kernel_blake3: &Digest,
) -> Accel {
    match probe(layout, driver, kernel, initramfs, kernel_blake3).await {
        Verdict::Usable => Accel::Kvm,
        Verdict::NoDevice { .. } | Verdict::Broken { .. } => Accel::Tcg,
    }
}

async fn run(driver: &dyn Driver, kernel: &Path, initramfs: &Path) -> Result<(), String> {
    boot(driver, Accel::Kvm, PROBE_LIMIT, kernel, initramfs).await
}

/// Boots a probe guest with `accel` and waits for its word.
async fn boot(
    driver: &dyn Driver,
    accel: Accel,
    limit: Duration,
    kernel: &Path,
    initramfs: &Path,
) -> Result<(), String> {
    let open = |path: &Path| File::open(path).map_err(|e| format!("cannot open {}: {e}", path.display()));
    let uids = UidRange::from_env().map_err(|e| e.to_string())?;
    let uid = Arc::new(UidPool::new(uids)).take().map_err(|e| e.to_string())?;
    let memory_bytes = 256 << 20;
    let memory = memfd_create("mayfly-probe", MFdFlags::MFD_CLOEXEC).map_err(|e| e.to_string())?;
    nix::unistd::ftruncate(&memory, memory_bytes).map_err(|e| e.to_string())?;
    let spec = LaunchSpec {
        shape: MachineShape { accel, vcpus: 1, memory_bytes: memory_bytes as u64 },
        purpose: Purpose::Boot(DirectBoot {
            kernel: open(kernel)?.into(),
            initramfs: open(initramfs)?.into(),
            cmdline: crate::golden::cmdline(&format!("console=ttyS0 reboot=t panic=-1 {PROBE_PARAMETER}"), accel),
        }),
        descriptors: Descriptors { ram: RamDescriptors::Template { file: memory }, disk: Vec::new() },
        confinement: Confinement { uid: Some(uid.get()), ..Confinement::default() },
    };
    let mut launched = driver.launch(spec).await.map_err(|e| e.to_string())?;
    let console = launched.console.clone();
    let answered = async {
        while !console.last_lines(200).contains(PROBE_ANSWER) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let outcome = tokio::select! {
        biased;
        () = answered => Ok(()),
        died = launched.vmm.exited() => Err(match died {
            VmmError::Died { exit, stderr } if !stderr.is_empty() => format!("QEMU ended with {exit}: {stderr}"),
            other => other.to_string(),
        }),
        () = tokio::time::sleep(limit) => {
            let last = console.last_lines(1);
            let progress = if last.is_empty() { "printed nothing".to_owned() } else { format!("got as far as: {last}") };
            Err(format!("a probe guest did not reach user space within {limit:?} ({progress})"))
        }
    };
    launched.vmm.kill().await.map_err(|e| e.to_string())?;
    outcome
}

/// Boots a probe guest under software emulation, where every guest runs: the control without which a probe that always says
/// no would pass for a host without KVM.
///
/// # Errors
/// What happened instead of the guest's answer.
pub async fn control(driver: &dyn Driver, kernel: &Path, initramfs: &Path) -> Result<(), String> {
    boot(driver, Accel::Tcg, Duration::from_secs(60), kernel, initramfs).await
}
