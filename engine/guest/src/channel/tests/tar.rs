//! Tar archives through the real agent, good ones and hostile ones.

use super::{Agent, errno};
use crate::channel::{Channel, ChannelError};
use proptest::prelude::*;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use tar::{Archive, Builder, EntryType, Header};
use tempfile::TempDir;

/// Kind, name, link target, content.
type Member<'a> = (EntryType, &'a str, &'a str, &'a [u8]);

/// An entry whose name and target are written as they are; the crate's own functions refuse the
/// hostile ones.
fn append(
    archive: &mut Builder<Vec<u8>>,
    kind: EntryType,
    name: &str,
    target: &str,
    content: &[u8],
) {
    let mut header = Header::new_gnu();
    let old = header.as_old_mut();
    old.name[..name.len()].copy_from_slice(name.as_bytes());
    old.linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_uid(nix::unistd::getuid().as_raw().into());
    header.set_gid(nix::unistd::getgid().as_raw().into());
    header.set_mtime(1_600_000_000);
    header.set_size(content.len() as u64);
    header.set_cksum();
    archive.append(&header, content).unwrap();
}

fn archive(entries: &[Member<'_>]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for (kind, name, target, content) in entries {
        append(&mut archive, *kind, name, target, content);
    }
    archive.into_inner().unwrap()
}

/// Unpacking takes root (chroot(2)), in a guest as here.
async fn may_unpack(channel: &Channel) -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(
        errno(channel.unpack_tar(directory.path(), &mut &[0_u8; 1024][..]).await),
        libc::EPERM
    );
    false
}

/// A directory to unpack into, beside things that no archive may touch.
struct Place {
    outer: TempDir,
    before: Vec<(PathBuf, u64, i64, Option<Vec<u8>>)>,
}

impl Place {
    fn new() -> Self {
        let outer = tempfile::tempdir().unwrap();
        std::fs::create_dir(outer.path().join("inner")).unwrap();
        std::fs::create_dir(outer.path().join("secret")).unwrap();
        std::fs::write(outer.path().join("secret/key"), "key").unwrap();
        let mut place = Self { outer, before: Vec::new() };
        place.before = place.outside();
        place
    }

    fn inner(&self) -> PathBuf {
        self.outer.path().join("inner")
    }

    /// Everything but the inner directory's content: path, links, change time, content.
    fn outside(&self) -> Vec<(PathBuf, u64, i64, Option<Vec<u8>>)> {
        let mut all = Vec::new();
        let mut stack = vec![self.outer.path().to_owned()];
        while let Some(path) = stack.pop() {
            let metadata = std::fs::symlink_metadata(&path).unwrap();
            if path == self.inner() {
                continue;
            }
            if metadata.is_dir() {
                stack.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
            let times = metadata.ctime() * 1_000_000_000 + metadata.ctime_nsec();
            all.push((path.clone(), metadata.nlink(), times, std::fs::read(&path).ok()));
        }
        all.sort();
        all
    }

    fn assert_untouched(&self) {
        assert!(self.outside() == self.before, "{:?}", self.outside());
    }
}

#[tokio::test]
async fn a_tree_comes_back_as_it_was() {
    let (_agent, channel) = Agent::open().await;
    let source = tempfile::tempdir().unwrap();
    let tree = source.path().join("tree");
    let deep = tree.join("d".repeat(120)).join("e".repeat(120));
    std::fs::create_dir_all(&deep).unwrap();
    let content: Vec<u8> = (0..700_001_u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(deep.join("data"), &content).unwrap();
    std::fs::write(tree.join("script"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(tree.join("script"), std::fs::Permissions::from_mode(0o4751)).unwrap();
    std::fs::hard_link(tree.join("script"), tree.join("second")).unwrap();
    symlink("../nowhere", tree.join("link")).unwrap();
    symlink("t".repeat(200), tree.join("long link")).unwrap();
    let odd = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&[0xff; 150]);
    std::fs::write(tree.join(odd), "odd").unwrap();
    nix::unistd::mkfifo(&tree.join("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o600))
        .unwrap();
    std::fs::set_permissions(&tree, std::fs::Permissions::from_mode(0o711)).unwrap();
    for path in [deep.join("data"), tree.clone()] {
        let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_500_000_000);
        std::fs::File::open(path).unwrap().set_modified(then).unwrap();
    }

    let mut tar = Vec::new();
    let length = channel.pack_tar(&tree, &mut tar, u64::MAX).await.unwrap();
    assert_eq!(length, tar.len() as u64);
    for entry in Archive::new(&tar[..]).entries().unwrap() {
        let entry = entry.unwrap();
        assert!(entry.path().unwrap().starts_with("tree"), "{:?}", entry.path());
    }
    if !may_unpack(&channel).await {
        return;
    }
    let target = tempfile::tempdir().unwrap();
    let bytes = channel.unpack_tar(target.path(), &mut &tar[..]).await.unwrap();
    assert_eq!(bytes, content.len() as u64 + 10 + 3);
    // Once more, over what is there.
    assert_eq!(channel.unpack_tar(target.path(), &mut &tar[..]).await.unwrap(), bytes);

    let back = target.path().join("tree");
    let data = back.join(deep.strip_prefix(&tree).unwrap()).join("data");
    assert!(std::fs::read(&data).unwrap() == content);
    assert_eq!(data.metadata().unwrap().mtime(), 1_500_000_000);
    let root = back.metadata().unwrap();
    assert_eq!((root.mode() & 0o7777, root.mtime()), (0o711, 1_500_000_000));
    let script = back.join("script").metadata().unwrap();
    assert_eq!((script.mode() & 0o7777, script.nlink()), (0o4751, 2));
    assert_eq!(script.ino(), back.join("second").metadata().unwrap().ino());
    assert_eq!(std::fs::read_link(back.join("link")).unwrap(), Path::new("../nowhere"));
    assert_eq!(std::fs::read_link(back.join("long link")).unwrap(), Path::new(&"t".repeat(200)));
    assert_eq!(std::fs::read_to_string(back.join(odd)).unwrap(), "odd");
    assert!(!back.join("pipe").exists(), "a pipe is left out");
}

#[tokio::test]
async fn one_file_and_one_link_are_archives_too() {
    let (_agent, channel) = Agent::open().await;
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("file"), "content").unwrap();
    symlink("file", source.path().join("link")).unwrap();
    let mut tar = Vec::new();
    channel.pack_tar(source.path().join("file"), &mut tar, u64::MAX).await.unwrap();
    let mut archive = Archive::new(&tar[..]);
    let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
    let mut content = String::new();
    entry.read_to_string(&mut content).unwrap();
    assert_eq!((entry.path().unwrap().as_ref(), content.as_str()), (Path::new("file"), "content"));
    let mut tar = Vec::new();
    channel.pack_tar(source.path().join("link"), &mut tar, u64::MAX).await.unwrap();
    let mut archive = Archive::new(&tar[..]);
    let entry = archive.entries().unwrap().next().unwrap().unwrap();
    assert_eq!(entry.header().entry_type(), EntryType::Symlink);
}

#[tokio::test]
async fn what_cannot_be_packed_or_unpacked_says_why() {
    let (_agent, channel) = Agent::open().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, vec![1; 100_000]).unwrap();
    let mut to = Vec::new();
    assert_eq!(errno(channel.pack_tar("/nonexistent", &mut to, u64::MAX).await), libc::ENOENT);
    assert_eq!(errno(channel.unpack_tar("/nonexistent", &mut &[][..]).await), libc::ENOENT);
    assert_eq!(errno(channel.unpack_tar(&file, &mut &[][..]).await), libc::ENOTDIR);
    let error = channel.pack_tar(&file, &mut to, 99_999).await.unwrap_err();
    assert!(matches!(error, ChannelError::TooLong { limit: 99_999, .. }), "{error}");
    assert!(to.len() <= 99_999);
    if may_unpack(&channel).await {
        let error = channel
            .unpack_tar(directory.path(), &mut &vec![0x55; 3_000_000][..])
            .await
            .unwrap_err();
        assert_eq!(errno::<()>(Err(error)), libc::EINVAL);
        let file =
            archive(&[(EntryType::Regular, "a", "", b"x"), (EntryType::Regular, "a/b", "", b"x")]);
        let error = channel.unpack_tar(directory.path(), &mut &file[..]).await.unwrap_err();
        assert!(error.to_string().contains("entry a/b"), "{error}");
        assert_eq!(errno::<()>(Err(error)), libc::ENOTDIR);
    }
    channel.health().await.unwrap();
}

#[tokio::test]
async fn an_upload_that_is_given_up_leaves_no_process() {
    let (agent, channel) = Agent::open().await;
    if !may_unpack(&channel).await {
        return;
    }
    let place = Place::new();
    let (mut writer, mut reader) = tokio::io::duplex(4096);
    let tar = archive(&[(EntryType::Regular, "first", "", b"x")]);
    let inner = place.inner();
    {
        let unpack = channel.unpack_tar(&inner, &mut reader);
        let feed = async {
            tokio::io::AsyncWriteExt::write_all(&mut writer, &tar[..1024]).await.unwrap();
            while !inner.join("first").exists() {
                channel.health().await.unwrap();
            }
            let root = std::fs::read_link(format!("/proc/{}/root", agent.children()[0])).unwrap();
            assert_eq!(root, inner.canonicalize().unwrap(), "the helper is confined");
        };
        tokio::select! {
            done = unpack => panic!("{done:?}"),
            () = feed => {}
        }
    }
    while !agent.children().is_empty() {
        channel.health().await.unwrap();
    }
}

#[tokio::test]
async fn a_helper_that_dies_is_an_error_of_its_request() {
    let (agent, channel) = Agent::open().await;
    if !may_unpack(&channel).await {
        return;
    }
    let target = tempfile::tempdir().unwrap();
    let (mut writer, mut reader) = tokio::io::duplex(4096);
    let kill = async {
        while agent.children().is_empty() {
            channel.health().await.unwrap();
        }
        let helper = nix::unistd::Pid::from_raw(agent.children()[0].cast_signed());
        nix::sys::signal::kill(helper, nix::sys::signal::Signal::SIGKILL).unwrap();
        // More than a pipe holds; the agent drops what its dead helper does not take.
        tokio::io::AsyncWriteExt::write_all(&mut writer, &vec![0; 1 << 20]).await.unwrap();
        drop(writer);
    };
    let (error, ()) = tokio::join!(channel.unpack_tar(target.path(), &mut reader), kill);
    let error = error.unwrap_err();
    assert!(
        matches!(error, ChannelError::Guest(_))
            && error.to_string().contains("unpack was lost (signal: 9"),
        "{error}"
    );
    channel.health().await.unwrap();
}

#[tokio::test]
async fn hostile_entries_stay_inside() {
    use EntryType as T;
    let (_agent, channel) = Agent::open().await;
    if !may_unpack(&channel).await {
        return;
    }
    let long_up = "../".repeat(20) + "tmp/x";
    let refused: &[&[Member<'_>]] = &[
        &[(T::Regular, "../secret/key", "", b"bad")],
        &[(T::Regular, "a/../../secret/key", "", b"bad")],
        &[(T::Regular, &long_up, "", b"bad")],
        &[(T::Directory, "..", "", b"")],
        &[(T::Symlink, "../secret/link", "key", b"")],
        // A link that leads out, then something through it; there or not, relative or absolute.
        &[(T::Symlink, "out", "../secret", b""), (T::Regular, "out/key", "", b"bad")],
        &[(T::Symlink, "out", "../secret", b""), (T::Directory, "out/new", "", b"")],
        &[(T::Symlink, "out", "../secret", b""), (T::Symlink, "out/new", "x", b"")],
        &[(T::Symlink, "out", "../not there", b""), (T::Regular, "out/key", "", b"bad")],
        &[(T::Symlink, "out", "/secret", b""), (T::Regular, "out/deep/key", "", b"bad")],
        &[
            (T::Symlink, "a", "..", b""),
            (T::Symlink, "b", "a/secret", b""),
            (T::Regular, "b/key", "", b"bad"),
        ],
        // Even where the link would lead to something inside if the directory were the root of all.
        &[
            (T::Directory, "secret", "", b""),
            (T::Symlink, "out", "../secret", b""),
            (T::Regular, "out/key", "", b"bad"),
        ],
        &[
            (T::Directory, "secret", "", b""),
            (T::Symlink, "out", "/secret", b""),
            (T::Symlink, "out/key", "x", b""),
        ],
        &[
            (T::Regular, "s/key", "", b""),
            (T::Symlink, "out", "/s", b""),
            (T::Link, "hard", "out/key", b""),
        ],
        // A directory that is a link already is not replaced by one.
        &[(T::Symlink, "out", "../secret", b""), (T::Directory, "out", "", b"")],
        &[(T::Link, "hard", "../secret/key", b"")],
        &[(T::Symlink, "out", "../secret", b""), (T::Link, "hard", "out/key", b"")],
        &[(T::Link, "hard", "", b"")],
        &[(T::Char, "null", "", b"")],
        &[(T::Block, "disk", "", b"")],
        &[(T::Fifo, "pipe", "", b"")],
        &[(T::Regular, "", "", b"bad")],
    ];
    for entries in refused {
        let place = Place::new();
        let error = channel.unpack_tar(place.inner(), &mut &archive(entries)[..]).await;
        let name = entries.last().unwrap().1;
        match &error {
            Err(ChannelError::Guest(error)) => {
                assert!(error.message.contains(name), "{name}: {error}");
            }
            other => panic!("{name}: {other:?}"),
        }
        place.assert_untouched();
    }
    // An absolute name and an absolute hard link are taken as relative ones.
    let place = Place::new();
    let absolute = place.outer.path().join("secret/key");
    let tar = archive(&[
        (T::Regular, absolute.to_str().unwrap(), "", b"inside"),
        (T::Link, "/hard", absolute.to_str().unwrap(), b""),
    ]);
    channel.unpack_tar(place.inner(), &mut &tar[..]).await.unwrap();
    let inside = place.inner().join(absolute.strip_prefix("/").unwrap());
    assert_eq!(std::fs::read(inside).unwrap(), b"inside");
    assert_eq!(std::fs::read(place.inner().join("hard")).unwrap(), b"inside");
    place.assert_untouched();
    // A link is replaced by a file of its name, not written through; one that stays inside is
    // followed.
    let place = Place::new();
    let tar = archive(&[
        (T::Symlink, "out", "../secret/key", b""),
        (T::Regular, "out", "", b"mine"),
        (T::Directory, "real/", "", b""),
        (T::Symlink, "alias", "real", b""),
        (T::Regular, "alias/file", "", b"through"),
    ]);
    channel.unpack_tar(place.inner(), &mut &tar[..]).await.unwrap();
    assert!(place.inner().join("out").symlink_metadata().unwrap().is_file());
    assert_eq!(std::fs::read(place.inner().join("real/file")).unwrap(), b"through");
    place.assert_untouched();
}

#[tokio::test]
async fn sizes_and_lengths_that_lie_are_errors() {
    let (agent, channel) = Agent::open().await;
    if !may_unpack(&channel).await {
        return;
    }
    let place = Place::new();
    let claims = |kind: EntryType, size: u64| {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..4].copy_from_slice(b"huge");
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    for kind in
        [EntryType::Regular, EntryType::GNULongName, EntryType::XHeader, EntryType::Directory]
    {
        for size in [1 << 40, u64::MAX, i64::MAX as u64] {
            let error = channel.unpack_tar(place.inner(), &mut &claims(kind, size)[..]).await;
            // A directory has no content, whatever its header says.
            assert!(
                matches!(error, Err(ChannelError::Guest(_))) || kind == EntryType::Directory,
                "{kind:?} {size} {error:?}"
            );
        }
    }
    // A name of a gigabyte costs the helper its life, and nobody else anything.
    let mut endless = tokio::io::AsyncReadExt::chain(
        std::io::Cursor::new(claims(EntryType::GNULongName, 1 << 30)),
        tokio::io::AsyncReadExt::take(tokio::io::repeat(b'x'), 600 << 20),
    );
    let error = channel.unpack_tar(place.inner(), &mut endless).await.unwrap_err();
    assert!(error.to_string().contains("memory"), "{error}");
    channel.health().await.unwrap();
    assert!(agent.resident() < 64 << 20);
    place.assert_untouched();
}

/// Names that meet each other, and ways out.
fn names() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("a"),
        Just("b"),
        Just(".."),
        Just("."),
        Just("secret"),
        Just("key"),
        Just("")
    ];
    (any::<bool>(), proptest::collection::vec(part, 1..5))
        .prop_map(|(absolute, parts)| if absolute { "/" } else { "" }.to_owned() + &parts.join("/"))
}

fn kinds() -> impl Strategy<Value = EntryType> {
    prop_oneof![
        3 => Just(EntryType::Regular),
        3 => Just(EntryType::Symlink),
        2 => Just(EntryType::Directory),
        2 => Just(EntryType::Link),
        1 => any::<u8>().prop_map(EntryType::new),
    ]
}

#[test]
fn no_archive_touches_what_is_outside() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (agent, channel) = runtime.block_on(Agent::open());
    if !runtime.block_on(may_unpack(&channel)) {
        return;
    }
    let entry = (kinds(), names(), names(), proptest::collection::vec(any::<u8>(), 0..40));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 150,
        ..ProptestConfig::default()
    });
    let unpacked = std::cell::Cell::new(0);
    runner
        .run(
            &(
                proptest::collection::vec(entry, 1..8),
                proptest::option::of((any::<usize>(), any::<u8>())),
            ),
            |(entries, damage)| {
                let mut tar = Builder::new(Vec::new());
                for (kind, name, target, content) in &entries {
                    append(&mut tar, *kind, name, target, content);
                }
                let mut tar = tar.into_inner().unwrap();
                if let Some((place, byte)) = damage {
                    let place = place % tar.len();
                    tar[place] ^= byte;
                }
                let place = Place::new();
                let result = runtime.block_on(channel.unpack_tar(place.inner(), &mut &tar[..]));
                match result {
                    Ok(_) => unpacked.set(unpacked.get() + 1),
                    Err(ChannelError::Guest(_)) => {}
                    Err(other) => prop_assert!(false, "{}", other),
                }
                prop_assert!(place.outside() == place.before);
                Ok(())
            },
        )
        .unwrap();
    assert!(unpacked.get() > 0, "some of them are good archives");
    drop(agent);
}
