//! The raw disk, and the files of the golden below it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use super::super::check::Findings;
use super::super::lab::Lab;
use super::super::options::{AuditError, Planted};
use super::super::report::Attempt;
use super::ask::perl;
use super::ask::run as command;
use super::memory::{SCAN, Scanned};

const DISK: &str = include_str!("disk.pl");
/// Where the mark is written: within the first block group, where every golden has data.
const OFFSET: &str = "1048576";

/// blake3 of a file, all of it.
fn hash(file: &mut File) -> Result<String, AuditError> {
    let mut read = || {
        file.seek(SeekFrom::Start(0))?;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hasher.finalize().to_hex().to_string()),
                count => hasher.update(&buffer[..count]),
            };
        }
    };
    read().map_err(AuditError::host("hash a disk of the golden"))
}

/// The hashes of the golden's base disk and disk delta. Each is opened anew, for descriptors share
/// their position with others.
async fn hashes(lab: &Lab) -> Result<Vec<String>, AuditError> {
    use std::os::fd::AsRawFd;
    let layers = lab.golden.disk_layers()?;
    let work = move || {
        layers
            .iter()
            .map(|layer| {
                let path = format!("/proc/self/fd/{}", layer.file.as_raw_fd());
                hash(&mut File::open(path).map_err(AuditError::host("open a disk of the golden"))?)
            })
            .collect()
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| AuditError::host("hash the golden's disks")(e.into()))?
}

/// The hash of a copy of the disk delta, and of the same with one bit changed.
async fn hashes_of_copy(lab: &Lab) -> Result<(String, String), AuditError> {
    use std::os::fd::AsRawFd;
    let layers = lab.golden.disk_layers()?;
    let work = move || {
        let failed = || AuditError::host("copy the golden's disk delta");
        let mut copy = tempfile::tempfile().map_err(failed())?;
        if let Some(delta) = layers.last() {
            let mut delta =
                File::open(format!("/proc/self/fd/{}", delta.file.as_raw_fd())).map_err(failed())?;
            std::io::copy(&mut delta, &mut copy).map_err(failed())?;
        }
        let before = hash(&mut copy)?;
        let mut byte = [0];
        let middle = copy.metadata().map_err(failed())?.len() / 2;
        copy.read_exact_at(&mut byte, middle).map_err(failed())?;
        copy.write_all_at(&[byte[0] ^ 1], middle).map_err(failed())?;
        Ok((before, hash(&mut copy)?))
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| AuditError::host("hash the golden's disks")(e.into()))?
}

pub(super) async fn run(lab: &mut Lab) -> Result<Findings, AuditError> {
    let mut findings = Findings::default();
    lab.neighbour().await?;
    let subject = lab.subject().await?;
    let scan =
        command(&subject.session, &["perl", "-e", SCAN, "/dev/vda", &lab.marks.prefix]).await?;
    let what = "search the whole raw disk for a neighbour's and the host's marks";
    findings.push(match scan.code {
        0 => Scanned::new(&scan, &lab.marks).attempt(what),
        _ => Attempt::not_proven(what, scan.all()),
    });

    // Its file system is ruined by it.
    let writer = lab.session(mayfly_host::cgroup::Limits::default()).await?;
    let before = hashes(lab).await?;
    let mark = format!("{}{}", lab.marks.prefix, lab.marks.own);
    let wrote = perl(&writer, DISK, &["write", OFFSET, &mark]).await?.answers();
    let mut after = hashes(lab).await?;
    if lab.options.plants(Planted::ChangedGolden)
        && let Some(delta) = after.last_mut()
    {
        *delta = hashes_of_copy(lab).await?.1;
    }
    let get = |name: &str| wrote.get(name).map_or("", String::as_str);
    let (copy, changed) = hashes_of_copy(lab).await?;
    let held = get("text") == mark;
    findings.push(Attempt::judge(
        "overwrite the raw disk; hash the golden's base disk and disk delta before and after",
        (
            format!(
                "the writer reads back its mark: {held}; the hash of a copy with one bit changed differs: {}",
                copy != changed
            ),
            held && copy != changed && before.last() == Some(&copy),
        ),
        match before == after {
            true => (format!("the same: {}", before.iter().map(|h| &h[..16]).collect::<Vec<_>>().join(", ")), false),
            false => (format!("{before:?} became {after:?}"), true),
        },
    ));
    let later = lab.session(mayfly_host::cgroup::Limits::default()).await?;
    let read = perl(&later, DISK, &["read", OFFSET, ""]).await?.answers();
    let text = read.get("text").cloned().unwrap_or_default();
    findings.push(Attempt::judge(
        "read in a later session what was written",
        (format!("the writer reads {}", get("text")), held),
        (
            format!("the later session reads {:?}", text.chars().take(64).collect::<String>()),
            text.contains(&mark),
        ),
    ));
    let control = (
        format!("a write within the disk: {} of 4096 bytes", get("written")),
        get("written") == "4096",
    );
    for (what, name, success) in [
        ("write past the end of the disk", "beyond-write", "4096"),
        ("read past the end of the disk", "beyond-read", "4096"),
        ("discard past the end of the disk", "beyond-discard", "done"),
    ] {
        let seen = get(name).to_owned();
        findings.push(Attempt::judge(what, control.clone(), (seen.clone(), seen == success)));
    }
    writer.discard().await?;
    later.discard().await?;
    Ok(findings)
}
