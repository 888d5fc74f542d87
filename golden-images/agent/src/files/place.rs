//! Where a file request is done, and with whose rights.

use crate::context::Context;
use crate::exec::{Credentials, lookup_user};
use crate::rights;
use crate::threads::Work;
use crate::wire::{invalid, reply};
use mayfly_protocol::{ByteString, FilePath, GuestError, Reply};
use nix::libc;
use nix::unistd::{Gid, Uid, geteuid};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Component, Path, PathBuf};

use super::names;

/// A path of the guest, and for whom it is used.
#[derive(Clone, Debug)]
pub struct Place {
    /// The absolute path, as `path` in bytes.
    pub path: ByteString,
    user: Option<Credentials>,
    as_root: bool,
}

/// Does `job` at a place, in a thread, with the rights that are asked for.
///
/// # Errors
/// That of the job; ESRCH when there is no such user.
pub async fn at<T: Send + 'static>(
    context: &Context,
    work: Work,
    at: FilePath,
    job: impl FnOnce(&Place) -> Reply<T> + Send + 'static,
) -> Reply<T> {
    let job = move || {
        let place = Place::find(at)?;
        place.act(|| job(&place))
    };
    context.threads.run(work, job).await
}

impl Place {
    /// Looks up the user, and puts the user's home in its place.
    pub fn find(at: FilePath) -> Reply<Self> {
        let FilePath { path, user, as_root } = at;
        if path.as_bytes().contains(&0) {
            return Err(invalid("a path cannot hold a NUL byte"));
        }
        let user = user.as_deref().map(find_user).transpose()?;
        let path = absolute(&path, user.as_ref().map(|user| &*user.home))?;
        Ok(Self { path, user, as_root })
    }

    /// Another path for the same user.
    pub fn sibling(&self, path: &ByteString) -> Reply<Self> {
        if path.as_bytes().contains(&0) {
            return Err(invalid("a path cannot hold a NUL byte"));
        }
        let path = absolute(path, self.user.as_ref().map(|user| &*user.home))?;
        Ok(Self { path, ..self.clone() })
    }

    /// Returns the path.
    pub fn as_path(&self) -> &Path {
        self.path.as_path()
    }

    /// Does `job` with the rights of this place.
    pub fn act<T>(&self, job: impl FnOnce() -> Reply<T>) -> Reply<T> {
        match self.rights() {
            Some(user) => rights::with(user, job),
            None => job(),
        }
    }

    /// Returns whose rights count; root's when `None`.
    pub fn rights(&self) -> Option<&Credentials> {
        self.user.as_ref().filter(|_| !self.as_root)
    }

    /// Returns whom root has to give what it makes.
    fn owner(&self) -> Option<(Uid, Gid)> {
        self.user.as_ref().filter(|_| self.as_root).map(|user| (user.uid, user.gid))
    }

    /// Returns ids for what was made: of the user, where that is not who made it.
    pub fn owner_ids(&self) -> Option<(u32, u32)> {
        self.owner().map(|(uid, gid)| (uid.as_raw(), gid.as_raw()))
    }

    /// Opens a directory that was just made, and gives it to the user that it was made for. What has
    /// come in its place meanwhile is not followed, and keeps its owner unless it is a directory of
    /// the same maker.
    pub fn take_over(&self, path: &Path) -> io::Result<File> {
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let made = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        if let Some((uid, gid)) = self.owner() {
            if made.metadata()?.uid() != geteuid().as_raw() {
                return Err(io::ErrorKind::NotFound.into());
            }
            fchown(&made, Some(uid.as_raw()), Some(gid.as_raw()))?;
        }
        Ok(made)
    }

    /// Makes the missing directories above `path`.
    pub fn make_parents(&self, path: &Path) -> Reply<()> {
        let mut missing = Vec::new();
        let above = path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty());
        for above in above {
            match std::fs::metadata(above) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(above),
                Err(error) => {
                    return Err(GuestError::io(
                        format_args!("look at {}", above.display()),
                        &error,
                    ));
                }
            }
        }
        for directory in missing.into_iter().rev() {
            let made = match std::fs::create_dir(directory) {
                // Somebody else was faster.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                made => match self.owner() {
                    Some(_) => made.and_then(|()| self.take_over(directory).map(drop)),
                    None => made,
                },
            };
            reply(format_args!("make directory {}", directory.display()), made)?;
        }
        Ok(())
    }
}

fn find_user(spec: &str) -> Reply<Credentials> {
    let read =
        |path: &str| reply(format_args!("look up user {spec}: {path}"), names::read_database(path));
    lookup_user(spec, &read("/etc/passwd")?, &read("/etc/group")?)
        .map_err(|message| GuestError { errno: libc::ESRCH, message })
}

/// The absolute path that `path` stands for, without `.` and doubled `/`.
fn absolute(path: &ByteString, home: Option<&Path>) -> Reply<ByteString> {
    let bytes = path.as_bytes();
    let (start, rest) = match (bytes, home) {
        ([b'/', ..], _) => return Ok(tidy(Path::new("/"), path.as_path())),
        ([], _) => return Err(invalid("the path is empty")),
        (_, None) => return Err(invalid(format!("{path}: without a user, a path is absolute"))),
        (b"~", Some(home)) => (home, &b""[..]),
        ([b'~', b'/', rest @ ..], Some(home)) => (home, rest),
        ([b'~', ..], Some(_)) => {
            return Err(invalid(format!(
                "{path}: only the user's own home can be named; write ./{path} for a file of that name"
            )));
        }
        (rest, Some(home)) => (home, rest),
    };
    Ok(tidy(start, Path::new(std::ffi::OsStr::from_bytes(rest))))
}

/// Both joined. A `..` stays: what it leads to depends on symbolic links. So does a `/` at the end,
/// which asks for a directory.
fn tidy(start: &Path, rest: &Path) -> ByteString {
    let mut path = PathBuf::from("/");
    let parts = start.components().chain(rest.components());
    path.extend(parts.filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir)));
    if rest.as_os_str().as_bytes().ends_with(b"/") && path.as_os_str() != "/" {
        path.as_mut_os_string().push("/");
    }
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_take_their_place() {
        let home = Some(Path::new("/home/ann"));
        let of_ann = |path: &str| absolute(&path.into(), home).map(|path| path.to_string());
        for (path, wanted) in [
            ("/etc//x/./y", "/etc/x/y"),
            ("~", "/home/ann"),
            ("~/a", "/home/ann/a"),
            ("a/b/", "/home/ann/a/b/"),
            (".", "/home/ann"),
            ("./~x", "/home/ann/~x"),
            ("a/../b", "/home/ann/a/../b"),
            ("~//etc", "/home/ann/etc"),
            ("/", "/"),
        ] {
            // A path that begins with `/` after `~/` stays below the home.
            assert_eq!(of_ann(path).unwrap(), wanted, "{path}");
        }
        for bad in ["", "~bob", "~bob/x"] {
            assert_eq!(of_ann(bad).unwrap_err().errno, libc::EINVAL, "{bad}");
        }
        for bad in ["", "a", "~", "~/a", "./a"] {
            assert_eq!(absolute(&bad.into(), None).unwrap_err().errno, libc::EINVAL, "{bad}");
        }
        assert_eq!(absolute(&"/a".into(), None).unwrap(), "/a".into());
        let missing = Place::find(FilePath::of_user("x", "nobody-here")).unwrap_err();
        assert_eq!(missing.errno, libc::ESRCH);
        assert_eq!(Place::find("/a\0".into()).unwrap_err().errno, libc::EINVAL);
    }

    #[test]
    fn missing_parents_are_made_and_a_file_in_the_way_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::find(directory.path().into()).unwrap();
        let deep = directory.path().join("a/b/c");
        place.make_parents(&deep).unwrap();
        assert!(directory.path().join("a/b").is_dir() && !deep.exists());
        place.make_parents(&deep).unwrap();
        std::fs::write(&deep, "").unwrap();
        let refused = place.make_parents(&deep.join("d/e")).unwrap_err();
        assert_eq!(refused.errno, libc::ENOTDIR, "{refused}");
    }
}
