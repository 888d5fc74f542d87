//! Removes what the sessions of a dead daemon left behind, going by its journal.

use std::time::Duration;

use mayfly_api::TenantName;
use mayfly_host::time_scale::scaled;
use mayfly_host::{cgroup, instance};

use super::journal::{Journal, JournalEntry, JournalError};

/// How long a killed process may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Something that a dead daemon had left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reaped {
    /// Whose it was; `None` is nobody's, which the operator alone may see.
    pub tenant: Option<TenantName>,
    /// What was found.
    pub line: String,
}

/// Removes everything the journal knows of; says what it found, one line for each session. What
/// cannot be removed stays in the journal for the next time.
pub(super) fn reap(journal: &Journal) -> Result<Vec<Reaped>, JournalError> {
    let mut lines = Vec::new();
    for record in journal.records()? {
        let (found, clean) = remove(&record);
        let JournalEntry { id, golden, tenant, .. } = &record;
        lines.push(Reaped {
            tenant: Some(tenant.clone()),
            line: format!(
                "session {id} of golden {golden} (tenant {tenant}): {}",
                found.join(", ")
            ),
        });
        if clean {
            journal.remove(&record.id)?;
        }
    }
    Ok(lines)
}

/// What was found, and whether nothing is left.
fn remove(record: &JournalEntry) -> (Vec<String>, bool) {
    let mut found = Vec::new();
    let mut clean = true;
    // The start time tells whether the process is still the one that was written down.
    if let Some((pid, name)) =
        record.vmm.as_deref().and_then(|name| Some((instance::pid_of(name)?, name)))
        && instance::is_alive(name)
    {
        match instance::kill(name, scaled(KILL_LIMIT)) {
            Ok(()) => found.push(format!("its VMM {pid} was alive and is killed")),
            Err(error) => {
                found.push(format!("its VMM {pid} cannot be killed: {error}"));
                clean = false;
            }
        }
    }
    if !cgroup::directories(&record.cgroup).is_empty() {
        match cgroup::remove_tree(&record.cgroup) {
            Ok(()) => found.push("cgroup removed".into()),
            Err(error) => {
                found.push(error.to_string());
                clean = false;
            }
        }
    }
    match std::fs::remove_file(&record.docker_socket) {
        Ok(()) => found.push("docker socket removed".into()),
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) => {}
        Err(error) => {
            found.push(format!(
                "docker socket {} cannot be removed: {error}",
                record.docker_socket.display()
            ));
            clean = false;
        }
    }
    if found.is_empty() {
        found.push("its VMM is dead, nothing else was left".into());
    }
    (found, clean)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::service::journal::tests::record;

    #[test]
    fn a_live_process_is_killed_a_socket_removed_and_a_reused_pid_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(&dir.path().join("journal")).unwrap();
        let mut leftover = Command::new("sleep").arg("1000").spawn().unwrap();
        let mut stranger = Command::new("sleep").arg("1000").spawn().unwrap();
        let socket = dir.path().join("a.docker.sock");
        std::fs::write(&socket, "").unwrap();

        let mut first = record("a");
        first.vmm = instance::name_of(leftover.id());
        first.docker_socket = socket.clone();
        let mut second = record("b");
        // The process id is in use again, by a process that started at another time.
        second.vmm = Some(format!("{}-1", stranger.id()));
        journal.put(&first).unwrap();
        journal.put(&second).unwrap();

        // Somebody has to wait for the killed child, as init does for an orphan.
        let waiter = std::thread::spawn(move || leftover.wait().unwrap());
        let lines = reap(&journal).unwrap();
        assert!(!waiter.join().unwrap().success());
        assert_eq!(lines.len(), 2);
        assert!(
            lines[0].line.contains("session a of golden default (tenant default)"),
            "{}",
            lines[0].line
        );
        assert!(
            lines[0].line.contains("alive and is killed")
                && lines[0].line.contains("docker socket removed"),
            "{}",
            lines[0].line
        );
        assert!(lines[1].line.contains("its VMM is dead"), "{}", lines[1].line);
        assert!(stranger.try_wait().unwrap().is_none());
        assert!(!socket.exists());
        stranger.kill().unwrap();
        stranger.wait().unwrap();
        assert_eq!(journal.records().unwrap(), []);
        assert_eq!(reap(&journal).unwrap(), Vec::<Reaped>::new());
    }

    #[test]
    fn what_cannot_be_removed_stays_in_the_journal() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(&dir.path().join("journal")).unwrap();
        let mut kept = record("a");
        // A folder in the socket's place cannot be removed as a file.
        kept.docker_socket = dir.path().join("folder");
        std::fs::create_dir(&kept.docker_socket).unwrap();
        journal.put(&kept).unwrap();
        let lines = reap(&journal).unwrap();
        assert!(lines[0].line.contains("cannot be removed"), "{}", lines[0].line);
        assert_eq!(journal.records().unwrap(), [kept]);
    }
}
