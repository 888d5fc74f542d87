//! Check of KVM.

use std::sync::Arc;

use mayfly_golden_images::{BootArtifacts, Builder, Recipe};
use mayfly_host::facts::Facts;
use mayfly_host::instance::Instance;
use mayfly_host::layout::{self, Layout};
use mayfly_snapshotter::{Digest, SealKey};
use mayfly_vmm::qemu::QemuDriver;

use super::{Check, Outcome};
use crate::golden::ArtifactSeal;
use crate::kvm;

const SUBJECT: &str = "KVM";
const SLOWER: &str = "without it sessions run under software emulation, 10 to 30 times slower inside and no security boundary by \
    QEMU's own policy";

pub(super) async fn check(layout: &Layout) -> Check {
    if let Err((found, remedy)) = kvm::look() {
        return limited(found, remedy);
    }
    let Some(artifacts) = boot_artifacts(layout) else {
        let found = format!(
            "{} opens, which proves little; not probed yet for lack of a guest kernel",
            kvm::DEVICE
        );
        return Check::new(
            SUBJECT,
            Outcome::Limited,
            found,
            "run `mayfly golden build`, which runs a probe guest",
        );
    };
    match verdict(layout, &artifacts).await {
        Ok(verdict) => match verdict.obstacle() {
            None => Check::ok(SUBJECT, "usable: a probe guest ran to user space"),
            Some(kvm::Obstacle { found, remedy }) => limited(found, &remedy),
        },
        Err(reason) => limited(format!("cannot be probed: {reason}"), "see the other lines"),
    }
}

fn limited(found: String, remedy: &str) -> Check {
    Check::new(SUBJECT, Outcome::Limited, found, format!("{remedy}; {SLOWER}"))
}

async fn verdict(layout: &Layout, artifacts: &BootArtifacts) -> Result<kvm::Verdict, String> {
    let library = layout::preload_library().map_err(|e| e.to_string())?;
    let driver = QemuDriver::find(&library, layout).map_err(|e| e.to_string())?;
    let instance = Instance::enter(layout).map_err(|e| e.to_string())?;
    let (kernel, initramfs) = (&artifacts.kernel.path, &artifacts.initramfs.path);
    let probe = kvm::Probe { driver: &driver, instance: &instance, kernel, initramfs };
    Ok(kvm::verdict(layout, probe, &Digest::from(artifacts.kernel.blake3)).await.verdict)
}

/// Kernel and initramfs of the default golden image, when its boot artifacts are there.
fn boot_artifacts(layout: &Layout) -> Option<BootArtifacts> {
    let key = SealKey::load(layout.seal_key()).ok()?;
    let seal = Arc::new(ArtifactSeal::new(key, Facts::new(layout)));
    let builder = Builder::new(layout.images(), layout::guest_agent().ok()?, seal);
    builder.find(&Recipe::builtin_default()).ok()?
}
