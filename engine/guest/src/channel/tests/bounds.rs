//! What the frames of a guest may hold, and what is held of them.

use super::hostile::{is_protocol, open, scripted};
use super::{Agent, Room};
use crate::channel::{ChannelError, ExecEvent, ExecRequest, TtySize};
use mayfly_protocol::{
    ExecOutput, ExitStatus, MAX_CHUNK, Reply, Request, STREAM_WINDOW, WatchEvent, WatchKind,
    WatchOutput, encode_frame,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

fn frames<T: serde::Serialize>(list: &[T]) -> Vec<u8> {
    list.iter().flat_map(|frame| encode_frame(frame).unwrap()).collect()
}

#[tokio::test]
async fn output_in_pieces_that_are_empty_or_too_long_is_refused() {
    let exit = ExecOutput::Exit(ExitStatus::Code(0));
    for output in [ExecOutput::Stdout, ExecOutput::Stderr] {
        for (length, fits) in [(0, false), (1, true), (MAX_CHUNK, true), (MAX_CHUNK + 1, false)] {
            let piece = output(vec![b'x'; length]);
            let script = frames(&[ExecOutput::Started { pid: 1 }, piece, exit.clone()]);
            let channel = open(scripted(move |_| script.clone())).await;
            let mut command = channel.exec(ExecRequest::new(["x"])).await.unwrap();
            match command.recv().await {
                Ok(Some(ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes))) => {
                    assert!(fits && bytes.len() == length, "{length}");
                }
                Err(error) => {
                    assert!(!fits && is_protocol(&error), "{length}: {error}");
                    assert_eq!(command.recv().await.unwrap(), None);
                }
                other => panic!("{length}: {other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_credit_of_nothing_is_no_credit() {
    let started = ExecOutput::Started { pid: 1 };
    let nothing = ExecOutput::StdinConsumed(0);
    let exit = ExecOutput::Exit(ExitStatus::Code(0));
    let script = frames(&[started, nothing, exit]);
    let channel = open(scripted(move |_| script.clone())).await;
    let mut command = channel.exec(ExecRequest::new(["x"])).await.unwrap();
    command.stdin().write_all(b"x").await.unwrap();
    assert!(is_protocol(&command.recv().await.unwrap_err()));
}

#[tokio::test]
async fn a_time_limit_is_kept_of_a_guest_that_does_not() {
    let limited = || ExecRequest { timeout_ms: Some(50), ..ExecRequest::new(["x"]) };
    // It says nothing at all.
    let channel = open(scripted(|_| Vec::new())).await;
    let error = channel.exec(limited()).await.unwrap_err();
    assert!(matches!(error, ChannelError::NoStart { .. }), "{error}");
    // It starts the command, and then says nothing more.
    let some = [ExecOutput::Started { pid: 1 }, ExecOutput::Stdout(b"x".to_vec())];
    let script = frames(&some);
    let channel = open(scripted(move |_| script.clone())).await;
    let command = channel.exec(limited()).await.unwrap();
    let output = command.output().await.unwrap();
    assert_eq!((output.status, &output.stdout[..]), (ExitStatus::TimedOut, &b"x"[..]));
    // It writes without an end: what was on its way is taken, and no more.
    let piece = ExecOutput::Stdout(vec![b'x'; MAX_CHUNK]);
    let script = [frames(&some), frames(&vec![piece; 64])].concat();
    let channel = open(scripted(move |_| script.clone())).await;
    let command = channel.exec(limited()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let output = command.output().await.unwrap();
    assert_eq!(output.status, ExitStatus::TimedOut);
    assert!((1 << 19..2 << 20).contains(&output.stdout.len()), "{}", output.stdout.len());
}

#[tokio::test]
async fn an_end_of_stdin_reaches_a_terminal_with_and_without_input() {
    let (_agent, channel) = Agent::open().await;
    let tty = Some(TtySize { rows: 24, cols: 80 });
    for input in [&b""[..], b"typed\n"] {
        let cat = ExecRequest { tty, stdin: true, ..ExecRequest::new(["cat"]) };
        let command = channel.exec(cat).await.unwrap();
        // Again is no harm.
        command.stdin().write_all(input).await.unwrap();
        command.stdin().close().await.unwrap();
        command.stdin().close().await.unwrap();
        assert_eq!(command.output().await.unwrap().status, ExitStatus::Code(0));
    }
}

fn modified(path: String) -> WatchEvent {
    WatchEvent::new(WatchKind::Modified, path)
}

/// A path of names as long as they may be, and of this length.
fn path(length: usize) -> String {
    format!("{}/", "x".repeat(255)).repeat(length / 256) + &"y".repeat(length % 256)
}

#[tokio::test]
async fn events_of_paths_that_linux_does_not_have_are_refused() {
    for (length, fits) in [(4096 + 255, true), (4096 + 257, false), (900_000 + 1, false)] {
        let long = path(length);
        let renamed =
            WatchEvent { from: Some((&*long).into()), ..WatchEvent::new(WatchKind::Renamed, "a") };
        for event in [modified(long.clone()), renamed] {
            let mut script = frames(&[Reply::Ok(())]);
            script.extend(frames(&[WatchOutput::Events(vec![event])]));
            let channel = open(scripted(move |_| script.clone())).await;
            let mut watch = channel.watch("/x", true).await.unwrap();
            match watch.next().await {
                Ok(event) => assert!(fits && event.is_some(), "{length}"),
                Err(error) => assert!(!fits && is_protocol(&error), "{length}: {error}"),
            }
        }
    }
}

#[tokio::test]
async fn events_count_until_they_are_taken_and_are_lost_where_there_is_no_room() {
    let channel = open(scripted(|request| {
        let Request::Watch { recursive, .. } = request else { panic!("{request:?}") };
        let short = vec![modified("short".into()); 100];
        let long = vec![modified(path(4000)); if recursive { 100 } else { 20 }];
        let mut script = frames(&[Reply::Ok(())]);
        script.extend(frames(&[short.clone(), long, short].map(WatchOutput::Events)));
        script
    }))
    .await;
    // For the stream, for a usual frame, and for one that is not.
    let all = STREAM_WINDOW + (32 << 10) + 60_000;
    let room = Arc::new(Semaphore::new(all));
    channel.bound_by(Arc::new(Room(room.clone())));
    let left = || room.available_permits();
    let mut watch = channel.watch("/x", false).await.unwrap();
    for n in 0..100 {
        assert_eq!(watch.next().await.unwrap(), Some(modified("short".into())), "{n}");
        assert_eq!(left(), 60_000);
    }
    for n in 0..20 {
        assert_eq!(watch.next().await.unwrap(), Some(modified(path(4000))), "{n}");
        assert!((10_000..12_500).contains(&left()), "{}", left());
    }
    assert_eq!(watch.next().await.unwrap(), Some(modified("short".into())));
    assert_eq!(left(), 60_000);
    drop(watch);
    assert_eq!(left(), all);
    // A frame for which there is no room.
    let mut watch = channel.watch("/x", true).await.unwrap();
    for _ in 0..100 {
        watch.next().await.unwrap();
    }
    assert_eq!(watch.next().await.unwrap().unwrap().kind, WatchKind::Overflow);
    assert_eq!(watch.next().await.unwrap(), Some(modified("short".into())));
    // And none at all for a second watch.
    assert!(matches!(channel.watch("/x", true).await, Err(ChannelError::NoBuffers)));
}
