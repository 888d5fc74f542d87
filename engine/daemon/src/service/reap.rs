//! Removes what the sessions of a dead daemon left behind, going by its journal.

use std::time::Duration;

use mayfly_api::TenantName;
use mayfly_host::time_scale::scaled;
use mayfly_host::uid::UidRange;
use mayfly_host::{cgroup, instance};
use procfs::process::Process;

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
///
/// The journal may have been written by somebody who is not root. So nothing is removed but what has
/// the name of something of ours, and no process is killed of which `is_vmm` does not hold.
pub(super) fn reap(
    journal: &Journal,
    is_vmm: impl Fn(u32) -> bool,
) -> Result<Vec<Reaped>, JournalError> {
    let mut lines = Vec::new();
    for record in journal.records()? {
        let (found, clean) = if has_names_of_ours(&record) {
            remove(&record, &is_vmm)
        } else {
            (vec!["its entry names what is none of a session's, and is left alone".into()], true)
        };
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

/// Whether an entry names a cgroup and a socket as they are made for its session.
fn has_names_of_ours(record: &JournalEntry) -> bool {
    let JournalEntry { id, cgroup, docker_socket, .. } = record;
    let is_word = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric());
    let is_engine = |text: &str| !text.is_empty() && text.split('-').all(is_word);
    let Some((engine, session)) = cgroup.split_once('/') else { return false };
    let mut names = docker_socket.iter().rev().map(|name| name.to_string_lossy());
    is_word(id)
        && session == id
        && is_engine(engine)
        && names.next().is_some_and(|name| name == format!("{id}.docker.sock"))
        && names.next().is_some_and(|name| name == engine)
}

/// Whether a process runs as one of `users`.
pub(super) fn is_of(users: UidRange, pid: u32) -> bool {
    let process = i32::try_from(pid).ok().and_then(|pid| Process::new(pid).ok());
    process.and_then(|process| process.status().ok()).is_some_and(|it| users.meets(it.ruid, 1))
}

/// What was found, and whether nothing is left.
fn remove(record: &JournalEntry, is_vmm: &impl Fn(u32) -> bool) -> (Vec<String>, bool) {
    let mut found = Vec::new();
    let mut clean = true;
    // The start time tells whether the process is still the one that was written down.
    if let Some((pid, name)) =
        record.vmm.as_deref().and_then(|name| Some((instance::pid_of(name)?, name)))
        && instance::is_alive(name)
        && is_vmm(pid)
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
    fn an_entry_that_names_what_is_none_of_ours_removes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, own) = (Journal::open(&dir.path().join("journal")).unwrap(), "999999999-1");
        let file = dir.path().join("a.docker.sock");
        std::fs::write(&file, "").unwrap();
        for (id, cgroup, socket) in [
            ("a", format!("{own}/a"), file.clone()),
            ("a", format!("{own}/b"), dir.path().join(own).join("a.docker.sock")),
            ("a", "/a".to_owned(), dir.path().join("a.docker.sock")),
            ("..", format!("{own}/.."), dir.path().join(own).join("...docker.sock")),
            ("a", "../../a".to_owned(), dir.path().join("..").join("a.docker.sock")),
        ] {
            let mut entry = record(id);
            (entry.cgroup, entry.docker_socket) = (cgroup, socket);
            assert!(!has_names_of_ours(&entry), "{entry:?}");
            journal.put(&entry).unwrap();
            let lines = reap(&journal, |_| true).unwrap();
            assert!(lines[0].line.contains("is left alone"), "{}", lines[0].line);
            assert!(file.exists());
        }
        assert!(has_names_of_ours(&record("a")));
    }

    #[test]
    fn a_live_process_is_killed_a_socket_removed_and_a_reused_pid_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(&dir.path().join("journal")).unwrap();
        let mut leftover = Command::new("sleep").arg("1000").spawn().unwrap();
        let mut stranger = Command::new("sleep").arg("1000").spawn().unwrap();
        let engine = dir.path().join("999999999-1");
        std::fs::create_dir(&engine).unwrap();
        let socket = engine.join("a.docker.sock");
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
        let lines = reap(&journal, |_| true).unwrap();
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
        assert_eq!(reap(&journal, |_| true).unwrap(), Vec::<Reaped>::new());
    }

    #[test]
    fn a_process_of_another_user_is_not_killed() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        let mut other = Command::new("sleep").arg("1000").spawn().unwrap();
        let mut entry = record("a");
        entry.vmm = instance::name_of(other.id());
        journal.put(&entry).unwrap();
        reap(&journal, |pid| is_of(UidRange::default(), pid)).unwrap();
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn what_cannot_be_removed_stays_in_the_journal() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(&dir.path().join("journal")).unwrap();
        let mut kept = record("a");
        // A folder in the socket's place cannot be removed as a file.
        kept.docker_socket = dir.path().join("999999999-1/a.docker.sock");
        std::fs::create_dir_all(&kept.docker_socket).unwrap();
        journal.put(&kept).unwrap();
        let lines = reap(&journal, |_| true).unwrap();
        assert!(lines[0].line.contains("cannot be removed"), "{}", lines[0].line);
        assert_eq!(journal.records().unwrap(), [kept]);
    }
}
