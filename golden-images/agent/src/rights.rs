//! Work with the rights of a user of the guest, in one thread of an agent that is root.
//!
//! Linux keeps credentials for each thread; only the C library's functions change those of all
//! threads (nptl(7)), so these are the raw calls. The effective ids change, and with them the ids
//! that file systems look at and the capabilities in effect (capabilities(7)); the real and saved
//! ones stay root's, so that the thread comes back, and no process of the user may signal it
//! (kill(2)).

use crate::exec::Credentials;
use crate::wire::reply;
use mayfly_protocol::Reply;
use nix::errno::Errno;
use nix::unistd::{Gid, getegid, geteuid, getgroups};

/// Does `work` with the effective user, group and supplementary groups of `user`, in this thread.
///
/// # Errors
/// That of the work; EPERM when the agent is not root.
pub fn with<T>(user: &Credentials, work: impl FnOnce() -> Reply<T>) -> Reply<T> {
    let taken = reply(
        format_args!("take the rights of {}", user.name),
        Taken::new(user).map_err(Into::into),
    )?;
    let result = work();
    drop(taken);
    result
}

/// Rights that are given back when this is dropped.
struct Taken {
    uid: libc::uid_t,
    gid: libc::gid_t,
    groups: Vec<Gid>,
}

impl Taken {
    fn new(user: &Credentials) -> Result<Self, Errno> {
        let groups = getgroups()?;
        set_groups(&user.groups)?;
        // From here on what was changed is given back, also when the rest fails.
        let before = Self { uid: geteuid().as_raw(), gid: getegid().as_raw(), groups };
        set_ids(libc::SYS_setresgid, user.gid.as_raw())?;
        set_ids(libc::SYS_setresuid, user.uid.as_raw())?;
        Ok(before)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let back = set_ids(libc::SYS_setresuid, self.uid)
            .and_then(|()| set_ids(libc::SYS_setresgid, self.gid))
            .and_then(|()| set_groups(&self.groups));
        if let Err(error) = back {
            // The next request in this thread would be somebody else's.
            crate::console::say(&format!("cannot give back the rights of a user: {error}"));
            std::process::abort();
        }
    }
}

/// Sets the effective id alone: -1 leaves the real and the saved one (setresuid(2)).
fn set_ids(call: libc::c_long, effective: u32) -> Result<(), Errno> {
    // -1 would leave root's.
    if effective == u32::MAX {
        return Err(Errno::EINVAL);
    }
    // SAFETY: the calls take three integers and change no memory.
    let done = unsafe { libc::syscall(call, -1_i64, libc::c_long::from(effective), -1_i64) };
    Errno::result(done).map(drop)
}

fn set_groups(groups: &[Gid]) -> Result<(), Errno> {
    let groups: Vec<libc::gid_t> = groups.iter().map(|group| group.as_raw()).collect();
    // SAFETY: the groups are as many as said, and the call only reads them.
    let done = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    Errno::result(done).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::Uid;

    #[test]
    fn rights_are_those_of_the_thread_and_come_back() {
        if !geteuid().is_root() {
            return;
        }
        let ann = Credentials {
            uid: Uid::from_raw(54_321),
            gid: Gid::from_raw(54_322),
            groups: vec![Gid::from_raw(54_323)],
            home: "/".into(),
            name: "ann".into(),
        };
        let directory = tempfile::tempdir().unwrap();
        let secret = directory.path().join("secret");
        std::fs::write(&secret, "x").unwrap();
        std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        let before = getgroups().unwrap();
        let look = || (geteuid().as_raw(), getegid().as_raw(), getgroups().unwrap());
        let (seen, other, read) = with(&ann, || {
            let other = std::thread::scope(|scope| scope.spawn(look).join().unwrap());
            Ok((look(), other, std::fs::read(&secret).map_err(|error| error.kind())))
        })
        .unwrap();
        assert_eq!(seen, (54_321, 54_322, ann.groups));
        // A thread that is started meanwhile has them as well; one that was there has not.
        assert_eq!(other.0, 54_321);
        assert_eq!(read, Err(std::io::ErrorKind::PermissionDenied));
        assert_eq!(look(), (0, 0, before));
        assert_eq!(std::fs::read(&secret).unwrap(), b"x");
    }
}
