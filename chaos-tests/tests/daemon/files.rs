//! Files of users, sparse files, and file systems of a guest that do not answer.

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::{FileExt, MetadataExt};

use mayfly_api::{Change, ChangeKind, Kind};
use mayfly_chaos_tests::daemon::Daemon;
use mayfly_chaos_tests::slots;
use mayfly_client::{Client, GuestPath};
use mayfly_guest::channel::{ListOptions, StatOptions, WriteOptions, Xattr, XattrSet};

use crate::support::{SMALL_POOL, client, refusal, request, sh, until};

#[tokio::test(flavor = "multi_thread")]
async fn files_are_those_of_their_users_and_stuck_ones_hold_up_nothing_else() {
    let _all = slots::take(slots::ALL);
    let daemon = Daemon::aside(SMALL_POOL);
    let client = client(&daemon);
    let session = client.create(&request(), None).await.unwrap();
    let id = session.id.as_str();
    users(&client, id).await;
    changes(&client, id).await;
    sparse(&client, &daemon, id).await;
    frozen(&client, id).await;
    client.kill(id).await.unwrap();
    daemon.stop();
}

fn of_ann(path: &str) -> GuestPath {
    GuestPath::of_user(path, "ann")
}

async fn write(
    client: &Client,
    id: &str,
    path: impl Into<GuestPath>,
    options: &WriteOptions,
) -> Result<mayfly_api::Written, mayfly_client::ClientError> {
    client.write_with(id, path, options, Cursor::new("content")).await
}

async fn users(client: &Client, id: &str) {
    sh(client, id, "useradd -m -s /bin/sh ann; mkdir /srv/shared; chmod 755 /srv/shared").await;
    let in_place = WriteOptions { in_place: true, ..WriteOptions::default() };
    let deep = WriteOptions { parents: true, ..in_place.clone() };
    let written = write(client, id, of_ann("~/a/b/notes"), &deep).await.unwrap();
    assert_eq!(written.path.unwrap().to_text(), "/home/ann/a/b/notes");
    let seen = sh(client, id, "cd /home/ann/a && stat -c '%U:%G %a %n' . b b/notes").await;
    assert_eq!(seen, "ann:ann 755 .\nann:ann 755 b\nann:ann 644 b/notes");
    // A file of root's in a directory of root's, and one of Ann's that she may not write.
    sh(client, id, "echo secret >/srv/shared/secret; chmod 600 /srv/shared/secret; chmod 444 /home/ann/a/b/notes").await;
    for options in [&in_place, &WriteOptions::default()] {
        for path in ["/srv/shared/secret", "/srv/shared/new", "a/b/notes"] {
            let refused = refusal(write(client, id, of_ann(path), options).await);
            assert_eq!(refused, (403, "not_permitted".into()), "{path}");
        }
    }
    let read = client.read_file(id, of_ann("/srv/shared/secret"), 0, None).await;
    assert_eq!(refusal(read), (403, "not_permitted".into()));
    let read = client.read_file(id, of_ann("~/a/b"), 0, None).await;
    assert_eq!(refusal(read), (409, "is_a_directory".into()));
    let tar = client.read_tar(id, of_ann("/srv/shared/secret"), false).await.unwrap();
    assert!(tar.collect(1 << 20).await.is_err(), "an archive of what she may not read");
    write(client, id, of_ann("/srv/shared/hers").as_root(), &in_place).await.unwrap();
    assert_eq!(sh(client, id, "stat -c %U /srv/shared/hers").await, "ann");
    let unknown = GuestPath::of_user("x", "nobody-here");
    assert_eq!(refusal(client.stat(id, unknown).await), (422, "no_such_user".into()));

    let set = XattrSet {
        prefix: "user.mayfly.".into(),
        attributes: vec![Xattr { name: "user.mayfly.k".into(), value: "v=1".into() }],
    };
    let with_set = WriteOptions { xattrs: Some(set), ..in_place.clone() };
    write(client, id, of_ann("tagged"), &with_set).await.unwrap();
    sh(client, id, "cd /home/ann && ln -s tagged link && ln tagged second").await;
    let told = StatOptions { follow: true, xattrs: true };
    let link = client.stat_with(id, of_ann("link"), told).await.unwrap();
    let end = link.followed.unwrap();
    assert_eq!((link.kind, end.kind, end.mode), (Kind::Symlink, Kind::File, 0o644));
    assert_eq!(end.path.to_text(), "/home/ann/tagged");
    let tagged = client.stat_with(id, of_ann("tagged"), told).await.unwrap();
    assert_eq!((tagged.owner.as_deref(), tagged.group.as_deref()), (Some("ann"), Some("ann")));
    let xattrs = tagged.xattrs.unwrap();
    assert_eq!((xattrs.len(), &*xattrs[0].value.to_text()), (1, "v=1"));
    let list = ListOptions { depth: 2, stat: Some(told) };
    let list = client.list_with(id, of_ann("~"), list).await.unwrap();
    let names: Vec<_> = list.iter().map(|entry| entry.name.to_text()).collect();
    assert!(
        ["a", "a/b", "link", "second", "tagged"].iter().all(|name| names.contains(&(*name).into())),
        "{names:?}"
    );
    assert!(list.iter().all(|entry| entry.stat.is_some()), "{list:?}");

    assert!(client.mkdir(id, of_ann("made"), 0o700, true).await.unwrap());
    assert!(!client.mkdir(id, of_ann("made"), 0o700, true).await.unwrap());
    client.rename(id, of_ann("second"), "made/x/second", true).await.unwrap();
    assert_eq!(sh(client, id, "stat -c '%U %h' /home/ann/made/x/second").await, "ann 2");
    client.remove(id, of_ann("nothing"), true, true).await.unwrap();
    let archive = client.read_tar(id, of_ann("made"), true).await.unwrap().collect(1 << 20).await;
    sh(client, id, "mkdir /home/ann/into; chown ann /home/ann/into").await;
    client.write_tar(id, of_ann("into"), Cursor::new(archive.unwrap())).await.unwrap();
    assert_eq!(sh(client, id, "stat -c %U /home/ann/into/made/x/second").await, "ann");
}

/// What each change is told as.
async fn changes(client: &Client, id: &str) {
    let in_place = WriteOptions { in_place: true, ..WriteOptions::default() };
    sh(client, id, "mkdir /tmp/changes").await;
    let mut watch = client.watch(id, "/tmp/changes", false).await.unwrap();
    for _ in 0..2 {
        write(client, id, "/tmp/changes/f", &in_place).await.unwrap();
    }
    sh(client, id, "chmod 600 /tmp/changes/f; rm /tmp/changes/f").await;
    let mut seen = Vec::new();
    while seen.last() != Some(&ChangeKind::Removed) {
        match watch.next().await.unwrap() {
            Some(Change::Change { kind, path, .. }) if path.to_text() == "f" => seen.push(kind),
            other => panic!("{other:?} after {seen:?}"),
        }
    }
    seen.dedup();
    let written = [ChangeKind::Modified, ChangeKind::Closed];
    let wanted = [
        &[ChangeKind::Created],
        &written[..],
        &written,
        &[ChangeKind::Attributes, ChangeKind::Removed],
    ];
    assert_eq!(seen, wanted.concat());
}

async fn sparse(client: &Client, daemon: &Daemon, id: &str) {
    let make = "cd /root && truncate -s 1G sparse && printf middle | dd of=sparse bs=1 seek=700000000 conv=notrunc 2>/dev/null";
    sh(client, id, make).await;
    let dir = tempfile::Builder::new().prefix("mayfly-chaos-").tempdir().unwrap();
    let copy = dir.path().join("sparse").display().to_string();
    let cp = |from: &str, to: &str| {
        let ended = daemon.home().mayfly(["cp", from, to]).run();
        assert!(ended.success(), "{ended}");
    };
    tokio::task::block_in_place(|| cp(&format!("{id}:/root/sparse"), &copy));
    let file = fs::File::open(&copy).unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!(metadata.len(), 1 << 30);
    assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks of 512 bytes", metadata.blocks());
    let mut middle = [0; 8];
    file.read_exact_at(&mut middle, 699_999_999).unwrap();
    assert_eq!(&middle, b"\0middle\0");
    // And in again.
    tokio::task::block_in_place(|| cp(&copy, &format!("{id}:/root/again")));
    let seen = sh(
        client,
        id,
        "cd /root && cmp sparse again && test $(stat -c %b again) -lt 2048 && stat -c %s again",
    );
    assert_eq!(seen.await, (1_u64 << 30).to_string());
    // GNU tar of the guest reads the same archive.
    let archive = client.read_tar(id, "/root/sparse", true).await.unwrap();
    let archive = archive.collect(1 << 20).await.unwrap();
    client.write_file(id, "/root/sparse.tar", 0o644, archive).await.unwrap();
    sh(
        client,
        id,
        "mkdir /root/out && cd /root/out && tar -xf ../sparse.tar && cmp sparse ../sparse",
    )
    .await;
    sh(client, id, "tar -C /root --sparse -cf /root/own.tar sparse && mkdir /root/from-tar").await;
    let own = client.read_file(id, "/root/own.tar", 0, None).await.unwrap().collect(1 << 20).await;
    client.write_tar(id, "/root/from-tar", Cursor::new(own.unwrap())).await.unwrap();
    let seen =
        sh(client, id, "cd /root && cmp sparse from-tar/sparse && stat -c %b from-tar/sparse");
    assert!(seen.await.parse::<u64>().unwrap() < 2048);
    sh(client, id, "rm -rf /root/sparse* /root/again /root/own.tar /root/out /root/from-tar").await;
}

/// A frozen file system holds up those who write to it, and nobody else.
async fn frozen(client: &Client, id: &str) {
    sh(client, id, "sync; fsfreeze -f /").await;
    let writes: Vec<_> = (0..3)
        .map(|n| {
            let (client, id) = (client.clone(), id.to_owned());
            tokio::spawn(async move {
                client.write_file(&id, &*format!("/root/frozen{n}"), 0o600, "x").await
            })
        })
        .collect();
    // Once they wait in the guest.
    let waiting = "cat /proc/[0-9]*/task/*/stat 2>/dev/null | grep -c ') D '; true";
    until("writes that wait", || async {
        (sh(client, id, waiting).await.parse::<u32>().is_ok_and(|waiting| waiting >= 3))
            .then_some(())
    })
    .await;
    assert_eq!(sh(client, id, "echo on").await, "on");
    let read = client.read_file(id, "/etc/hostname", 0, None).await.unwrap();
    assert!(!read.collect(1 << 10).await.unwrap().is_empty());
    // A file system in memory is not frozen.
    client.write_file(id, "/run/elsewhere", 0o600, "x").await.unwrap();
    assert!(
        !client
            .list(id, "/root")
            .await
            .unwrap()
            .iter()
            .any(|entry| entry.name.to_text() == "frozen0")
    );
    assert!(client.stats(id).await.unwrap().guest.is_some());
    assert!(writes.iter().all(|write| !write.is_finished()));
    sh(client, id, "fsfreeze -u /").await;
    for write in writes {
        assert_eq!(write.await.unwrap().unwrap(), 1);
    }
    assert_eq!(sh(client, id, "cat /root/frozen?").await, "xxx");
}
