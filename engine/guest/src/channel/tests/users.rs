//! Files of other users, and what is kept of a file that is written.

use super::{Agent, errno};
use crate::channel::{
    Channel, FileKind, FilePath, ListOptions, StatOptions, WriteOptions, Xattr, XattrSet,
};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A user without an entry in passwd(5), whose home is `/`.
const ANN: &str = "54321:54322";

const IN_PLACE: WriteOptions =
    WriteOptions { mode: None, in_place: true, parents: false, xattrs: None };

fn of_ann(path: impl AsRef<Path>) -> FilePath {
    FilePath::of_user(path.as_ref(), ANN)
}

/// A directory of Ann's, below one that everybody may enter; `None` where nobody can become Ann.
async fn home_of_ann(channel: &Channel) -> Option<(TempDir, PathBuf)> {
    // On the file system of the code: one in memory may have no attributes of users.
    let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    mode(directory.path(), 0o755);
    let home = directory.path().join("home");
    std::fs::create_dir(&home).unwrap();
    if !nix::unistd::geteuid().is_root() {
        assert_eq!(errno(channel.stat(of_ann(&home)).await), libc::EPERM);
        return None;
    }
    chown(&home, Some(54_321), Some(54_322)).unwrap();
    Some((directory, home))
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn owner(path: &Path) -> (u32, u32, u32) {
    let metadata = std::fs::symlink_metadata(path).unwrap();
    (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
}

async fn write(channel: &Channel, path: impl Into<FilePath>, options: WriteOptions) -> i32 {
    match channel.write_with(path, options, &mut &b"new"[..]).await {
        Ok(written) => {
            assert_eq!(written.bytes, 3);
            0
        }
        failed => errno(failed),
    }
}

#[tokio::test]
async fn a_user_may_do_what_their_rights_allow() {
    let (_agent, channel) = Agent::open().await;
    let Some((directory, home)) = home_of_ann(&channel).await else { return };
    let (of_root, own) = (directory.path().join("secret"), home.join("own"));
    std::fs::write(&of_root, "secret").unwrap();
    mode(&of_root, 0o600);
    for options in [IN_PLACE, WriteOptions::default()] {
        assert_eq!(write(&channel, of_ann(&of_root), options.clone()).await, libc::EACCES);
        let new = directory.path().join("new");
        assert_eq!(write(&channel, of_ann(&new), options.clone()).await, libc::EACCES);
        assert_eq!(write(&channel, of_ann(&own), options).await, 0);
        assert_eq!(owner(&own), (54_321, 54_322, 0o644));
        std::fs::remove_file(&own).unwrap();
    }
    // A file that the user may not write, in a directory that they may.
    std::fs::write(&own, "kept").unwrap();
    mode(&own, 0o444);
    for options in [IN_PLACE, WriteOptions::default()] {
        assert_eq!(write(&channel, of_ann(&own), options).await, libc::EACCES);
    }
    assert_eq!(std::fs::read(&own).unwrap(), b"kept");
    assert_eq!(errno(channel.read_file(of_ann(&of_root)).await), libc::EACCES);
    assert_eq!(channel.read_file(of_ann(&own)).await.unwrap(), b"kept");
    assert_eq!(channel.read_file(&of_root).await.unwrap(), b"secret");
    assert_eq!(errno(channel.remove(of_ann(&of_root), false, true).await), libc::EACCES);
    assert_eq!(
        errno(channel.mkdir(of_ann(directory.path().join("d")), 0o755, true).await),
        libc::EACCES
    );
    assert_eq!(
        errno(channel.rename(of_ann(&own), directory.path().join("x"), false).await),
        libc::EACCES
    );
    mode(&home, 0o700);
    let bob = |path: &Path| FilePath::of_user(path, "54399");
    assert_eq!(errno(channel.list(bob(&home)).await), libc::EACCES);
    assert_eq!(errno(channel.stat(bob(&own)).await), libc::EACCES);
    assert_eq!(errno(channel.watch(bob(&home), true).await), libc::EACCES);
    assert_eq!(channel.list(of_ann(&home)).await.unwrap().entries.len(), 1);
    // With the rights of root, for the user.
    let given = directory.path().join("a/b/given");
    let parents = WriteOptions { parents: true, ..IN_PLACE };
    assert_eq!(write(&channel, of_ann(&given).as_root(), parents.clone()).await, 0);
    for made in ["a", "a/b", "a/b/given"] {
        assert_eq!(owner(&directory.path().join(made)).0, 54_321, "{made}");
    }
    assert_eq!(owner(directory.path()).0, 0);
    assert!(
        channel.mkdir(of_ann(directory.path().join("c/d")).as_root(), 0o700, true).await.unwrap()
    );
    assert_eq!(owner(&directory.path().join("c/d")), (54_321, 54_322, 0o700));
    // What is made on the way is the user's as well.
    assert_eq!(write(&channel, of_ann(home.join("p/q/r")), parents).await, 0);
    assert_eq!(owner(&home.join("p")), (54_321, 54_322, 0o755));
    channel.rename(of_ann(home.join("p/q/r")), home.join("s/t"), true).await.unwrap();
    assert_eq!(owner(&home.join("s")).0, 54_321);
    channel.remove(of_ann(home.join("p")), true, false).await.unwrap();
    channel.health().await.unwrap();
}

#[tokio::test]
async fn paths_start_from_the_home_of_their_user() {
    let (_agent, channel) = Agent::open().await;
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    // As Linux has it everywhere.
    let of_root = |path: &str| FilePath::of_user(path, "root");
    assert_eq!(channel.stat(of_root("~")).await.unwrap().path, "/root".into());
    assert_eq!(channel.stat(of_root(".")).await.unwrap().path, "/root".into());
    assert_eq!(
        channel.stat(of_root("../etc/passwd")).await.unwrap().path,
        "/root/../etc/passwd".into()
    );
    let passwd = channel.stat("/etc//passwd").await.unwrap();
    assert_eq!((passwd.path, passwd.owner.as_deref()), ("/etc/passwd".into(), Some("root")));
    assert_eq!(passwd.group.as_deref(), Some("root"));
    for bad in ["etc/passwd", "~", "", "~/x"] {
        assert_eq!(errno(channel.stat(bad).await), libc::EINVAL, "{bad}");
    }
    assert_eq!(errno(channel.stat(of_root("~bob/x")).await), libc::EINVAL);
    let nobody = FilePath::of_user("/etc", "no-such-user");
    assert_eq!(errno(channel.list(nobody).await), libc::ESRCH);
}

#[tokio::test]
async fn a_file_that_is_written_keeps_what_it_is() {
    let (_agent, channel) = Agent::open().await;
    let Some((directory, _)) = home_of_ann(&channel).await else { return };
    let path = |name: &str| directory.path().join(name);
    let (file, second, link) = (path("file"), path("second"), path("link"));
    std::fs::write(&file, "a longer content").unwrap();
    chown(&file, Some(54_321), Some(54_322)).unwrap();
    mode(&file, 0o4710);
    std::fs::hard_link(&file, &second).unwrap();
    symlink("file", &link).unwrap();
    let inode = std::fs::metadata(&file).unwrap().ino();
    assert_eq!(write(&channel, &link, IN_PLACE).await, 0);
    assert_eq!(std::fs::read(&second).unwrap(), b"new");
    assert_eq!(std::fs::metadata(&file).unwrap().ino(), inode);
    assert_eq!((owner(&file).0, owner(&file).1), (54_321, 54_322));
    mode(&file, 0o4710);
    // As a whole: another file, with the same owner and mode.
    assert_eq!(write(&channel, &file, WriteOptions::default()).await, 0);
    assert_ne!(std::fs::metadata(&file).unwrap().ino(), inode);
    assert_eq!(owner(&file), (54_321, 54_322, 0o4710));
    let mode_given = WriteOptions { mode: Some(0o600), ..WriteOptions::default() };
    for options in [mode_given.clone(), WriteOptions { in_place: true, ..mode_given }] {
        mode(&file, 0o711);
        assert_eq!(write(&channel, &file, options).await, 0);
        assert_eq!(owner(&file), (54_321, 54_322, 0o600));
    }
    // A new one.
    assert_eq!(write(&channel, path("fresh"), WriteOptions::default()).await, 0);
    assert_eq!(owner(&path("fresh")), (0, 0, 0o644));
    // A link that leads nowhere is written through.
    symlink("through", path("dangling")).unwrap();
    assert_eq!(write(&channel, path("dangling"), IN_PLACE).await, 0);
    assert_eq!(std::fs::read(path("through")).unwrap(), b"new");
    for options in [IN_PLACE, WriteOptions::default()] {
        assert_eq!(write(&channel, directory.path(), options.clone()).await, libc::EISDIR);
        assert_eq!(write(&channel, path("no/such"), options.clone()).await, libc::ENOENT);
        assert_eq!(write(&channel, path("file/x"), options).await, libc::ENOTDIR);
    }
    nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let pipe = write(&channel, path("pipe"), IN_PLACE).await;
    assert!([libc::ENXIO, libc::EINVAL].contains(&pipe), "{pipe}");
    let leftover = std::fs::read_dir(directory.path())
        .unwrap()
        .any(|entry| entry.unwrap().file_name().to_string_lossy().ends_with(".mayfly"));
    assert!(!leftover, "a temporary file is left");
}

#[tokio::test]
async fn attributes_and_links_are_told() {
    let (_agent, channel) = Agent::open().await;
    let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = |name: &str| directory.path().join(name);
    let set = |names: &[&str]| XattrSet {
        prefix: "user.m.".into(),
        attributes: names
            .iter()
            .map(|name| Xattr { name: (*name).into(), value: "v".into() })
            .collect(),
    };
    let told = StatOptions { follow: true, xattrs: true };
    for in_place in [false, true] {
        for names in [&["user.m.b", "user.m.a"][..], &["user.m.c"], &[]] {
            let options =
                WriteOptions { in_place, xattrs: Some(set(names)), ..WriteOptions::default() };
            assert_eq!(write(&channel, path("file"), options).await, 0);
            let xattrs = channel.stat_with(path("file"), told).await.unwrap().xattrs.unwrap();
            let mut names: Vec<_> = names
                .iter()
                .map(|name| Xattr { name: (*name).into(), value: "v".into() })
                .collect();
            names.sort_by(|a, b| a.name.cmp(&b.name));
            assert_eq!((xattrs.attributes, xattrs.more), (names, false));
        }
    }
    let bad = WriteOptions { xattrs: Some(set(&["trusted.x"])), ..IN_PLACE };
    assert_eq!(write(&channel, path("other"), bad).await, libc::EINVAL);
    assert!(!path("other").exists());
    symlink("file", path("link")).unwrap();
    symlink("nowhere", path("dangling")).unwrap();
    let link = channel.stat_with(path("link"), told).await.unwrap();
    assert_eq!((link.kind, link.target), (FileKind::Symlink, Some("file".into())));
    let followed = link.followed.unwrap();
    assert_eq!((followed.kind, followed.size, followed.mode), (FileKind::File, 3, 0o644));
    assert_eq!(followed.path, path("file").canonicalize().unwrap().into());
    assert_eq!(channel.stat(path("link")).await.unwrap().followed, None);
    assert_eq!(channel.stat_with(path("dangling"), told).await.unwrap().followed, None);
    assert_eq!(channel.stat_with(path("file"), told).await.unwrap().followed, None);
}

#[tokio::test]
async fn a_tree_is_listed_level_by_level() {
    let (_agent, channel) = Agent::open().await;
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::create_dir_all(path("a/b/c")).unwrap();
    for n in 0..600 {
        std::fs::write(path(&format!("a/b/{n}")), "").unwrap();
    }
    symlink("a", path("link")).unwrap();
    let list = async |depth, stat| {
        let options = ListOptions { depth, stat };
        channel.list_with(directory.path(), options).await.unwrap().entries
    };
    assert_eq!(list(1, None).await.len(), 2);
    assert_eq!(list(2, None).await.len(), 3);
    assert_eq!(list(3, None).await.len(), 604);
    let all = list(u32::MAX, Some(StatOptions { follow: true, xattrs: true })).await;
    assert_eq!(all.len(), 604);
    let at = |name: &str| all.iter().position(|entry| entry.name == name.into()).unwrap();
    assert!(at("a") < at("a/b") && at("a/b") < at("a/b/599"));
    let link = all[at("link")].metadata.as_ref().unwrap();
    assert_eq!(link.path, path("link").into());
    assert_eq!(link.followed.as_ref().unwrap().kind, FileKind::Directory);
    assert!(all.iter().all(|entry| entry.metadata.is_some() && !entry.unreadable));
    assert_eq!(
        errno(channel.list_with(directory.path(), ListOptions { depth: 0, stat: None }).await),
        libc::EINVAL
    );
    if nix::unistd::geteuid().is_root() {
        mode(directory.path(), 0o755);
        mode(&path("a/b"), 0o700);
        let options = ListOptions { depth: 9, stat: None };
        let seen = channel.list_with(of_ann(directory.path()), options).await.unwrap().entries;
        let seen: Vec<_> =
            seen.iter().map(|entry| (entry.name.to_string(), entry.unreadable)).collect();
        assert_eq!(seen.len(), 3, "{seen:?}");
        assert!(seen.contains(&("a/b".into(), true)), "{seen:?}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_removed_by_force() {
    let (_agent, channel) = Agent::open().await;
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("file"), "").unwrap();
    for missing in ["missing", "missing/deep", "file/x"] {
        channel.remove(path(missing), true, true).await.unwrap();
        assert!(channel.remove(path(missing), true, false).await.is_err());
    }
    assert_eq!(errno(channel.remove(directory.path(), false, true).await), libc::ENOTEMPTY);
    for root in ["/", "/.", "/usr/.."] {
        assert_eq!(errno(channel.remove(root, true, true).await), libc::EBUSY, "{root}");
    }
    assert!(path("file").exists());
    let refused = channel.rename(path("nothing"), path("new/x"), true).await;
    assert_eq!(errno(refused), libc::ENOENT);
    assert!(!path("new").exists(), "nothing is made for what is not there");
}
