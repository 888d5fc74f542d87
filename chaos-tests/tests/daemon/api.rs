//! Everything a session can do, over the API.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::time::Duration;

use mayfly_api::{
    Blob, Change, ChangeKind, CreateSession, Exec, ExecOutcome, Kind, Stream, Terminal,
};
use mayfly_chaos_tests::daemon::Daemon;
use mayfly_chaos_tests::slots;
use mayfly_client::{Client, Running};
use mayfly_guest::channel::{ExecEvent, ExitStatus};

use crate::support::{SMALL_POOL, client, gone, ids, refusal, request, sh, shell, until};

/// Longest wait of the daemon for something in a guest, which it bounds itself by a minute.
const WAIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn one_session_does_everything_that_the_api_has() {
    let _all = slots::take(slots::ALL);
    let daemon = Daemon::start(SMALL_POOL, &[]);
    let client = client(&daemon);
    let labels = |value: &str| BTreeMap::from([("run".to_owned(), value.to_owned())]);
    let wanted = CreateSession {
        env: BTreeMap::from([("GREETING".to_owned(), "hello".to_owned())]),
        metadata: labels("7"),
        wait_docker: true,
        ..request()
    };
    let session = client.create(&wanted, Some("key")).await.unwrap();
    let id = session.id.as_str();
    assert_eq!(
        (session.state.as_str(), session.tenant.as_str(), &session.metadata),
        ("running", "default", &labels("7"))
    );
    assert!(session.start.docker_ms.is_some());

    // The same request again gets the same session, another one with the same key none.
    assert_eq!(client.create(&wanted, Some("key")).await.unwrap().id, id);
    let other = CreateSession { metadata: labels("8"), ..wanted.clone() };
    assert_eq!(
        refusal(client.create(&other, Some("key")).await),
        (409, "idempotency_conflict".into())
    );
    assert_eq!(ids(&client).await, [id]);

    commands(&client, id).await;
    running_commands(&client, id).await;
    background_commands(&client, id).await;
    files(&client, id).await;
    archives(&client, id).await;
    watches(&client, id).await;
    figures(&client, id).await;
    life(&client, id).await;

    client.kill(id).await.unwrap();
    assert_eq!(ids(&client).await, Vec::<String>::new());
    assert_eq!(refusal(client.session(id).await), gone());
    // The key has made its one session.
    assert_eq!(
        refusal(client.create(&wanted, Some("key")).await),
        (410, "idempotency_gone".into())
    );
    daemon.stop();
}

async fn commands(client: &Client, id: &str) {
    let command = Exec {
        stdin: Some(Blob::new("in ")),
        env: BTreeMap::from([("OWN".to_owned(), Blob::new("own"))]),
        cwd: Some(Blob::new("/usr")),
        ..shell("cat; echo \"$GREETING $OWN $(pwd)\"; printf '\\377' >&2; exit 3")
    };
    let result = client.exec(id, &command).await.unwrap();
    assert_eq!(result.outcome, ExecOutcome::ExitCode(3));
    assert_eq!(
        (&*result.stdout.to_text(), &*result.stderr.0),
        ("in hello own /usr\n", &b"\xff"[..])
    );
    let nobody = Exec { user: Some("nobody".into()), ..Exec::new(["id", "-un"]) };
    assert_eq!(client.exec(id, &nobody).await.unwrap().stdout.to_text(), "nobody\n");
    let slow = Exec { timeout_ms: Some(50), ..Exec::new(["sleep", "1000"]) };
    assert_eq!(client.exec(id, &slow).await.unwrap().outcome, ExecOutcome::TimedOut(true));
    assert_eq!(
        refusal(client.exec(id, &Exec::new(["no-such-program"])).await),
        (404, "not_found".into())
    );
    assert_eq!(
        refusal(client.exec(id, &Exec::new(["/etc/passwd"])).await),
        (403, "not_permitted".into())
    );
}

/// Output until it holds `text`.
async fn output_until(running: &mut Running, text: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(text) {
        match running.recv().await.unwrap() {
            Some(ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes)) => {
                seen += &String::from_utf8_lossy(&bytes);
            }
            other => panic!("{other:?} instead of {text:?} after {seen:?}"),
        }
    }
    seen
}

async fn end(mut running: Running) -> ExitStatus {
    loop {
        match running.recv().await.unwrap() {
            Some(ExecEvent::Exit(status)) => return status,
            Some(_) => {}
            None => panic!("no end"),
        }
    }
}

async fn running_commands(client: &Client, id: &str) {
    let mut cat = client.run(id, &Exec { open_stdin: true, ..Exec::new(["cat"]) }).await.unwrap();
    let input = cat.input();
    for word in ["ping", "pong"] {
        assert!(input.write(word.as_bytes()).await);
        assert_eq!(output_until(&mut cat, word).await, word);
    }
    assert!(input.close().await);
    assert_eq!(end(cat).await, ExitStatus::Code(0));

    let mut trap = client
        .run(id, &shell("trap 'echo caught; exit 4' TERM; echo set; while :; do sleep 0.1; done"))
        .await
        .unwrap();
    output_until(&mut trap, "set").await;
    assert!(trap.input().signal(15).await);
    output_until(&mut trap, "caught").await;
    assert_eq!(end(trap).await, ExitStatus::Code(4));

    let size = |rows, cols| Terminal { rows, cols };
    let script = "stty size; trap 'stty size; exit 5' WINCH; echo set; while :; do sleep 0.1; done";
    let mut tty = client.run(id, &Exec { tty: Some(size(33, 77)), ..shell(script) }).await.unwrap();
    assert!(output_until(&mut tty, "set").await.contains("33 77\r\n"));
    assert!(tty.input().resize(size(40, 100)).await);
    output_until(&mut tty, "40 100\r\n").await;
    assert_eq!(end(tty).await, ExitStatus::Code(5));

    // Dropped, it dies: its name is seen no more.
    let abandoned = client.run(id, &Exec::new(["sleep", "7777"])).await.unwrap();
    assert_eq!(sh(client, id, "pgrep -fx 'sleep 7777' | wc -l").await, "1");
    drop(abandoned);
    until("the end of a dropped command", || async {
        (sh(client, id, "pgrep -fx 'sleep 7777' | wc -l").await == "0").then_some(())
    })
    .await;
}

async fn background_commands(client: &Client, id: &str) {
    let script = "read line; echo \"got $line\"; exec sleep 1000";
    let command =
        client.start_background(id, &Exec { open_stdin: true, ..shell(script) }).await.unwrap();
    client.background_stdin(id, command.n, "it\n", false).await.unwrap();
    let output = client.background_output(id, command.n, Stream::Stdout, 0, WAIT).await.unwrap();
    assert_eq!((&*output.data.to_text(), output.end), ("got it\n", false));
    let list = client.backgrounds(id).await.unwrap();
    assert!(list.len() == 1 && list[0].n == command.n && list[0].is_running(), "{list:?}");
    client.background_signal(id, command.n, 15).await.unwrap();
    let ended = client.background(id, command.n, WAIT).await.unwrap();
    assert_eq!(ended.outcome, Some(ExecOutcome::Signal(15)), "{ended:?}");
    let rest = client
        .background_output(id, command.n, Stream::Stdout, output.next_offset, WAIT)
        .await
        .unwrap();
    assert!(rest.data.0.is_empty() && rest.end);
    assert_eq!(refusal(client.background_kill(id, command.n).await), (409, "command_ended".into()));
    assert_eq!(refusal(client.background(id, 99, WAIT).await), (404, "no_such_exec".into()));
}

async fn files(client: &Client, id: &str) {
    client.mkdir(id, "/tmp/files/deep", 0o755, true).await.unwrap();
    let content: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    // A name that is no UTF-8, as Linux allows.
    let path = &b"/tmp/files/deep/\xffile"[..];
    assert_eq!(client.write_file(id, path, 0o640, content.clone()).await.unwrap(), 300_000);
    let stat = client.stat(id, path).await.unwrap();
    assert_eq!((stat.kind, stat.size, stat.mode & 0o7777), (Kind::File, 300_000, 0o640));
    let read = client.read_file(id, path, 0, None).await.unwrap().collect(1 << 20).await.unwrap();
    assert!(read == content, "content changed on its way");
    let middle = client
        .read_file(id, path, 100_000, Some(1000))
        .await
        .unwrap()
        .collect(1 << 20)
        .await
        .unwrap();
    assert_eq!(middle, content[100_000..101_000]);
    let list = client.list(id, "/tmp/files/deep").await.unwrap();
    assert_eq!(list.iter().map(|entry| entry.name.0.as_slice()).collect::<Vec<_>>(), [b"\xffile"]);

    client.rename(id, path, "/tmp/files/plain", false).await.unwrap();
    assert_eq!(refusal(client.stat(id, path).await), (404, "not_found".into()));
    assert_eq!(sh(client, id, "stat -c '%a %s' /tmp/files/plain").await, "640 300000");
    assert_eq!(
        refusal(client.remove(id, "/tmp/files", false, false).await),
        (409, "not_empty".into())
    );
    client.remove(id, "/tmp/files", true, false).await.unwrap();
    assert_eq!(refusal(client.stat(id, "/tmp/files").await), (404, "not_found".into()));
    assert_eq!(
        refusal(client.write_file(id, "/no/such/dir", 0o600, "x").await),
        (404, "not_found".into())
    );
}

async fn archives(client: &Client, id: &str) {
    let make = "mkdir -p /tmp/tree/sub /tmp/back; echo content >/tmp/tree/sub/file; chmod 741 /tmp/tree/sub/file; \
                ln -s sub/file /tmp/tree/link; cp -a /usr/bin/id /tmp/tree/id";
    sh(client, id, make).await;
    let archive =
        client.read_tar(id, "/tmp/tree", false).await.unwrap().collect(64 << 20).await.unwrap();
    client.write_tar(id, "/tmp/back", Cursor::new(archive.clone())).await.unwrap();
    assert_eq!(
        sh(client, id, "diff -r /tmp/tree /tmp/back/tree && stat -c %a /tmp/back/tree/sub/file")
            .await,
        "741"
    );
    assert_eq!(sh(client, id, "readlink /tmp/back/tree/link").await, "sub/file");
    let torn = Cursor::new(archive[..archive.len() / 2].to_vec());
    assert_eq!(refusal(client.write_tar(id, "/tmp/back", torn).await).0, 422);
    assert_eq!(
        refusal(client.read_tar(id, "/tmp/nothing", false).await),
        (404, "not_found".into())
    );
}

async fn watches(client: &Client, id: &str) {
    sh(client, id, "mkdir -p /tmp/watched/sub").await;
    let mut watch = client.watch(id, "/tmp/watched", true).await.unwrap();
    sh(client, id, "touch /tmp/watched/sub/new; mv /tmp/watched/sub/new /tmp/watched/moved; rm /tmp/watched/moved")
        .await;
    let mut seen = Vec::new();
    while !matches!(seen.last(), Some((ChangeKind::Removed, path)) if path == "moved") {
        match watch.next().await.unwrap() {
            Some(Change::Change { kind, path, .. }) => {
                seen.push((kind, path.to_text().into_owned()));
            }
            other => panic!("{other:?} after {seen:?}"),
        }
    }
    assert!(seen.contains(&(ChangeKind::Created, "sub/new".into())), "{seen:?}");
    // The two halves of a rename come as one when the guest's kernel tells them at once
    // (inotify(7), "Dealing with rename").
    let told = |kind, path: &str| seen.contains(&(kind, path.to_owned()));
    let halves = told(ChangeKind::Removed, "sub/new") && told(ChangeKind::Created, "moved");
    assert!(told(ChangeKind::Renamed, "moved") || halves, "{seen:?}");
    assert_eq!(refusal(client.watch(id, "/tmp/nothing", false).await), (404, "not_found".into()));
}

async fn figures(client: &Client, id: &str) {
    sh(client, id, "echo seen-$((6 * 7)) >/dev/console").await;
    until("the console", || async {
        client.logs(id).await.unwrap().contains("seen-42").then_some(())
    })
    .await;
    let stats = client.stats(id).await.unwrap();
    let guest = stats.guest.as_ref().expect("a guest that answers");
    assert_eq!((guest.docker, guest.cpus), (Some(true), 1));
    assert!(
        guest.memory_total_bytes > 512 << 20
            && guest.memory_available_bytes < guest.memory_total_bytes
    );
    assert!(
        stats.vmm.private_memory_bytes > 0 && stats.vmm.cpu_seconds > 0.0 && stats.pager.is_some(),
        "{stats:?}"
    );
    let metrics = client.metrics().await.unwrap();
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    let status = client.status().await.unwrap();
    assert_eq!((status.sessions, status.queued), (1, 0));
    assert_eq!(
        status.latency.iter().map(|latency| latency.summary.n).sum::<usize>(),
        1,
        "{:?}",
        status.latency
    );
    assert!(client.openapi().await.unwrap()["paths"]["/v1/sessions/{id}/exec"].is_object());
}

async fn life(client: &Client, id: &str) {
    // RFC 3339 in one time zone sorts as text.
    let before = client.session(id).await.unwrap().expires_at;
    let after = client.extend(id, 7200).await.unwrap().expires_at;
    assert!(after > before, "{before}, then {after}");
    assert_eq!(client.session(id).await.unwrap().expires_at, after);
    assert_eq!(refusal(client.extend(id, u64::MAX).await), (422, "bad_request".into()));
    assert_eq!(refusal(client.session("0000000000000000").await), (404, "no_such_session".into()));
}
