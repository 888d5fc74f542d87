//! Commands: output, input, exit, signals, terminals, limits.

use super::{Agent, Room};
use crate::channel::{
    Channel, ChannelError, ExecEvent, ExecHandle, ExecRequest, ExitStatus, StartFailure, TtySize,
};
use mayfly_protocol::STDIN_WINDOW;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Semaphore;

fn shell(script: &str) -> ExecRequest {
    ExecRequest::new(["sh", "-c", script])
}

async fn run(channel: &Channel, request: ExecRequest) -> crate::channel::Output {
    channel.exec(request).await.unwrap().output().await.unwrap()
}

async fn wait_for_output(command: &mut ExecHandle, wanted: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(wanted) {
        match command.recv().await.unwrap() {
            Some(ExecEvent::Stdout(bytes)) => seen.push_str(&String::from_utf8_lossy(&bytes)),
            other => panic!("{other:?} before {wanted:?}, after {seen:?}"),
        }
    }
    seen
}

/// Whether a process of this host still runs; ones that only wait to be reaped do not.
fn runs(pid: u32) -> bool {
    let stat =
        std::fs::read_to_string(PathBuf::from(format!("/proc/{pid}/stat"))).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[tokio::test]
#[ignore = "needs root"]
async fn output_and_exit_codes_come_through() {
    let (_agent, channel) = Agent::open().await;
    let output = run(&channel, shell("echo out; echo err >&2; exit 3")).await;
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice()),
        (&b"out\n"[..], &b"err\n"[..])
    );
    assert_eq!(output.status, ExitStatus::Code(3));
    assert_eq!(run(&channel, shell("kill -TERM $$")).await.status, ExitStatus::Signal(15));
    assert!(run(&channel, ExecRequest::new(["true"])).await.success());
}

#[tokio::test]
async fn environment_directory_and_arguments_are_the_requested_ones() {
    let (_agent, channel) = Agent::open().await;
    let request = ExecRequest {
        env: vec![
            ("GREETING".into(), "hello \u{e9}".into()),
            ("PATH".into(), "/usr/bin:/bin".into()),
        ],
        cwd: "/usr".into(),
        ..ExecRequest::new([
            &b"sh"[..],
            b"-c",
            b"pwd; echo $GREETING; echo $0 | od -An -tx1",
            b"\xff",
        ])
    };
    let output = String::from_utf8(run(&channel, request).await.stdout).unwrap();
    assert_eq!(output, "/usr\nhello \u{e9}\n ff 0a\n");
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_command_that_cannot_start_is_an_error_with_its_errno() {
    let (_agent, channel) = Agent::open().await;
    let fails = async |request: ExecRequest| match channel.exec(request).await {
        Err(ChannelError::NotStarted { kind, error }) => (kind, error),
        other => panic!("{other:?}"),
    };
    let of_command = |words: &[&str]| ExecRequest::new(words.iter().copied());
    let in_directory = |cwd: &str| ExecRequest { cwd: cwd.into(), ..ExecRequest::new(["true"]) };
    let as_user =
        |user: &str| ExecRequest { user: Some(user.into()), ..ExecRequest::new(["true"]) };
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::set_permissions(script.path(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(script.path(), "#!/no/such/interpreter\n").unwrap();
    let script = script.into_temp_path();
    for (request, kind, errno, words) in [
        (of_command(&["no-such-program"]), StartFailure::NoProgram, libc::ENOENT, "no-such"),
        (of_command(&["/no/such"]), StartFailure::NoProgram, libc::ENOENT, "/no/such"),
        (of_command(&[script.to_str().unwrap()]), StartFailure::NoProgram, libc::ENOENT, "start"),
        (of_command(&["/etc/passwd"]), StartFailure::NotExecutable, libc::EACCES, "/etc/passwd"),
        (of_command(&["/tmp"]), StartFailure::NotExecutable, libc::EACCES, "/tmp"),
        (of_command(&[]), StartFailure::Other, libc::EINVAL, "program"),
        (of_command(&["a\0b"]), StartFailure::Other, libc::EINVAL, "NUL"),
        (in_directory("/no/such"), StartFailure::NoDirectory, libc::ENOENT, "working directory"),
        (in_directory("/etc/passwd"), StartFailure::NoDirectory, libc::ENOTDIR, "directory"),
        (as_user("no-such-user"), StartFailure::NoUser, libc::EINVAL, "no-such-user"),
        (as_user("root:no-such-group"), StartFailure::NoUser, libc::EINVAL, "no-such-group"),
    ] {
        let (of_kind, error) = fails(request).await;
        assert_eq!((of_kind, error.errno), (kind, errno), "{error}");
        assert!(error.message.contains(words), "{error}");
    }
    assert!(run(&channel, ExecRequest::new(["true"])).await.success(), "the channel goes on");
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_hundred_megabytes_arrive_whole_while_others_are_served() {
    const LENGTH: usize = 100 << 20;
    let (_agent, channel) = Agent::open().await;
    let mut command =
        channel.exec(shell(&format!("yes 0123456789abcde | head -c {LENGTH}"))).await.unwrap();
    let mut seen = 0;
    let mut polled = 0;
    loop {
        match command.recv().await.unwrap() {
            Some(ExecEvent::Stdout(bytes)) => {
                for (offset, byte) in bytes.iter().enumerate() {
                    assert_eq!(*byte, b"0123456789abcde\n"[(seen + offset) % 16]);
                }
                seen += bytes.len();
                if seen / (20 << 20) > polled {
                    polled += 1;
                    channel.health().await.unwrap();
                }
            }
            Some(ExecEvent::Exit(status)) => {
                assert!(status.success());
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, LENGTH);
    assert_eq!(polled, 5);
}

#[tokio::test]
#[ignore = "needs root"]
async fn stdin_reaches_the_command_and_ends() {
    let (_agent, channel) = Agent::open().await;
    let input: Vec<u8> =
        (0..8 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let cat = ExecRequest { stdin: true, ..ExecRequest::new(["cat"]) };
    let output = channel.exec(cat).await.unwrap().output_with_stdin(&input).await.unwrap();
    assert_eq!(output.status, ExitStatus::Code(0));
    assert!(output.stdout == input, "{} bytes came back", output.stdout.len());
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_command_that_stops_reading_is_no_error_and_no_hang() {
    let (_agent, channel) = Agent::open().await;
    let head = ExecRequest { stdin: true, ..ExecRequest::new(["head", "-c", "3"]) };
    let output =
        channel.exec(head).await.unwrap().output_with_stdin(&vec![b'x'; 8 << 20]).await.unwrap();
    assert_eq!(output.stdout, b"xxx");
    let closes = ExecRequest { stdin: true, ..shell("exec <&-; echo closed; sleep 0.1") };
    let output =
        channel.exec(closes).await.unwrap().output_with_stdin(&vec![b'x'; 8 << 20]).await.unwrap();
    assert_eq!(output.stdout, b"closed\n");
    assert!(
        run(&channel, ExecRequest::new(["cat"])).await.stdout.is_empty(),
        "stdin not asked for is /dev/null"
    );
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_full_stdin_holds_up_neither_signals_nor_the_end() {
    let (_agent, channel) = Agent::open().await;
    let deaf = ExecRequest { stdin: true, ..ExecRequest::new(["sleep", "1000"]) };
    let mut command = channel.exec(deaf.clone()).await.unwrap();
    command.stdin().write_all(&vec![0; STDIN_WINDOW]).await.unwrap();
    command.control().signal(libc::SIGINT).await.unwrap();
    assert_eq!(
        command.recv().await.unwrap(),
        Some(ExecEvent::Exit(ExitStatus::Signal(libc::SIGINT)))
    );
    assert_eq!(command.recv().await.unwrap(), None);
    assert!(matches!(command.stdin().write_all(b"x").await, Err(ChannelError::Ended)));

    let command = channel.exec(deaf).await.unwrap();
    let pid = command.pid();
    command.stdin().write_all(&vec![0; STDIN_WINDOW]).await.unwrap();
    drop(command);
    while runs(pid) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_dropped_command_takes_its_whole_group_along() {
    let (_agent, channel) = Agent::open().await;
    let mut command = channel.exec(shell("sleep 1000 & echo $!; wait")).await.unwrap();
    let child: u32 = wait_for_output(&mut command, "\n").await.trim().parse().unwrap();
    let pid = command.pid();
    assert!(runs(child) && runs(pid));
    drop(command);
    while runs(child) || runs(pid) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_timeout_kills_the_whole_group() {
    let (_agent, channel) = Agent::open().await;
    let request = ExecRequest { timeout_ms: Some(50), ..shell("sleep 1000 & echo $!; wait") };
    let output = run(&channel, request).await;
    assert_eq!(output.status, ExitStatus::TimedOut);
    let child: u32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    while runs(child) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_descendant_that_keeps_the_output_does_not_hold_up_the_exit() {
    let (_agent, channel) = Agent::open().await;
    let mut command = channel.exec(shell("sleep 1000 & echo $!; exit 5")).await.unwrap();
    let child: u32 = wait_for_output(&mut command, "\n").await.trim().parse().unwrap();
    assert_eq!(command.recv().await.unwrap(), Some(ExecEvent::Exit(ExitStatus::Code(5))));
    drop(command);
    assert!(runs(child), "what a command leaves running goes on");
    let killed = run(&channel, ExecRequest::new(["kill".to_owned(), child.to_string()])).await;
    assert!(killed.success());
}

#[tokio::test]
#[ignore = "needs root"]
async fn what_a_command_leaves_behind_may_go_on_writing() {
    let (agent, channel) = Agent::open().await;
    let before = agent.descriptors();
    let folder = tempfile::tempdir().unwrap();
    // More than a pipe holds, to both streams, and then a file that says so.
    let script = "cd \"$0\"; (sleep 0.5; head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2; \
                  echo done > done; exec sleep 1000) & echo $!; exit 4";
    let request = ExecRequest::new(["sh", "-c", script, folder.path().to_str().unwrap()]);
    let output = run(&channel, request).await;
    assert_eq!(output.status, ExitStatus::Code(4));
    let child: u32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    while !folder.path().join("done").exists() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(runs(child));
    assert!(
        run(&channel, ExecRequest::new(["kill".to_owned(), child.to_string()])).await.success()
    );
    // Its pipes are gone with it; what reads them stays.
    while agent.descriptors() > before + 4 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn an_end_of_input_ends_whoever_reads_a_terminal() {
    let (_agent, channel) = Agent::open().await;
    let tty = Some(TtySize { rows: 24, cols: 80 });
    for (script, input, words) in [
        ("cat", &b""[..], ""),
        ("cat", b"abc", "abcabc"),
        ("cat", b"abc\n", "abc\r\nabc"),
        // Quoted, and erased.
        ("cat", b"abc\x16", "abc"),
        ("cat", b"abc\x7f\x7f\x7f", ""),
        ("cat", b"\x15abc\x15", ""),
        // Slow, and one after the other.
        ("sleep 0.3; cat; echo slow", b"abc", "slow"),
        ("cat; cat; read line || echo all", b"abc", "all"),
        ("cat; sleep 0.3; cat; exit 0", b"one\ntwo", "two"),
        // A line that is longer than a terminal takes.
        ("wc -c", &[b'x'; 10_000], "4095"),
        // Not in canonical mode it is one character.
        ("stty raw -echo; echo set; head -c 4 | od -An -tx1; exit 0", b"abc", "61 62 63 04"),
        ("stty eof e; cat", b"abc", "abc"),
    ] {
        let command =
            channel.exec(ExecRequest { tty, stdin: true, ..shell(script) }).await.unwrap();
        let input_of = String::from_utf8_lossy(input);
        if script.contains("raw") {
            let mut command = command;
            wait_for_output(&mut command, "set").await;
            let output = command.output_with_stdin(input).await.unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.success() && text.contains(words), "{script} {input_of}: {text:?}");
            continue;
        }
        let output = command.output_with_stdin(input).await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.success() && text.contains(words), "{script} {input_of}: {output:?}");
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_program_gets_as_much_as_linux_takes() {
    let (_agent, channel) = Agent::open().await;
    let with = |count: usize, length: usize| {
        let words = ["sh", "-c", "for word; do echo ${#word}; done | sort | uniq -c", "sh"];
        let words = words.map(str::to_owned).into_iter();
        ExecRequest::new(words.chain(std::iter::repeat_n("x".repeat(length), count)))
    };
    for (count, length) in [(16, 64 << 10), (15, (128 << 10) - 1), (1, (128 << 10) - 1)] {
        let output = run(&channel, with(count, length)).await;
        let text = String::from_utf8(output.stdout).unwrap();
        let words: Vec<_> = text.split_whitespace().collect();
        assert_eq!(words, [count.to_string(), length.to_string()]);
    }
    // More is refused: a longer string, and more than a quarter of the stack.
    for (count, length) in [(1, 128 << 10), (17, (128 << 10) - 1)] {
        match channel.exec(with(count, length)).await {
            Err(ChannelError::NotStarted { error, .. }) => assert_eq!(error.errno, libc::E2BIG),
            Err(ChannelError::TooLong { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(run(&channel, ExecRequest::new(["true"])).await.success());
}

#[tokio::test]
#[ignore = "needs root"]
async fn all_output_before_the_exit_is_delivered_even_to_a_slow_reader() {
    let (_agent, channel) = Agent::open().await;
    // More than the agent reads ahead, all of it in the pipe or on the way when the command ends.
    let mut command = channel
        .exec(shell("sleep 1000 & echo $! >&2; head -c 1000000 /dev/zero; exit 0"))
        .await
        .unwrap();
    let mut seen = 0;
    let mut sleeper = Vec::new();
    loop {
        match command.recv().await.unwrap() {
            Some(ExecEvent::Stdout(bytes)) => {
                seen += bytes.len();
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            Some(ExecEvent::Stderr(bytes)) => sleeper.extend_from_slice(&bytes),
            Some(ExecEvent::Exit(_)) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, 1_000_000);
    let sleeper = String::from_utf8(sleeper).unwrap();
    assert!(run(&channel, ExecRequest::new(["kill", sleeper.trim()])).await.success());
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_terminal_has_a_size_a_session_and_an_end_of_file() {
    let (_agent, channel) = Agent::open().await;
    let tty = Some(TtySize { rows: 33, cols: 111 });
    let script = "stty size; tty >/dev/null && echo terminal; echo $TERM; trap 'stty size; exit 9' WINCH; echo ready; \
                  while :; do sleep 0.05; done";
    let mut command =
        channel.exec(ExecRequest { tty, stdin: true, ..shell(script) }).await.unwrap();
    let seen = wait_for_output(&mut command, "ready").await;
    assert!(
        seen.contains("33 111\r\n") && seen.contains("terminal\r\n") && seen.contains("xterm"),
        "{seen:?}"
    );
    command.control().resize(TtySize { rows: 44, cols: 122 }).await.unwrap();
    let output = command.output().await.unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("44 122"), "{output:?}");
    assert_eq!(output.status, ExitStatus::Code(9));

    let cat = ExecRequest { tty, stdin: true, ..ExecRequest::new(["cat"]) };
    let output = channel.exec(cat).await.unwrap().output_with_stdin(b"typed\n").await.unwrap();
    assert_eq!(output.status, ExitStatus::Code(0));
    assert_eq!(output.stdout, b"typed\r\ntyped\r\n", "echo of the terminal, then of cat");

    let sleep = ExecRequest { tty, stdin: true, ..ExecRequest::new(["sleep", "1000"]) };
    let command = channel.exec(sleep).await.unwrap();
    command.stdin().write_all(b"\x03").await.unwrap();
    assert_eq!(command.output().await.unwrap().status, ExitStatus::Signal(libc::SIGINT));
}

#[tokio::test]
async fn another_user_has_its_own_ids() {
    let (_agent, channel) = Agent::open().await;
    // Changing the user takes root, in a guest as here.
    if !nix::unistd::geteuid().is_root() {
        let request = ExecRequest { user: Some("0".into()), ..ExecRequest::new(["true"]) };
        assert!(matches!(channel.exec(request).await, Err(ChannelError::NotStarted { .. })));
        return;
    }
    let request = ExecRequest { user: Some("nobody".into()), ..shell("id -u; echo $USER") };
    assert_eq!(run(&channel, request).await.stdout, b"65534\nnobody\n");
    let request = ExecRequest { user: Some("1234:5678".into()), ..shell("id -u; id -g; id -G") };
    assert_eq!(run(&channel, request).await.stdout, b"1234\n5678\n5678\n");
}

#[tokio::test]
#[ignore = "needs root"]
async fn many_commands_at_once() {
    let (_agent, channel) = Agent::open().await;
    let runs = (0..400).map(|n| {
        let channel = &channel;
        async move {
            let output = run(channel, ExecRequest::new(["echo".to_owned(), n.to_string()])).await;
            assert_eq!(output.stdout, format!("{n}\n").as_bytes());
        }
    });
    // More than there may be streams: the later ones wait for a place.
    futures::future::join_all(runs).await;
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_dead_agent_ends_everything_with_an_error() {
    let (mut agent, channel) = Agent::open().await;
    let mut command = channel.exec(ExecRequest::new(["cat", "/dev/zero"])).await.unwrap();
    agent.child.kill().unwrap();
    agent.child.wait().unwrap();
    let error = loop {
        match command.recv().await {
            Ok(event) => assert!(matches!(event, Some(ExecEvent::Stdout(_)))),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ChannelError::Closed { .. } | ChannelError::Io(_)), "{error}");
    assert!(matches!(channel.health().await, Err(ChannelError::Closed { .. })));
    drop(command);
}

#[tokio::test]
#[ignore = "needs root"]
async fn each_request_sets_aside_the_window_of_its_stream_and_gives_it_back() {
    const WINDOW: usize = 256 << 10;
    let (_agent, channel) = Agent::open().await;
    // What was opened before does not count.
    let before = channel.exec(ExecRequest::new(["sleep", "1000"])).await.unwrap();
    let room = Arc::new(Semaphore::new(2 * WINDOW + 1));
    channel.bound_by(Arc::new(Room(room.clone())));
    let first = channel.exec(ExecRequest::new(["sleep", "1000"])).await.unwrap();
    let second = channel.exec(ExecRequest::new(["sleep", "1000"])).await.unwrap();
    assert_eq!(room.available_permits(), 1);
    let refused = channel.health().await.unwrap_err();
    assert!(matches!(refused, ChannelError::NoBuffers), "{refused}");
    // The channel goes on, also for what is open.
    drop(second);
    channel.health().await.unwrap();
    drop((before, first));
    assert_eq!(room.available_permits(), 2 * WINDOW + 1);
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_directory_is_listed_as_far_as_its_names_may_be_held() {
    const WINDOW: usize = 256 << 10;
    let (_agent, channel) = Agent::open().await;
    let folder = tempfile::tempdir().unwrap();
    for n in 0..900 {
        std::fs::write(folder.path().join(format!("{n:0200}")), "").unwrap();
    }
    // Room for two streams, and for the names of one directory.
    let room = Arc::new(Semaphore::new(2 * WINDOW + 50_000));
    channel.bound_by(Arc::new(Room(room.clone())));
    let listed = channel.list(folder.path()).await.unwrap();
    assert_eq!(listed.entries.len(), 900);
    let left = room.available_permits();
    assert!((WINDOW..2 * WINDOW + 50_000 - 900 * 200).contains(&left), "{left}");
    // There is room for the stream, and none for the names.
    let refused = channel.list(folder.path()).await.unwrap_err();
    assert!(matches!(refused, ChannelError::NoBuffers), "{refused}");
    drop(listed);
    assert_eq!(channel.list(folder.path()).await.unwrap().entries.len(), 900);
}
