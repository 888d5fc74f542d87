//! The KVM probe's guest, where guests run for certain.

use mayfly_chaos_tests::slots;
use mayfly_engine::host::kvm;

use crate::support::engine;

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_guest_answers_under_emulation() {
    let (engine, golden) = engine().await;
    let _one = slots::take(1);
    let artifacts = engine.layout().images().join("rootfs").join(&golden.manifest().labels["image_key"]);
    let answer = kvm::control(&**engine.driver(), &artifacts.join("vmlinux"), &artifacts.join("initramfs.cpio")).await;
    assert_eq!(answer, Ok(()));
}
