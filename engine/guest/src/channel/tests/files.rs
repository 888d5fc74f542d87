//! Files, in a directory of this host.

use super::{Agent, errno};
use crate::channel::{ByteString, ChannelError, FileKind};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn names(directory: &Path) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_file_is_written_read_and_described() {
    let (_agent, channel) = Agent::open().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data");
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    channel.write_file(&path, 0o640, &content).await.unwrap();
    assert!(std::fs::read(&path).unwrap() == content);
    assert!(channel.read_file(&path).await.unwrap() == content);
    let metadata = channel.stat(&path).await.unwrap();
    assert_eq!((metadata.kind, metadata.size, metadata.mode), (FileKind::File, 3_000_000, 0o640));
    let mut part = Vec::new();
    assert_eq!(channel.read_file_to(&path, 100_000, &mut part).await.unwrap(), 100_000);
    assert!(part == content[..100_000]);
    channel.write_file(&path, 0o4755, b"").await.unwrap();
    assert_eq!(channel.stat(&path).await.unwrap().mode, 0o4755);
    assert_eq!(names(directory.path()), ["data"], "no temporary file is left");
}

#[tokio::test]
async fn a_range_is_read_and_an_open_file_comes_in_pieces() {
    let (_agent, channel) = Agent::open().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data");
    let content: Vec<u8> = (0..500_000_u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(&path, &content).unwrap();
    let mut part = Vec::new();
    assert_eq!(
        channel.read_file_range_to(&path, 100_001, 200_000, &mut part).await.unwrap(),
        200_000
    );
    assert!(part == content[100_001..300_001]);
    part.clear();
    assert_eq!(channel.read_file_range_to(&path, 499_990, u64::MAX, &mut part).await.unwrap(), 10);
    assert!(part == content[499_990..]);
    assert_eq!(
        channel.read_file_range_to(&path, u64::from(u32::MAX), 1, &mut part).await.unwrap(),
        0
    );
    let (metadata, mut reader) = channel.open_read(&path, 10, 300_000).await.unwrap();
    assert_eq!(metadata.size, 500_000);
    let mut whole = Vec::new();
    while let Some(bytes) = reader.next_chunk().await.unwrap() {
        assert!(!bytes.is_empty());
        whole.extend_from_slice(&bytes);
    }
    assert!(whole == content[10..300_010]);
    assert_eq!(reader.next_chunk().await.unwrap(), None);
    assert_eq!(errno(channel.open_read(directory.path(), 0, 1).await), libc::EISDIR);
}

#[tokio::test]
async fn a_write_that_is_given_up_changes_nothing() {
    let (_agent, channel) = Agent::open().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data");
    std::fs::write(&path, "before").unwrap();
    {
        struct Broken;
        impl tokio::io::AsyncRead for Broken {
            fn poll_read(
                self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
                _: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::task::Poll::Ready(Err(std::io::Error::other("source broke")))
            }
        }
        let error = channel.write_file_from(&path, 0o644, &mut Broken).await.unwrap_err();
        assert!(matches!(error, ChannelError::Io(_)), "{error}");
    }
    // The guest hears of it with the next bytes on the channel.
    while names(directory.path()) != ["data"] {
        channel.health().await.unwrap();
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"before");
}

#[tokio::test]
async fn directories_are_made_listed_moved_and_removed() {
    let (_agent, channel) = Agent::open().await;
    let directory = tempfile::tempdir().unwrap();
    let deep = directory.path().join("a/b/c");
    assert!(channel.mkdir(&deep, 0o750, true).await.unwrap());
    assert!(!channel.mkdir(&deep, 0o700, true).await.unwrap(), "it was there");
    assert_eq!(
        channel.stat(&deep).await.unwrap().mode,
        0o750,
        "a directory that was there keeps its mode"
    );
    assert_eq!(errno(channel.mkdir(&deep, 0o750, false).await), libc::EEXIST);
    for n in 0..600 {
        std::fs::write(deep.join(n.to_string()), "").unwrap();
    }
    let odd = std::ffi::OsStr::from_bytes(b"odd\xff\nname");
    std::fs::write(deep.join(odd), "").unwrap();
    std::os::unix::fs::symlink("/nowhere", deep.join("link")).unwrap();
    let entries = channel.list(&deep).await.unwrap().entries;
    assert_eq!(entries.len(), 602);
    let kind = |name: &ByteString| {
        entries.iter().find(|entry| entry.name == *name).map(|entry| entry.kind)
    };
    assert_eq!(kind(&odd.into()), Some(FileKind::File));
    assert_eq!(kind(&"link".into()), Some(FileKind::Symlink));
    assert_eq!(channel.stat(deep.join("link")).await.unwrap().target, Some("/nowhere".into()));
    let moved = directory.path().join("moved");
    channel.rename(&deep, &moved, false).await.unwrap();
    assert_eq!(errno(channel.remove(&moved, false, false).await), libc::ENOTEMPTY);
    channel.remove(&moved, true, false).await.unwrap();
    assert_eq!(names(directory.path()), ["a"]);
}

#[tokio::test]
async fn failures_carry_the_errno_of_the_guest() {
    let (_agent, channel) = Agent::open().await;
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing/file");
    assert_eq!(errno(channel.read_file(&missing).await), libc::ENOENT);
    assert_eq!(errno(channel.write_file(&missing, 0o644, b"x").await), libc::ENOENT);
    assert_eq!(errno(channel.stat(&missing).await), libc::ENOENT);
    assert_eq!(errno(channel.list(&missing).await), libc::ENOENT);
    assert_eq!(errno(channel.remove(&missing, true, false).await), libc::ENOENT);
    assert_eq!(errno(channel.read_file(directory.path()).await), libc::EISDIR);
    assert_eq!(errno(channel.write_file(directory.path(), 0o644, b"x").await), libc::EISDIR);
    assert_eq!(
        errno(channel.write_file(directory.path().join("f"), 0o10000, b"x").await),
        libc::EINVAL
    );
    assert_eq!(errno(channel.write_file("/", 0o644, b"x").await), libc::EINVAL);
    // A pipe without a writer would block whoever opens it.
    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    assert_eq!(errno(channel.read_file(&pipe).await), libc::EINVAL);
    // A disk that is full while the engine is still sending.
    let full = channel.write_file("/dev/full/x", 0o644, b"x").await;
    assert_eq!(errno(full), libc::ENOTDIR);
    channel.health().await.unwrap();
}
