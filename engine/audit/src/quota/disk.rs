//! Disk fillers.

use std::os::unix::fs::MetadataExt;

use mayfly_engine::session::Session;
use mayfly_host::cgroup::Limits;

use super::super::vmm::disk::overlay_of;
use super::starts;
use crate::check::Findings;
use crate::guest::ask::sh;
use crate::lab::Lab;
use crate::options::AuditError;
use crate::report::Attempt;

/// The quota, in bytes.
const QUOTA: u64 = 64 << 20;
/// What is written, in MiB.
const WANTED: u64 = 160;
/// What an overlay's own tables may take beside the guest's data, in bytes.
const SLACK: u64 = 1 << 20;

/// Blocks of a VMM's writable disk in bytes, and how much free space its file system has.
fn overlay(pid: u32) -> Option<(u64, u64)> {
    let (_, path) = overlay_of(pid)?;
    let file = std::fs::metadata(&path).ok()?;
    // stat(2): blocks of 512 bytes.
    let free = nix::sys::statvfs::statvfs(&path).ok()?;
    Some((file.blocks() * 512, free.blocks_available() * free.fragment_size()))
}

/// Has a session fill its disk. Returns what its guest says, the overlay's size, and by how much
/// the host's space shrank.
async fn fill(session: &Session) -> Result<(String, u64, u64), AuditError> {
    let gone = || AuditError::host("find the disk of a VMM")(std::io::ErrorKind::NotFound.into());
    let (_, before) = overlay(session.vmm_pid()).ok_or_else(gone)?;
    // In the root file system, past the guest's page cache.
    let script = format!(
        "dd if=/dev/zero of=/root/fill bs=1M count={WANTED} conv=fsync 2>&1 | tail -n 3; dmesg | grep -c 'I/O error'"
    );
    let said = sh(session, &script).await;
    let (blocks, after) = overlay(session.vmm_pid()).unwrap_or((u64::MAX, 0));
    let said = said.map_or_else(|error| error.to_string(), |said| said.all());
    Ok((said, blocks, before.saturating_sub(after)))
}

pub(super) async fn run(lab: &mut Lab) -> Result<Findings, AuditError> {
    let mut findings = Findings::default();
    let neighbour = lab.neighbour().await?;
    let alone = starts::measure(lab).await?;
    let free = lab.session(Limits::default()).await?;
    let (free_said, free_blocks, _) = fill(&free).await?;
    free.discard().await?;
    let bounded = lab.session(Limits { disk_bytes: Some(QUOTA), ..Limits::default() }).await?;
    let (outcome, beside) = tokio::join!(fill(&bounded), starts::measure(lab));
    let (said, blocks, shrunk) = outcome?;
    bounded.discard().await?;
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let control = (
        format!("without a quota the overlay has {}: {free_said}", mib(free_blocks)),
        free_blocks != u64::MAX && free_blocks > QUOTA + SLACK,
    );
    findings.push(Attempt::judge(
        format!("write {WANTED} MiB with a quota of {}", mib(QUOTA)),
        control.clone(),
        (
            format!("the overlay has {}; the guest says: {said}", mib(blocks)),
            blocks > QUOTA + SLACK,
        ),
    ));
    findings.notes.push(format!(
        "The host's free space shrank by {} meanwhile, by whatever runs on it.",
        mib(shrunk)
    ));
    let written = sh(
        &neighbour.session,
        "dd if=/dev/zero of=/root/some bs=1M count=4 conv=fsync 2>&1 && rm /root/some",
    )
    .await?;
    findings.push(Attempt::judge(
        "keep a neighbour from writing",
        control,
        (written.all(), written.code != 0),
    ));
    findings.push(starts::attempt(&alone, &beside?));
    Ok(findings)
}
