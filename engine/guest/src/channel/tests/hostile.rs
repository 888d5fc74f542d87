//! A guest that sends whatever it likes. Every exchange must end in an error, not in a panic and
//! not in a wait for ever.

use std::sync::Arc;

use super::{good_ack, hello};
use crate::channel::{Channel, ChannelError, ExecRequest};
use crate::egress::fuzzing::InThisProcess;
use crate::egress::{Egress, EgressAccount, Policy};
use mayfly_protocol::{
    DirEntry, DnsMessage, EgressPorts, ExecOutput, ExitStatus, FileChunk, FileKind, FrameReader,
    GuestError, HelloAck, MAX_CHUNK, MAX_DNS_MESSAGE, MAX_FRAME, MAX_REQUEST, MAX_WATCH_BATCH,
    Mode, Mux, MuxStream, PROTOCOL_VERSION, Reply, Request, WatchEvent, WatchKind, WatchOutput,
    encode_frame,
};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::compat::TokioAsyncReadCompatExt;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Plays `bytes` as the guest, after `prefix`, reading and ignoring what the host sends; then hangs
/// up.
fn play(prefix: Vec<u8>, bytes: Vec<u8>) -> UnixStream {
    let (host, guest) = UnixStream::pair().unwrap();
    tokio::spawn(async move {
        let (mut reader, mut writer) = guest.into_split();
        let drain =
            tokio::spawn(async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await });
        let _ = writer.write_all(&prefix).await;
        let _ = writer.write_all(&bytes).await;
        drop(writer);
        let _ = drain.await;
    });
    host
}

/// A guest that speaks yamux properly and answers every request with `script`.
pub(super) fn scripted(script: impl Fn(Request) -> Vec<u8> + Send + Sync + 'static) -> UnixStream {
    scripted_in_pieces(usize::MAX, script)
}

/// As [`scripted`], with a yamux frame for each `length` bytes of an answer.
fn scripted_in_pieces(
    length: usize,
    script: impl Fn(Request) -> Vec<u8> + Send + Sync + 'static,
) -> UnixStream {
    let (host, mut guest) = UnixStream::pair().unwrap();
    tokio::spawn(async move {
        let mut greeting = [0; 16];
        guest.read_exact(&mut greeting).await.unwrap();
        let mut rest = vec![0; 4096];
        let _ = guest.read(&mut rest).await.unwrap();
        guest.write_all(&good_ack()).await.unwrap();
        guest.readable().await.unwrap();
        let mut mux = Mux::new(guest.compat(), Mode::Server);
        let script = Arc::new(script);
        while let Some(Ok(stream)) = mux.next_inbound().await {
            let script = Arc::clone(&script);
            tokio::spawn(async move {
                let mut reader = FrameReader::new(stream);
                let Ok(Some(request)) = reader.next_as::<Request>().await else { return };
                let answer = script(request);
                let stream: &mut MuxStream = reader.get_mut();
                for piece in answer.chunks(length) {
                    let _ = futures::io::AsyncWriteExt::write_all(stream, piece).await;
                }
                // Stays open until the host has had enough.
                while let Ok(Some(_)) = reader.next().await {}
            });
        }
    });
    host
}

pub(super) async fn open(stream: UnixStream) -> Channel {
    Channel::open(stream, &hello("h")).await.unwrap().0
}

pub(super) fn is_protocol(error: &ChannelError) -> bool {
    matches!(error, ChannelError::Protocol { .. })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn noise_instead_of_an_acknowledgement(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
        runtime().block_on(async {
            let error = Channel::open(play(Vec::new(), bytes), &hello("h")).await.unwrap_err();
            prop_assert!(!error.to_string().is_empty());
            Ok(())
        })?;
    }

    #[test]
    fn noise_in_the_acknowledgement(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
        runtime().block_on(async {
            let message = mayfly_protocol::encode_handshake(&mayfly_protocol::ACK_MAGIC, &payload);
            if HelloAck::decode(&payload).is_err() {
                prop_assert!(Channel::open(play(message, Vec::new()), &hello("h")).await.is_err());
            }
            Ok(())
        })?;
    }

    #[test]
    fn noise_instead_of_yamux(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
        runtime().block_on(async {
            let (host, guest) = UnixStream::pair().unwrap();
            let (mut reader, mut writer) = guest.into_split();
            let guest = tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = reader.read(&mut request).await;
                let _ = writer.write_all(&good_ack()).await;
                let _ = reader.read(&mut request).await;
                let _ = writer.write_all(&bytes).await;
                drop(writer);
                let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
            });
            let (channel, _) = Channel::open(host, &hello("h")).await.unwrap();
            let error = channel.health().await.unwrap_err();
            prop_assert!(matches!(error, ChannelError::Closed { .. } | ChannelError::Protocol { .. } | ChannelError::Io(_)), "{error}");
            drop(channel);
            guest.await.unwrap();
            Ok(())
        })?;
    }

    #[test]
    fn noise_as_the_answer_to_a_request(bytes in proptest::collection::vec(any::<u8>(), 4..300)) {
        runtime().block_on(async {
            // A frame with these bytes, so that the decoder of the answer sees them.
            let mut frame = u32::try_from(bytes.len()).unwrap().to_le_bytes().to_vec();
            frame.extend(bytes);
            frame.extend([0xff; 4]);
            let channel = open(scripted(move |_| frame.clone())).await;
            // What the noise happens to mean is the guest's business; that it ends is ours.
            let _ = channel.stat("/x").await;
            let _ = channel.list("/x").await;
            let _ = channel.read_file("/x").await;
            let _ = channel.stats().await;
            let _ = channel.pack_tar("/x", &mut tokio::io::sink(), 1000).await;
            let _ = channel.unpack_tar("/x", &mut &b"x"[..]).await;
            if let Ok(mut watch) = channel.watch("/x", true).await {
                while let Ok(Some(event)) = watch.next().await {
                    assert!(event.is_contained());
                }
            }
            if let Ok(command) = channel.exec(ExecRequest::new(["x"])).await {
                let _ = command.output().await;
            }
        });
    }
}

#[tokio::test]
async fn bytes_behind_the_acknowledgement_are_refused() {
    let error = Channel::open(play(good_ack(), b"more".to_vec()), &hello("h")).await;
    // The extra bytes may come with a later read, where they are not yamux.
    match error {
        Err(error) => assert!(is_protocol(&error), "{error}"),
        Ok((channel, _)) => {
            channel.health().await.unwrap_err();
        }
    }
}

#[tokio::test]
async fn an_endless_preamble_is_given_up() {
    let (host, guest) = UnixStream::pair().unwrap();
    tokio::spawn(async move {
        let (_reader, mut writer) = guest.into_split();
        while writer.write_all(&[0; 65536]).await.is_ok() {}
    });
    assert!(is_protocol(&Channel::open(host, &hello("h")).await.unwrap_err()));
}

#[tokio::test]
async fn another_version_and_a_refusal_are_told_apart() {
    let other = HelloAck {
        protocol: PROTOCOL_VERSION + 1,
        agent: "x".into(),
        open: true,
        errors: Vec::new(),
    };
    let error = Channel::open(play(other.encode(), Vec::new()), &hello("h")).await.unwrap_err();
    assert!(error.to_string().contains("rebuild the golden image"), "{error}");
    let refusal =
        mayfly_protocol::ApplyError { step: "hello".into(), errno: 0, message: "no".into() };
    let ack = HelloAck {
        protocol: PROTOCOL_VERSION,
        agent: "x".into(),
        open: false,
        errors: vec![refusal],
    };
    let error = Channel::open(play(ack.encode(), Vec::new()), &hello("h")).await.unwrap_err();
    assert!(matches!(error, ChannelError::Refused { .. }), "{error}");
}

#[tokio::test]
async fn a_stream_opened_by_the_guest_ends_the_channel() {
    let (host, mut guest) = UnixStream::pair().unwrap();
    tokio::spawn(async move {
        let mut hello = [0; 4096];
        let _ = guest.read(&mut hello).await.unwrap();
        guest.write_all(&good_ack()).await.unwrap();
        guest.readable().await.unwrap();
        let mut mux = Mux::new(guest.compat(), Mode::Server);
        let mut mine = std::future::poll_fn(|cx| mux.poll_outbound(cx)).await.unwrap();
        futures::io::AsyncWriteExt::write_all(&mut mine, b"hello host").await.unwrap();
        while let Some(Ok(_)) = mux.next_inbound().await {}
    });
    let channel = open(host).await;
    let error = channel.health().await.unwrap_err();
    assert!(error.to_string().contains("opened a stream"), "{error}");
}

#[tokio::test]
async fn a_frame_without_end_is_refused_by_its_length() {
    let channel =
        open(scripted(|_| u32::try_from(MAX_FRAME + 1).unwrap().to_le_bytes().to_vec())).await;
    assert!(is_protocol(&channel.health().await.unwrap_err()));
}

#[tokio::test]
async fn exec_frames_out_of_order_are_refused() {
    let frames = |list: &[ExecOutput]| {
        list.iter().flat_map(|frame| encode_frame(frame).unwrap()).collect::<Vec<u8>>()
    };
    let started = ExecOutput::Started { pid: 1 };
    for second in
        [started.clone(), ExecOutput::StdinConsumed(1), ExecOutput::StdinConsumed(u32::MAX)]
    {
        let script = frames(&[started.clone(), second]);
        let channel = open(scripted(move |_| script.clone())).await;
        let mut command = channel.exec(ExecRequest::new(["x"])).await.unwrap();
        assert!(is_protocol(&command.recv().await.unwrap_err()));
        assert_eq!(command.recv().await.unwrap(), None);
    }
    let script = frames(&[ExecOutput::Exit(ExitStatus::Code(0))]);
    let channel = open(scripted(move |_| script.clone())).await;
    assert!(is_protocol(&channel.exec(ExecRequest::new(["x"])).await.unwrap_err()));
}

#[tokio::test]
async fn endless_answers_are_cut() {
    let metadata = mayfly_protocol::Metadata {
        size: 1,
        ..mayfly_protocol::Metadata::new("/x", FileKind::File)
    };
    let mut file = encode_frame(&Reply::Ok(metadata)).unwrap();
    let chunk = encode_frame(&FileChunk::Data(vec![0; MAX_CHUNK])).unwrap();
    file.extend(chunk.repeat(1030));
    let channel = open(scripted(move |_| file.clone())).await;
    let error = channel.read_file("/x").await.unwrap_err();
    assert!(matches!(error, ChannelError::TooLong { .. }), "{error}");
    let mut to = Vec::new();
    assert!(is_protocol(&channel.read_file_to("/x", 10, &mut to).await.unwrap_err()));
    assert!(to.is_empty());
}

#[tokio::test]
async fn pieces_that_are_empty_or_too_long_are_refused() {
    for length in [0, MAX_CHUNK + 1] {
        let mut frames = encode_frame(&Reply::Ok(())).unwrap();
        frames.extend(encode_frame(&FileChunk::Data(vec![0; length])).unwrap().repeat(10));
        let channel = open(scripted(move |_| frames.clone())).await;
        let error = channel.pack_tar("/x", &mut tokio::io::sink(), u64::MAX).await.unwrap_err();
        assert!(is_protocol(&error), "{length}: {error}");
    }
}

#[tokio::test]
async fn a_listing_of_endless_names_is_cut() {
    let entry = DirEntry::new(vec![b'x'; 1_000_000], FileKind::File);
    let frames = encode_frame(&Reply::Ok(vec![entry])).unwrap().repeat(70);
    let channel = open(scripted(move |_| frames.clone())).await;
    let error = channel.list("/x").await.unwrap_err();
    assert!(
        matches!(error, ChannelError::TooLong { what: "names of directory entries", .. }),
        "{error}"
    );
}

#[tokio::test]
async fn words_of_a_guest_cannot_steer_a_terminal() {
    let refusal = GuestError { errno: 2, message: "\x1b]0;title\x07 no such file".into() };
    let frame = encode_frame(&Reply::<()>::Err(refusal)).unwrap();
    let channel = open(scripted(move |_| frame.clone())).await;
    let error = channel.stat("/x").await.unwrap_err().to_string();
    assert_eq!(error, "guest: \\u{1b}]0;title\\u{7} no such file");
}

#[tokio::test]
async fn an_answer_in_tiny_pieces_comes_whole() {
    for length in [1, 7, 5000] {
        let bytes: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
        let mut frames = encode_frame(&Reply::Ok(())).unwrap();
        for chunk in bytes.chunks(MAX_CHUNK) {
            frames.extend(encode_frame(&FileChunk::Data(chunk.to_vec())).unwrap());
        }
        frames.extend(encode_frame(&FileChunk::End).unwrap());
        let channel = open(scripted_in_pieces(length, move |_| frames.clone())).await;
        // The first is not read before all have come, or as much as there is room for.
        let mut reader = channel.open_tar("/x", false, u64::MAX).await.unwrap();
        let mut to = Vec::new();
        channel.pack_tar("/x", &mut to, u64::MAX).await.unwrap();
        assert!(to == bytes);
        let mut late = Vec::new();
        while let Some(chunk) = reader.next_chunk().await.unwrap() {
            late.extend_from_slice(&chunk);
        }
        assert!(late == bytes);
    }
}

#[tokio::test]
async fn an_archive_without_end_is_cut_at_the_callers_limit() {
    let mut frames = encode_frame(&Reply::Ok(())).unwrap();
    frames.extend(encode_frame(&FileChunk::Data(vec![0; 50_000])).unwrap().repeat(100));
    let channel = open(scripted(move |_| frames.clone())).await;
    let mut to = Vec::new();
    let error = channel.pack_tar("/x", &mut to, 120_000).await.unwrap_err();
    assert!(matches!(error, ChannelError::TooLong { limit: 120_000, .. }), "{error}");
    assert_eq!(to.len(), 100_000);
    let mut reader = channel.open_tar("/x", false, 10).await.unwrap();
    reader.next_chunk().await.unwrap_err();
    assert_eq!(reader.next_chunk().await.unwrap(), None, "nothing follows an error");
}

#[tokio::test]
async fn events_outside_of_the_watched_path_are_refused() {
    let event = |kind, path: &str, from: Option<&str>| WatchEvent {
        from: from.map(Into::into),
        ..WatchEvent::new(kind, path)
    };
    let good = event(WatchKind::Renamed, "a/b", Some("c"));
    for bad in [
        vec![event(WatchKind::Created, "../x", None)],
        vec![good.clone(), event(WatchKind::Created, "/etc", None)],
        vec![event(WatchKind::Renamed, "a", Some("../../x"))],
        vec![event(WatchKind::Renamed, "a", None)],
        vec![event(WatchKind::Removed, "a", Some("b"))],
        vec![good.clone(); MAX_WATCH_BATCH + 1],
        vec![],
    ] {
        let mut frames = encode_frame(&Reply::Ok(())).unwrap();
        frames.extend(encode_frame(&WatchOutput::Events(vec![good.clone()])).unwrap());
        frames.extend(encode_frame(&WatchOutput::Events(bad.clone())).unwrap());
        let channel = open(scripted(move |_| frames.clone())).await;
        let mut watch = channel.watch("/x", true).await.unwrap();
        assert_eq!(watch.next().await.unwrap(), Some(good.clone()));
        assert!(is_protocol(&watch.next().await.unwrap_err()), "{bad:?}");
        assert_eq!(watch.next().await.unwrap(), None);
    }
}

#[tokio::test]
async fn names_that_lead_out_of_a_directory_are_refused() {
    for bad in ["..", ".", "", "a/b", "/etc/passwd", "nul\0"] {
        let entry = DirEntry::new(bad, FileKind::File);
        let script = encode_frame(&Reply::Ok(vec![entry])).unwrap();
        let channel = open(scripted(move |_| script.clone())).await;
        assert!(is_protocol(&channel.list("/x").await.unwrap_err()), "{bad:?}");
    }
}

#[tokio::test]
async fn a_request_beyond_the_limit_is_not_sent() {
    let channel = open(scripted(|_| Vec::new())).await;
    let error = channel.exec(ExecRequest::new(["x".repeat(MAX_REQUEST)])).await.unwrap_err();
    assert!(matches!(error, ChannelError::TooLong { .. }), "{error}");
}

fn with_egress(queries: &[u8], client: &[u8]) -> UnixStream {
    let (ports, ok) = (Reply::Ok(EgressPorts { proxy: 1, dns: 2 }), Reply::<()>::Ok(()));
    let egress = [encode_frame(&ports).unwrap(), queries.to_vec()].concat();
    let accept = [encode_frame(&ok).unwrap(), client.to_vec()].concat();
    scripted(move |request| match request {
        Request::Egress => egress.clone(),
        Request::EgressAccept => accept.clone(),
        other => panic!("{other:?}"),
    })
}

#[tokio::test]
async fn a_dns_query_beyond_the_limit() {
    for (length, fits) in [(MAX_DNS_MESSAGE, true), (MAX_DNS_MESSAGE + 1, false)] {
        let query = encode_frame(&DnsMessage { tag: 1, message: vec![0; length] }).unwrap();
        let channel = open(with_egress(&query, b"")).await;
        let mut egress = channel.open_egress().await.unwrap();
        match egress.queries.next().await {
            Ok(query) => assert!(fits && query.message.len() == length),
            Err(error) => assert!(!fits && is_protocol(&error), "{error}"),
        }
    }
}

#[tokio::test]
async fn a_flood_of_proxy_clients_with_noise() {
    let policy = || Policy::allow(["a.example"]).unwrap();
    let proxies = || Arc::new(InThisProcess::default());
    // Whole frames of something that is no HTTP, from clients that come as fast as they are taken.
    let client = [&300_u32.to_le_bytes()[..], &[0xff; 300], &0_u32.to_le_bytes()].concat();
    let channel = open(with_egress(b"", &client)).await;
    let egress =
        Egress::start(&channel, "h", policy(), EgressAccount::default(), proxies()).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(!egress.is_over());
    drop(egress);
    // And one whose queries are noise is cut off.
    let channel = open(with_egress(
        &[9, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        &client,
    ))
    .await;
    let egress =
        Egress::start(&channel, "h", policy(), EgressAccount::default(), proxies()).await.unwrap();
    while !egress.is_over() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}
