//! A session that deletes everything it can reach.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use futures::FutureExt;
use mayfly_engine::golden::{self, Verified};
use mayfly_engine::session::Session;
use mayfly_host::cgroup::Limits;
use mayfly_host::layout::Layout;

use super::check::{Check, Findings};
use super::guest::ask::sh;
use super::lab::Lab;
use super::options::{AuditError, Planted};
use super::report::{Attempt, Threat, Vantage};

pub(super) const CHECKS: &[Check] = &[Check {
    id: "destruction.rm",
    tried: "Run `rm -rf --no-preserve-root /` as root in a session, then look at the host, the golden, a neighbour and a fresh \
            session.",
    threat: Threat::Integrity,
    vantage: Vantage::GuestRoot,
    control: "The files of the session that ran it are gone.",
    run: |lab| rm(lab).boxed(),
}];

/// Programs and a library of every golden.
const FILES: &str = "/usr/bin/docker /usr/sbin/dockerd /usr/bin/perl /etc/passwd /bin/sh";

/// How many of them there are, counted by the shell itself.
async fn count(session: &Session) -> Result<usize, AuditError> {
    let said =
        sh(session, &format!("n=0; for f in {FILES}; do [ -e $f ] && n=$((n+1)); done; echo $n"))
            .await?;
    Ok(said.out.trim().parse().unwrap_or(0))
}

async fn rm(lab: &mut Lab) -> Result<Findings, AuditError> {
    let mut findings = Findings::default();
    let neighbour = lab.neighbour().await?;
    let failed = || AuditError::host("plant a file on the host");
    // Where a path of the guest could lead if it led to the host: the same name below the roots
    // that both have.
    let canaries: Vec<tempfile::NamedTempFile> = ["/tmp", "/var/tmp", "/dev/shm", "/root"]
        .into_iter()
        .filter(|folder| Path::new(folder).is_dir())
        .map(|folder| tempfile::Builder::new().prefix("mayfly-canary-").tempfile_in(folder))
        .collect::<Result<_, _>>()
        .map_err(failed())?;
    for canary in &canaries {
        std::fs::write(canary.path(), &lab.marks.host).map_err(failed())?;
    }
    let victim = lab.session(Limits::default()).await?;
    let before = count(&victim).await?;
    // What runs it is deleted by it, so the count afterwards is made by the shell that was started
    // before.
    let script = format!(
        "rm -rf --no-preserve-root / >/dev/null 2>&1; n=0; for f in {FILES}; do [ -e $f ] && n=$((n+1)); done; echo left $n"
    );
    let said = sh(&victim, &script).await?;
    let left: usize =
        said.answers().get("left").and_then(|left| left.parse().ok()).unwrap_or(usize::MAX);
    let control = (
        format!("{before} of 5 programs and files before, {left} after"),
        before == 5 && left == 0,
    );
    let alive = victim.discard().await;
    findings.notes.push(match alive {
        Ok(()) => "The session that ran it is discarded like any other.".into(),
        Err(error) => format!("The session that ran it cannot be discarded: {error}"),
    });

    let intact = canaries
        .iter()
        .filter(|canary| {
            std::fs::read_to_string(canary.path()).is_ok_and(|text| text == lab.marks.host)
        })
        .count();
    findings.push(Attempt::judge(
        "files planted on the host",
        control.clone(),
        (format!("{intact} of {} intact", canaries.len()), intact != canaries.len()),
    ));
    let there = count(&neighbour.session).await?;
    let docker = neighbour.session.docker_ping().await.is_ok();
    findings.push(Attempt::judge(
        "files and Docker of a neighbour",
        control.clone(),
        (format!("{there} of 5 there; Docker answers: {docker}"), there != 5 || !docker),
    ));
    let fresh = lab.session(Limits::default()).await?;
    let there = count(&fresh).await?;
    let docker = fresh.docker_ping().await.is_ok();
    findings.push(Attempt::judge(
        "files and Docker of a fresh session",
        control.clone(),
        (format!("{there} of 5 there; Docker answers: {docker}"), there != 5 || !docker),
    ));
    fresh.discard().await?;
    let (layout, name) = (lab.engine.layout().clone(), lab.golden.name().to_owned());
    let verified = tokio::task::spawn_blocking(move || verify_both(&layout, &name)).await;
    let (sound, damaged) =
        verified.map_err(|e| AuditError::host("verify the golden")(e.into()))??;
    let looked_at = if lab.options.plants(Planted::ChangedGolden) { &damaged } else { &sound };
    let seen = match looked_at.problems.as_slice() {
        [] => format!(
            "{} chunks and the base disk, {} bytes: all as they should be",
            sound.chunks, sound.bytes
        ),
        problems => problems.join(", "),
    };
    let (text, works) = control;
    let found = format!(
        "{text}; a copy of the store with one bit changed has {} problems",
        damaged.problems.len()
    );
    findings.push(Attempt::judge(
        "the golden: all its chunks and its base disk are hashed",
        (found, works && !damaged.problems.is_empty()),
        (seen, !looked_at.problems.is_empty()),
    ));
    Ok(findings)
}

/// Verifies the golden, and a copy of it with one bit changed.
fn verify_both(layout: &Layout, name: &str) -> Result<(Verified, Verified), AuditError> {
    let verify =
        |layout: &Layout| golden::verify(layout, name, &mut |_| {}, &AtomicBool::new(false));
    let failed = || AuditError::host("copy the store of the goldens");
    let dir = tempfile::tempdir().map_err(failed())?;
    let copy = Layout::new(dir.path(), layout.run());
    copy_folder(&layout.store(), &copy.store()).map_err(failed())?;
    std::os::unix::fs::symlink(layout.images(), copy.images()).map_err(failed())?;
    let files = files(&copy.store()).map_err(failed())?;
    // The one with the chunks.
    if let Some((length, path)) = files.iter().max() {
        let file =
            std::fs::OpenOptions::new().read(true).write(true).open(path).map_err(failed())?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, length / 2).map_err(failed())?;
        file.write_all_at(&[byte[0] ^ 1], length / 2).map_err(failed())?;
    }
    Ok((verify(layout)?, verify(&copy)?))
}

/// Copies a folder of plain files and folders.
fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_folder(&entry.path(), &target)?,
            false => std::fs::copy(entry.path(), target).map(drop)?,
        }
    }
    Ok(())
}

/// All files below a folder, with their lengths.
fn files(folder: &Path) -> std::io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => found.extend(files(&entry.path())?),
            false => found.push((entry.metadata()?.len(), entry.path())),
        }
    }
    Ok(found)
}
