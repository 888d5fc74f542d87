//! `mayfly cp`: files into and out of a session.

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mayfly_api::Kind;
use mayfly_client::{Client, ClientError, GuestPath};
use mayfly_guest::archive::{self, Landing};
use tokio::net::unix::pipe;

use super::daemon;
use crate::args;
use crate::failure::Failure;
use crate::interrupt::Interrupts;

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side<'a> {
    Host(&'a Path),
    Guest { id: &'a str, path: &'a str },
}

impl<'a> Side<'a> {
    /// `ID:PATH` is a guest's; a path of this host that looks so is written with a `/`, as in
    /// `./a:b`.
    fn parse(text: &'a str) -> Self {
        match text.split_once(':') {
            Some((id, path)) if !id.is_empty() && !id.contains(['/', '.']) => {
                Self::Guest { id, path }
            }
            _ => Self::Host(Path::new(text)),
        }
    }
}

pub async fn run(args: &args::CpArgs) -> Result<ExitCode, Failure> {
    let mut interrupts = Interrupts::install()?;
    let client = daemon();
    let user = args.user.as_deref();
    match (Side::parse(&args.from), Side::parse(&args.to)) {
        (Side::Guest { id, path }, Side::Host(to)) => {
            fetch(&client, id, path, user, to, &mut interrupts).await?;
        }
        (Side::Host(from), Side::Guest { id, path }) => {
            tokio::select! {
                sent = send(&client, from, id, path, user) => sent?,
                _ = interrupts.next() => return Err(Failure::interrupted("a part may have been copied")),
            }
        }
        _ => {
            return Err(Failure::new(
                "one side of a copy is a path of this host, the other ID:PATH of a session",
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn fetch(
    client: &Client,
    id: &str,
    path: &str,
    user: Option<&str>,
    to: &Path,
    interrupts: &mut Interrupts,
) -> Result<(), Failure> {
    let name = OsString::from(split(path, user)?.1);
    let download = client.read_tar(id, guest_path(path, user), true).await?;
    let landing =
        Landing::prepare(to).map_err(|error| Failure::new(format!("{}: {error}", to.display())))?;
    let (reader, writer) = io::pipe()?;
    let wanted = name.clone();
    let unpacking = tokio::task::spawn_blocking(move || {
        let outcome = landing.unpack(reader, &wanted);
        (landing, outcome)
    });
    let mut sender = pipe::Sender::from_owned_fd(OwnedFd::from(writer))?;
    let copied = tokio::select! {
        copied = download.copy_to(&mut sender) => Some(copied),
        _ = interrupts.next() => None,
    };
    // The end for the other side, which must be over before its folder can go.
    drop(sender);
    let (landing, unpacked) = unpacking.await?;
    let cannot =
        |error: io::Error| Failure::new(format!("cannot unpack to {}: {error}", to.display()));
    match (copied, unpacked) {
        (None, _) => return Err(Failure::interrupted("a part may have been copied")),
        // A pipe that breaks is the other side's failure.
        (Some(Err(error)), outcome) if outcome.is_ok() || !matches!(error, ClientError::Io(_)) => {
            return Err(error.into());
        }
        (_, Err(error)) => return Err(cannot(error)),
        (Some(_), Ok(())) => {}
    }
    landing.settle(&name).map_err(|error| match error.kind() {
        ErrorKind::NotADirectory if to.as_os_str().as_encoded_bytes().ends_with(b"/") => {
            Failure::new(format!("there is no folder {} to copy a file to", to.display()))
        }
        _ => cannot(error),
    })
}

async fn send(
    client: &Client,
    from: &Path,
    id: &str,
    path: &str,
    user: Option<&str>,
) -> Result<(), Failure> {
    let cannot =
        |error: io::Error| Failure::new(format!("cannot read {}: {error}", from.display()));
    let (source, own_name) = named(from).map_err(cannot)?;
    let (parent, new_name) = match split(path, user) {
        Ok(split) => split,
        // A folder that needs no name, as it has to be there.
        Err(_) if is_folder_itself(path, user) => (String::new(), ""),
        Err(error) => return Err(error),
    };
    // The trailing `.` follows a symbolic link, and is there only in a folder.
    let inside = format!("{}/.", path.trim_end_matches('/'));
    let (dir, name) = match client.stat(id, guest_path(&inside, user)).await {
        Ok(stat) if stat.kind == Kind::Directory => (path.to_owned(), own_name),
        Ok(_) => {
            return Err(Failure::new(format!(
                "{path} in the session is neither a folder nor a new name"
            )));
        }
        Err(error) if matches!(error.code(), Some("not_found" | "not_a_directory")) => {
            // As cp(1): only a folder may become what is named as one.
            if new_name.is_empty() || (path.ends_with('/') && !source.is_dir()) {
                return Err(Failure::new(format!("there is no folder {path} in the session")));
            }
            (parent, new_name.into())
        }
        Err(error) => return Err(error.into()),
    };
    let dir = guest_path(&dir, user);
    let (reader, writer) = io::pipe()?;
    let packing = tokio::task::spawn_blocking(move || archive::pack(&source, &name, writer));
    let receiver = pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?;
    let sent = client.write_tar(id, dir, receiver).await;
    match (packing.await?, sent) {
        (Err(error), sent) if sent.is_ok() || error.kind() != ErrorKind::BrokenPipe => {
            Err(cannot(error))
        }
        (_, sent) => sent.map(drop).map_err(Failure::from),
    }
}

/// A path of this host, and the name of its last component; `.` and `..` have the name of what they
/// are.
fn named(path: &Path) -> io::Result<(PathBuf, OsString)> {
    let path = match path.file_name() {
        Some(_) => path.to_owned(),
        None => path.canonicalize()?,
    };
    let name = path.file_name().map(OsStr::to_owned);
    let name =
        name.ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "the root folder has no name"))?;
    path.symlink_metadata()?;
    Ok((path, name))
}

fn guest_path(path: &str, user: Option<&str>) -> GuestPath {
    match user {
        Some(user) => GuestPath::of_user(path, user),
        None => path.into(),
    }
}

/// The folder and the name of a path in a guest. Without a user the path is absolute.
fn split<'a>(path: &'a str, user: Option<&str>) -> Result<(String, &'a str), Failure> {
    if user.is_none() && !path.starts_with('/') {
        return Err(Failure::new(format!(
            "{path}: a path of a session is absolute, as in ID:/tmp/file, unless --user says from \
             whose home it starts"
        )));
    }
    let trimmed = path.trim_end_matches('/');
    let (dir, name) = match trimmed.rsplit_once('/') {
        Some((dir, name)) => (format!("{dir}/"), name),
        None => (".".to_owned(), trimmed),
    };
    if matches!(name, "" | "." | "..") || trimmed == "~" {
        return Err(Failure::new(format!("{path}: name the file or folder itself")));
    }
    Ok((dir, name))
}

/// Whether a path names a folder of a session by no name of its own.
fn is_folder_itself(path: &str, user: Option<&str>) -> bool {
    path.starts_with('/') || (user.is_some() && !path.is_empty())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_colon_tells_guests_from_paths() {
        assert_eq!(Side::parse("0a1b:/etc"), Side::Guest { id: "0a1b", path: "/etc" });
        assert_eq!(Side::parse("0a1b:/a:b"), Side::Guest { id: "0a1b", path: "/a:b" });
        for host in ["/a:b", "./a:b", "../a:b", "file", ":x", "."] {
            assert_eq!(Side::parse(host), Side::Host(Path::new(host)));
        }
    }

    #[test]
    fn a_guest_path_has_a_folder_and_a_name() {
        assert_eq!(split("/a", None).unwrap(), ("/".into(), "a"));
        assert_eq!(split("/a/b//", None).unwrap(), ("/a/".into(), "b"));
        assert_eq!(split("a", Some("ann")).unwrap(), (".".into(), "a"));
        assert_eq!(split("~/a", Some("ann")).unwrap(), ("~/".into(), "a"));
        for bad in ["/", "/a/..", "/.", ""] {
            assert!(split(bad, None).is_err() && split(bad, Some("ann")).is_err(), "{bad}");
        }
        assert!(split("a/b", None).is_err() && split("~/", Some("ann")).is_err());
    }

    #[test]
    fn a_folder_that_is_named_by_a_dot_has_its_own_name() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("x")).unwrap();
        let real = dir.path().canonicalize().unwrap();
        let (path, name) = named(&dir.path().join("x/..")).unwrap();
        assert_eq!((path.as_path(), Some(name.as_os_str())), (real.as_path(), real.file_name()));
        let (_, name) = named(&dir.path().join("x/.")).unwrap();
        assert_eq!(name, "x");
        assert!(named(&dir.path().join("y")).is_err() && named(Path::new("/")).is_err());
    }
}
