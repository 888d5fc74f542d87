//! Commands as clients of all kinds use them: long input and output, several readers, servers that
//! stay, failures to start, and a guest that hangs.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use mayfly_api::{Blob, CreateSession, Exec, ExecOutcome, Keep, StartFailureAs, Stream, Terminal};
use mayfly_chaos_tests::daemon::Daemon;
use mayfly_chaos_tests::slots;
use mayfly_client::{Client, Running};
use mayfly_guest::channel::{ExecEvent, ExitStatus};
use serde_json::Value;

use crate::support::{SMALL_POOL, client, refusal, request, sh, shell, until};

const WAIT: Duration = Duration::from_secs(60);
/// More than any body that is held in memory.
const LONG: usize = 50 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn commands_do_what_users_expect() {
    let _all = slots::take(slots::ALL);
    let daemon = Daemon::start(SMALL_POOL, &[]);
    let client = client(&daemon);
    let wanted = CreateSession { user: Some("nobody".into()), ..request() };
    let session = client.create(&wanted, None).await.unwrap();
    let id = session.id.as_str();
    assert_eq!(session.user.as_deref(), Some("nobody"));
    assert_eq!(sh(&client, id, "id -un").await, "nobody");
    client.kill(id).await.unwrap();

    let session = client.create(&request(), None).await.unwrap();
    let id = session.id.as_str();
    readers(&client, id).await;
    failures_to_start(&client, id).await;
    left_behind(&client, id).await;
    ends_of_input(&client, id).await;
    long_arguments(&client, id).await;
    long_stdin(&daemon, &client, id).await;
    long_output(&client, id).await;
    frozen(&client, id).await;
    client.kill(id).await.unwrap();
    daemon.stop();
}

/// All that a command writes until its end, and how it ended.
async fn all(mut running: Running) -> (String, ExitStatus) {
    let mut seen = String::new();
    loop {
        match running.recv().await.unwrap() {
            Some(ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes)) => {
                seen += &String::from_utf8_lossy(&bytes);
            }
            Some(ExecEvent::Exit(status)) => return (seen, status),
            None => panic!("no end after {seen:?}"),
        }
    }
}

async fn readers(client: &Client, id: &str) {
    let script = "read line; echo \"got $line\"; read line; i=0; \
                  while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; exit 7";
    let command = Exec { open_stdin: true, tag: Some("mine".into()), ..shell(script) };
    let started = client.start_background(id, &command).await.unwrap();
    let listed = client.backgrounds(id).await.unwrap();
    let found = listed.iter().find(|exec| exec.tag.as_deref() == Some("mine")).unwrap();
    assert!(found.n == started.n && found.pid == started.pid && found.is_running());
    let mut first = client.attach(id, started.n).await.unwrap();
    let second = client.attach(id, started.n).await.unwrap();
    let gone = client.attach(id, started.n).await.unwrap();
    assert_eq!((first.pid(), second.pid()), (started.pid, started.pid));
    assert!(first.input().write(b"it\n").await);
    let piece = first.recv().await.unwrap();
    assert_eq!(piece, Some(ExecEvent::Stdout("got it\n".into())));
    // One that goes leaves the command, and whoever comes later gets what comes then.
    drop(gone);
    let late = client.attach(id, started.n).await.unwrap();
    assert!(second.input().write(b"on\n").await);
    let whole: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
    let (first, second, late) = tokio::join!(all(first), all(second), all(late));
    for (told, before) in [(first, ""), (second, "got it\n"), (late, "")] {
        assert!(told.0 == format!("{before}{whole}"), "{} bytes", told.0.len());
        assert_eq!(told.1, ExitStatus::Code(7));
    }
    let (after, status) = all(client.attach(id, started.n).await.unwrap()).await;
    assert_eq!((&*after, status), ("", ExitStatus::Code(7)));
    let long = Exec { tag: Some("x".repeat(257)), ..Exec::new(["true"]) };
    assert_eq!(refusal(client.start_background(id, &long).await), (400, "bad_request".into()));
}

async fn failures_to_start(client: &Client, id: &str) {
    let as_result = |command: Exec| Exec { start_failure: Some(StartFailureAs::Result), ..command };
    let nobody = Exec { user: Some("no-such-user".into()), ..Exec::new(["true"]) };
    let nowhere = Exec { cwd: Some(Blob::new("/no/such")), ..Exec::new(["true"]) };
    for (command, code, words) in [
        (Exec::new(["no-such-program"]), 127, "no-such-program"),
        (Exec::new(["/etc/passwd"]), 126, "/etc/passwd"),
        (nobody, 126, "no-such-user"),
        (nowhere, 126, "/no/such"),
    ] {
        let result = client.exec(id, &as_result(command.clone())).await.unwrap();
        assert_eq!(result.outcome, ExecOutcome::ExitCode(code), "{words}");
        assert!(result.stderr.to_text().contains(words), "{result:?}");
        client.exec(id, &command).await.unwrap_err();
    }
    let both = as_result(Exec::new(["true"]));
    assert!(client.exec(id, &both).await.unwrap().outcome.success());
}

async fn left_behind(client: &Client, id: &str) {
    let server = |name: &str| {
        // More than a pipe holds, before it says so.
        format!(
            "(sleep 1; head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2; echo $$ > /tmp/{name}; \
             exec sleep 1000) & echo started"
        )
    };
    let result = client.exec(id, &shell(&server("exec"))).await.unwrap();
    assert_eq!((&*result.stdout.to_text(), result.outcome.success()), ("started\n", true));
    let running = client.run(id, &shell(&server("socket"))).await.unwrap();
    assert_eq!(all(running).await, ("started\n".into(), ExitStatus::Code(0)));
    let background = client.start_background(id, &shell(&server("background"))).await.unwrap();
    let ended = client.background(id, background.n, WAIT).await.unwrap();
    assert_eq!(ended.outcome, Some(ExecOutcome::ExitCode(0)));
    for name in ["exec", "socket", "background"] {
        until(name, || async {
            let looked = client.exec(id, &Exec::new(["test", "-s", &format!("/tmp/{name}")])).await;
            looked.unwrap().outcome.success().then_some(())
        })
        .await;
    }
    assert_eq!(sh(client, id, "pgrep -fx 'sleep 1000' | wc -l; pkill -fx 'sleep 1000'").await, "3");
}

async fn ends_of_input(client: &Client, id: &str) {
    for (script, input) in [("cat", &b"abc"[..]), ("cat", b"abc\x16"), ("cat; cat; echo", b"a\nb")]
    {
        let tty = Some(Terminal { rows: 24, cols: 80 });
        let command = Exec { tty, open_stdin: true, ..shell(script) };
        let running = client.run(id, &command).await.unwrap();
        assert!(running.input().write(input).await && running.input().close().await);
        assert_eq!(all(running).await.1, ExitStatus::Code(0), "{script} {input:?}");
    }
}

async fn long_arguments(client: &Client, id: &str) {
    let with = |count: usize, length: usize| {
        let words = ["sh", "-c", "for word; do echo ${#word}; done | sort | uniq -c", "sh"];
        let words = words.map(str::to_owned).into_iter();
        Exec::new(words.chain(std::iter::repeat_n("x".repeat(length), count)))
    };
    for (count, length) in [(16, 64 << 10), (15, (128 << 10) - 1)] {
        let result = client.exec(id, &with(count, length)).await.unwrap();
        let text = result.stdout.to_text().into_owned();
        assert_eq!(
            text.split_whitespace().collect::<Vec<_>>(),
            [count.to_string(), length.to_string()]
        );
        let (text, status) = all(client.run(id, &with(count, length)).await.unwrap()).await;
        assert_eq!(
            text.split_whitespace().collect::<Vec<_>>(),
            [count.to_string(), length.to_string()]
        );
        assert_eq!(status, ExitStatus::Code(0));
    }
}

async fn long_stdin(daemon: &Daemon, client: &Client, id: &str) {
    let input: Vec<u8> = (0..LONG / 8).flat_map(|n| format!("{n:07}\n").into_bytes()).collect();
    let sum = sh(client, id, &format!("seq -f %07.0f 0 {} | sha256sum", LONG / 8 - 1)).await;
    let sha = Exec { open_stdin: true, ..Exec::new(["sha256sum"]) };

    let started = client.start_background(id, &sha).await.unwrap();
    client.background_stdin(id, started.n, input.clone(), true).await.unwrap();
    let ended = client.background(id, started.n, WAIT).await.unwrap();
    assert_eq!(ended.outcome, Some(ExecOutcome::ExitCode(0)));
    let output = client.background_output(id, started.n, Stream::Stdout, 0, WAIT).await.unwrap();
    assert_eq!(output.data.to_text().trim_end(), sum);

    let running = client.run(id, &sha).await.unwrap();
    let writer = running.input();
    let (told, written) =
        tokio::join!(all(running), async { writer.write(&input).await && writer.close().await });
    assert_eq!((told.0.trim_end(), told.1, written), (&*sum, ExitStatus::Code(0), true));

    let path = daemon.socket().to_owned();
    let of_session = id.to_owned();
    let (status, answer) = tokio::task::spawn_blocking(move || {
        form(&path, &of_session, r#"{"argv":["sha256sum"]}"#, &input)
    })
    .await
    .unwrap();
    assert_eq!((status, answer["stdout"].as_str().unwrap().trim_end()), (200, &*sum));
    // One that reads a little ends all the same, and its client hears of it.
    let (path, of_session) = (daemon.socket().to_owned(), id.to_owned());
    let (status, answer) = tokio::task::spawn_blocking(move || {
        form(&path, &of_session, r#"{"argv":["head","-c","3"]}"#, &vec![b'x'; 20 << 20])
    })
    .await
    .unwrap();
    assert_eq!((status, &answer["stdout"]), (200, &Value::from("xxx")));
}

/// Posts a command and its stdin as a form; status and answer.
fn form(socket: &std::path::Path, id: &str, command: &str, stdin: &[u8]) -> (u16, Value) {
    let begin = format!(
        "--line\r\nContent-Disposition: form-data; name=\"command\"\r\n\r\n{command}\r\n--line\r\n\
         Content-Disposition: form-data; name=\"stdin\"; filename=\"x\"\r\n\r\n"
    );
    let end = "\r\n--line--\r\n";
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(2 * WAIT)).unwrap();
    write!(
        stream,
        "POST /v1/sessions/{id}/exec HTTP/1.1\r\nHost: mayfly\r\nConnection: close\r\n\
         Content-Type: multipart/form-data; boundary=line\r\nContent-Length: {}\r\n\r\n{begin}",
        begin.len() + stdin.len() + end.len()
    )
    .unwrap();
    stream.write_all(stdin).unwrap();
    stream.write_all(end.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap())
}

async fn long_output(client: &Client, id: &str) {
    // 20 MB in lines of 10 bytes.
    let lines = |keep| Exec { keep, ..shell("seq -f %09.0f 0 1999999; exit 3") };
    let tail = client.exec(id, &lines(None)).await.unwrap();
    assert_eq!((tail.outcome, tail.truncated), (ExecOutcome::ExitCode(3), true));
    assert_eq!((tail.stdout_bytes, tail.stderr_bytes), (20_000_000, 0));
    assert!(tail.stdout.0.ends_with(b"001999999\n") && tail.stdout.0.len() > 1 << 20);
    let head = client.exec(id, &lines(Some(Keep::Head))).await.unwrap();
    assert!(head.stdout.0.starts_with(b"000000000\n") && head.truncated);
    let short = client.exec(id, &shell("echo short; echo err >&2")).await.unwrap();
    assert_eq!((short.truncated, short.stdout_bytes, short.stderr_bytes), (false, 6, 4));
}

/// With a frozen file system, what does not write goes on, and a time limit is kept.
async fn frozen(client: &Client, id: &str) {
    sh(client, id, "fsfreeze -f /").await;
    let write = Exec { timeout_ms: Some(500), ..shell("echo before; echo x > /written") };
    let result = client.exec(id, &write).await.unwrap();
    assert_eq!(
        (result.outcome, &*result.stdout.to_text()),
        (ExecOutcome::TimedOut(true), "before\n")
    );
    assert_eq!(sh(client, id, "echo still here").await, "still here");
    sh(client, id, "fsfreeze -u /").await;
    assert_eq!(sh(client, id, "echo x > /written; cat /written").await, "x");
}
