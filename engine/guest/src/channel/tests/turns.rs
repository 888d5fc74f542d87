//! A guest that is never short of frames leaves other tasks their turns, also when it is read from
//! in a loop.

use super::hostile::{open, scripted};
use crate::channel::{Channel, ExecRequest};
use mayfly_protocol::{
    DnsMessage, EgressPorts, ExecOutput, ExitStatus, FileChunk, FileKind, Metadata, Reply,
    WatchEvent, WatchKind, WatchOutput, encode_frame,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// Frames that are read; tokio lets a task take 128 of what is ready in one turn.
const FRAMES: usize = 5000;
/// Turns that another task must have meanwhile.
const TURNS: usize = FRAMES / 200;

/// A guest that answers with `first` once and `frame` over and over.
async fn flooding(first: Vec<u8>, frame: Vec<u8>) -> Channel {
    let answer = [first, frame.repeat(FRAMES)].concat();
    assert!(answer.len() < 200_000, "it must be here before it is read");
    open(scripted(move |_| answer.clone())).await
}

/// Waits until all is here that the guest sends, reads it, and counts the turns of another task of
/// the same thread meanwhile.
async fn turns_during(read: impl Future<Output = ()>) -> usize {
    tokio::time::sleep(Duration::from_millis(200)).await;
    let turns = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&turns);
    let other = tokio::spawn(async move {
        loop {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    });
    read.await;
    other.abort();
    turns.load(Ordering::Relaxed)
}

fn frame<T: serde::Serialize>(value: &T) -> Vec<u8> {
    encode_frame(value).unwrap()
}

#[tokio::test]
async fn while_output_is_read() {
    let byte = frame(&ExecOutput::Stdout(vec![b'x']));
    let channel = flooding(frame(&ExecOutput::Started { pid: 1 }), byte).await;
    let mut command = channel.exec(ExecRequest::new(["x"])).await.unwrap();
    let turns = turns_during(async {
        for _ in 0..FRAMES {
            command.recv().await.unwrap().unwrap();
        }
    });
    assert!(turns.await >= TURNS);
}

#[tokio::test]
async fn while_frames_are_read_that_are_no_events() {
    let started = frame(&ExecOutput::Started { pid: 1 });
    let credits = frame(&ExecOutput::StdinConsumed(1)).repeat(FRAMES);
    let exit = frame(&ExecOutput::Exit(ExitStatus::Code(0)));
    let answer = [started, credits, exit].concat();
    let channel = open(scripted(move |_| answer.clone())).await;
    let mut command = channel.exec(ExecRequest::new(["x"])).await.unwrap();
    command.stdin().write_all(&[0; FRAMES]).await.unwrap();
    let turns = turns_during(async {
        command.recv().await.unwrap().unwrap();
    });
    assert!(turns.await >= TURNS);
}

#[tokio::test]
async fn while_a_file_is_read() {
    let metadata = Metadata::new("/x", FileKind::File);
    let byte = frame(&FileChunk::Data(vec![b'x']));
    let channel = flooding(frame(&Reply::Ok(metadata)), byte).await;
    let (_, mut file) = channel.open_read("/x", 0, u64::MAX).await.unwrap();
    let turns = turns_during(async {
        for _ in 0..FRAMES {
            file.next_chunk().await.unwrap().unwrap();
        }
    });
    assert!(turns.await >= TURNS);
}

#[tokio::test]
async fn while_changes_are_read() {
    let event = WatchEvent::new(WatchKind::Modified, "x");
    let channel = flooding(frame(&Reply::Ok(())), frame(&WatchOutput::Events(vec![event]))).await;
    let mut watch = channel.watch("/x", false).await.unwrap();
    let turns = turns_during(async {
        for _ in 0..FRAMES {
            watch.next().await.unwrap().unwrap();
        }
    });
    assert!(turns.await >= TURNS);
}

#[tokio::test]
async fn while_dns_queries_are_read() {
    let query = frame(&DnsMessage { tag: 1, message: vec![0; 3] });
    let ports = Reply::Ok(EgressPorts { proxy: 1, dns: 2 });
    let channel = flooding(frame(&ports), query).await;
    let mut egress = channel.open_egress().await.unwrap();
    let turns = turns_during(async {
        for _ in 0..FRAMES {
            egress.queries.next().await.unwrap();
        }
    });
    assert!(turns.await >= TURNS);
}

#[tokio::test]
async fn while_a_connection_is_read() {
    let byte = [&1_u32.to_le_bytes()[..], b"x"].concat();
    let channel = flooding(frame(&Reply::Ok(())), byte).await;
    let mut stream = channel.connect_tcp(80).await.unwrap();
    let turns = turns_during(async {
        for _ in 0..FRAMES {
            stream.read_u8().await.unwrap();
        }
    });
    assert!(turns.await >= TURNS);
}
