//! Bytes that a guest or its VMM may send, given to the code that reads them, and what must hold
//! whatever they are.
//!
//! Shared by the fuzz targets (`engine/fuzz/`) and the property tests of this crate, which make the
//! same bytes in another way. Each function panics when something does not hold; a wait for ever is
//! found by the caller's limit of time.

#![expect(
    clippy::missing_panics_doc,
    reason = "each function is there to panic when something does not hold"
)]

mod egress;
#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use mayfly_guest::archive::Landing;
use mayfly_guest::channel::{
    Channel, ChannelError, ExecRequest, ListOptions, StatOptions, WatchEvent,
};
use mayfly_guest::docker;
use mayfly_protocol::{
    ACK_MAGIC, Entropy, FrameReader, Hello, HelloAck, MAX_DNS_MESSAGE, Mode, Mux, PROTOCOL_VERSION,
    Reply, Request, encode_frame, encode_handshake, is_file_name, is_printable,
};
use mayfly_vmm::ConsoleTail;
use mayfly_vmm::qmp::{QmpClient, QmpError, schema};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::compat::TokioAsyncReadCompatExt;

pub use egress::{egress_agent, egress_dns, egress_policy, egress_proxy};

/// Bytes of console output that are kept; replaced by U+FFFD, a byte takes three.
const TAIL_BYTES: usize = 16 << 10;

/// Runs `work` on a runtime of its own, whose tasks all end with it.
fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(work)
}

fn pair() -> (UnixStream, UnixStream) {
    UnixStream::pair().expect("a socket pair")
}

/// Sends `bytes` and hangs up, while it reads away what the other end says.
async fn say(guest: UnixStream, bytes: Vec<u8>) {
    let (mut reader, mut writer) = guest.into_split();
    let drain = async { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await };
    let send = async move {
        let _ = writer.write_all(&bytes).await;
        let _ = writer.shutdown().await;
    };
    let _ = tokio::join!(drain, send);
}

/// Text that may go to a terminal or a log.
fn check_text(text: &str) {
    assert!(text.chars().all(is_printable), "{text:?}");
    assert!(text.len() < 64 << 10, "{} bytes of text", text.len());
}

fn hello() -> Hello {
    Hello {
        protocol: PROTOCOL_VERSION,
        session: "fuzz".into(),
        hostname: "fuzz".into(),
        machine_id: [1; 16],
        boot_id: [2; 16],
        wall_clock_ns: 0,
        entropy: Entropy::new([3; 64]),
    }
}

fn good_ack() -> Vec<u8> {
    HelloAck { protocol: PROTOCOL_VERSION, agent: "fuzz".into(), open: true, errors: Vec::new() }
        .encode()
}

/// Lines of QMP from a VMM that was taken over: to commands, a wait for events, and a command whose
/// answer has content.
pub fn qmp(bytes: &[u8]) {
    run(async {
        let (ours, theirs) = pair();
        let talk = async {
            let mut client = QmpClient::new(ours);
            let mut errors = vec![
                client.execute(schema::Negotiate {}).await.err(),
                client.execute(schema::QueryMigrate {}).await.err(),
                client.wait_event::<schema::Migration>().await.err(),
            ];
            // Nothing keeps this one from its end but the end of the bytes.
            errors.push(loop {
                match client.wait_event::<schema::Stopped>().await {
                    Ok(_) => {}
                    Err(error @ (QmpError::Closed { .. } | QmpError::Io { .. })) => {
                        break Some(error);
                    }
                    // What came before it stays in order.
                    Err(error) => check_text(&error.to_string()),
                }
            });
            errors.into_iter().flatten().for_each(|error| check_text(&error.to_string()));
        };
        tokio::join!(talk, say(theirs, bytes.to_vec()));
    });
}

/// Sends a guest's bytes instead of the acknowledgement; then instead of yamux, behind a good one.
pub fn channel_bytes(bytes: &[u8]) {
    run(async {
        for (prefix, bytes) in [
            (Vec::new(), bytes.to_vec()),
            (
                Vec::new(),
                encode_handshake(
                    &ACK_MAGIC,
                    &bytes[..bytes.len().min(mayfly_protocol::MAX_HANDSHAKE)],
                ),
            ),
            (good_ack(), bytes.to_vec()),
        ] {
            let (host, guest) = pair();
            let acknowledged = !prefix.is_empty();
            let talk = async {
                match Channel::open(host, &hello()).await {
                    Ok((channel, _)) => {
                        if let Err(error) = channel.health().await {
                            check_text(&error.to_string());
                        }
                        if let Err(error) = channel.park().await {
                            check_text(&error.to_string());
                        }
                    }
                    Err(error) => check_text(&error.to_string()),
                }
            };
            let play = async {
                if !acknowledged {
                    return say(guest, bytes).await;
                }
                // What follows the acknowledgement must follow the first request.
                let mut guest = guest;
                let mut buffer = [0; 4096];
                let _ = guest.read(&mut buffer).await;
                let _ = guest.write_all(&prefix).await;
                let _ = guest.read(&mut buffer).await;
                say(guest, bytes).await;
            };
            tokio::join!(talk, play);
        }
    });
}

/// Makes a request of the engine, picked by the first byte, with the rest as the answer on its
/// stream: once as it is, and once in one frame that follows a good beginning.
pub fn channel_answers(bytes: &[u8]) {
    let Some((&pick, rest)) = bytes.split_first() else { return };
    let framed = |payload: &[u8]| {
        [&u32::try_from(payload.len()).expect("a short input").to_le_bytes(), payload].concat()
    };
    let granted = encode_frame(&Reply::<()>::Ok(())).expect("a reply");
    for answer in [
        rest.to_vec(),
        framed(rest),
        [granted.clone(), rest.to_vec()].concat(),
        [granted, framed(rest)].concat(),
    ] {
        run(async {
            let (host, guest) = pair();
            tokio::select! {
                () = ask(pick, host) => {}
                () = answer_all(guest, answer) => {}
            }
        });
    }
}

async fn answer_all(mut guest: UnixStream, answer: Vec<u8>) {
    let mut buffer = [0; 4096];
    let _ = guest.read(&mut buffer).await;
    let _ = guest.write_all(&good_ack()).await;
    // yamux speaks first, and nothing may follow the acknowledgement before the first request.
    let _ = guest.readable().await;
    let mut mux = Mux::new(guest.compat(), Mode::Server);
    let answer = &answer;
    let mut streams = futures::stream::FuturesUnordered::new();
    loop {
        use futures::StreamExt;
        tokio::select! {
            stream = mux.next_inbound() => {
                let Some(Ok(stream)) = stream else { return };
                streams.push(async move {
                    let mut reader = FrameReader::new(stream);
                    let _ = reader.next_as::<Request>().await;
                    let _ = futures::io::AsyncWriteExt::write_all(reader.get_mut(), answer).await;
                    let _ = futures::io::AsyncWriteExt::close(reader.get_mut()).await;
                    while let Ok(Some(_)) = reader.next().await {}
                });
            }
            Some(()) = streams.next() => {}
        }
    }
}

async fn ask(pick: u8, host: UnixStream) {
    let (channel, _) = Channel::open(host, &hello()).await.expect("a good acknowledgement");
    let outcome: Result<(), ChannelError> = match pick % 16 {
        0 => channel.list("/").await.map(|listed| {
            assert!(listed.entries.iter().all(|entry| is_file_name(entry.name.as_bytes())));
        }),
        1 => channel.stat("/").await.map(drop),
        2 => watch(&channel).await,
        3 => async { channel.exec(ExecRequest::new(["x"])).await?.output().await.map(drop) }.await,
        4 => {
            async {
                channel
                    .exec(ExecRequest::new(["x"]))
                    .await?
                    .output_with_stdin(&[0; 70_000])
                    .await
                    .map(drop)
            }
            .await
        }
        5 => channel
            .read_file_range_to("/x", 0, 1000, &mut tokio::io::sink())
            .await
            .map(|count| assert!(count <= 1000)),
        6 => channel
            .pack_tar("/x", &mut tokio::io::sink(), 1000)
            .await
            .map(|count| assert!(count <= 1000)),
        7 => channel.health().await.map(drop),
        8 => channel.stats().await.map(drop),
        9 => docker::ping(&channel).await,
        10 => channel.write_file("/x", 0o600, &[1; 70_000]).await,
        11 => queries(&channel).await,
        12 => clients(&channel).await,
        13 => flush(&channel).await,
        14 => list(&channel).await,
        _ => {
            let options = StatOptions { follow: true, xattrs: true };
            channel.stat_with("/", options).await.map(drop)
        }
    };
    if let Err(error) = outcome {
        check_text(&error.to_string());
    }
}

/// What is asked of DNS, up to what is no query.
async fn queries(channel: &Channel) -> Result<(), ChannelError> {
    let mut egress = channel.open_egress().await?;
    loop {
        let query = egress.queries.next().await?;
        assert!(query.message.len() <= MAX_DNS_MESSAGE);
        egress.answers.send(&query).await?;
    }
}

/// A client of the proxy port, which is taken as soon as there is one.
async fn clients(channel: &Channel) -> Result<(), ChannelError> {
    let mut client = channel.open_egress().await?.clients.accept().await?;
    // Raw bytes: whatever they are, they end.
    let _ = tokio::io::copy(&mut client, &mut tokio::io::sink()).await;
    Ok(())
}

async fn watch(channel: &Channel) -> Result<(), ChannelError> {
    let mut watch = channel.watch("/x", true).await?;
    while let Some(event) = watch.next().await? {
        assert!(event.is_contained(), "{event:?}");
    }
    Ok(())
}

async fn flush(channel: &Channel) -> Result<(), ChannelError> {
    let mut watch = channel.watch("/x", true).await?;
    loop {
        let flushed = watch.flush().await?;
        assert!(flushed.events.iter().all(WatchEvent::is_contained), "{flushed:?}");
        if flushed.ended {
            return Ok(());
        }
    }
}

async fn list(channel: &Channel) -> Result<(), ChannelError> {
    let stat = Some(StatOptions { follow: true, xattrs: true });
    let listed = channel.list_with("/", ListOptions { depth: 2, stat }).await?;
    for entry in &listed.entries {
        let parts: Vec<_> = entry.name.as_bytes().split(|byte| *byte == b'/').collect();
        assert!(parts.len() <= 2 && parts.into_iter().all(is_file_name), "{entry:?}");
    }
    Ok(())
}

/// Unpacks an archive from a guest, below a folder that is there and below one that is not.
/// Checksums of headers are put right, so that what follows them is met.
pub fn tar(bytes: &[u8]) {
    let mut right = bytes.to_vec();
    for block in right.chunks_exact_mut(512) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    let dir = tempfile::tempdir().expect("a folder");
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).expect("a folder");
    fs::write(outside.join("file"), "as it was").expect("a file");
    let before = look(&outside);
    for (number, archive) in [bytes, &right].into_iter().enumerate() {
        let there = dir.path().join(format!("there{number}"));
        fs::create_dir(&there).expect("a folder");
        // What the user has there already, beside the copy.
        fs::create_dir(there.join("own")).expect("a folder");
        fs::write(there.join("own/file"), "as it was").expect("a file");
        let own = look(&there.join("own"));
        for to in [there.clone(), dir.path().join(format!("new{number}"))] {
            let landing = Landing::prepare(&to).expect("a place to land");
            match landing.unpack(archive, OsStr::new("x")) {
                Ok(()) => drop(landing.settle(OsStr::new("x"))),
                Err(error) => check_text(&error.to_string()),
            }
        }
        assert_eq!(look(&outside), before, "it was written outside");
        assert_eq!(look(&there.join("own")), own, "it was written beside the copy");
        for entry in fs::read_dir(&there).expect("the folder").flatten() {
            assert!(["own", "x"].contains(&&*entry.file_name().to_string_lossy()), "{entry:?}");
        }
        for entry in fs::read_dir(dir.path()).expect("the folder").flatten() {
            let name = entry.file_name().into_string().expect("a name of ours");
            assert!(
                ["outside", "there0", "there1", "new0", "new1"].contains(&name.as_str()),
                "{name} appeared"
            );
        }
    }
    check_modes(dir.path());
}

/// Nothing that runs with another's rights, and no device.
fn check_modes(dir: &Path) {
    let mut waiting = vec![dir.to_owned()];
    while let Some(path) = waiting.pop() {
        let metadata = fs::symlink_metadata(&path).expect("a file that was just listed");
        let kind = metadata.file_type();
        assert!(kind.is_dir() || kind.is_file() || kind.is_symlink(), "{path:?} is {kind:?}");
        assert!(
            kind.is_symlink() || metadata.mode() & 0o7000 == 0,
            "{path:?} has mode {:o}",
            metadata.mode()
        );
        if kind.is_dir() {
            waiting.extend(
                fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()),
            );
        }
    }
}

/// All that can be changed of a folder with one file.
fn look(dir: &Path) -> Vec<(u64, u32, i64, i64, Vec<u8>)> {
    let of = |path: &Path| {
        let m = fs::symlink_metadata(path).expect("a file of ours");
        (m.nlink(), m.mode(), m.mtime(), m.mtime_nsec(), fs::read(path).unwrap_or_default())
    };
    vec![of(dir), of(&dir.join("file"))]
}

/// Follows what a guest prints on its console.
pub fn console(bytes: &[u8]) {
    run(async {
        let (ours, theirs) = pair();
        let tail = ConsoleTail::follow(ours);
        say(theirs, bytes.to_vec()).await;
        tokio::task::yield_now().await;
        for lines in [0, 1, 8, usize::MAX] {
            let text = tail.last_lines(lines);
            assert!(text.chars().all(|c| !c.is_control() || c == '\t' || c == '\n'), "{text:?}");
            assert!(text.len() <= 3 * TAIL_BYTES, "{} bytes of text", text.len());
            assert!(text.lines().count() <= lines);
        }
    });
}
