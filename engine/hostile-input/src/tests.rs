//! The entry points of the fuzz targets in `engine/fuzz`, with bytes that are made by rule.

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use mayfly_protocol::{
    ByteString, DirEntry, DnsMessage, ExecOutput, FileChunk, FileKind, GuestError, Metadata, Reply,
    StartFailure, WatchEvent, WatchKind, WatchOutput, encode_frame,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// Bytes of no shape.
fn noise(length: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..length)
}

/// Lines that are almost QMP.
fn qmp_lines() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        Just("STOP".to_owned()),
        Just("MIGRATION".to_owned()),
        Just("completed".to_owned()),
        any::<String>(),
    ];
    let line = (word.clone(), word, any::<u64>(), 0..7u8).prop_map(|(a, b, id, shape)| {
        let id = id % 4;
        let value = match shape {
            0 => serde_json::json!({ "event": a, "data": { "status": b } }),
            1 => serde_json::json!({ "return": {}, "id": id }),
            2 => serde_json::json!({ "return": { "status": b, "error-desc": a }, "id": id }),
            3 => serde_json::json!({ "error": { "class": a, "desc": b }, "id": id }),
            4 => serde_json::json!({ "event": a }),
            5 => serde_json::json!({ "QMP": [a, b] }),
            _ => serde_json::json!([a, b, id]),
        };
        format!("{value}\n").into_bytes()
    });
    vec(prop_oneof![9 => line, 1 => noise(40)], 0..30).prop_map(|lines| lines.concat())
}

fn names() -> impl Strategy<Value = ByteString> {
    let name = prop_oneof![
        Just(b"..".to_vec()),
        Just(b"a/b".to_vec()),
        Just(b"\x1b[2J".to_vec()),
        Just(b"/".to_vec()),
        noise(12),
    ];
    name.prop_map(ByteString::from)
}

/// Frames that an agent could send, at the wrong time and with the wrong content.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let text = || prop_oneof![Just("\u{1b}]0;x\u{7}\u{202e}".to_owned()), any::<String>()];
    let frame = prop_oneof![
        vec(names(), 0..4).prop_map(|names| {
            let entries = names.into_iter().map(|name| DirEntry::new(name, FileKind::File));
            encode_frame(&Reply::Ok(entries.collect::<Vec<_>>())).unwrap()
        }),
        (names(), proptest::option::of(names())).prop_map(|(path, from)| {
            let kind = if from.is_some() { WatchKind::Renamed } else { WatchKind::Created };
            let event = WatchEvent { from, ..WatchEvent::new(kind, path) };
            encode_frame(&WatchOutput::Events(vec![event])).unwrap()
        }),
        text().prop_map(|message| encode_frame(&Reply::<()>::Err(GuestError {
            errno: 5,
            message
        }))
        .unwrap()),
        noise(80).prop_map(|bytes| encode_frame(&FileChunk::Data(bytes)).unwrap()),
        Just(encode_frame(&FileChunk::End).unwrap()),
        any::<u32>().prop_map(|pid| encode_frame(&ExecOutput::Started { pid }).unwrap()),
        any::<u32>().prop_map(|count| encode_frame(&ExecOutput::StdinConsumed(count)).unwrap()),
        noise(80).prop_map(|bytes| encode_frame(&ExecOutput::Stdout(bytes)).unwrap()),
        text().prop_map(|message| encode_frame(&ExecOutput::NotStarted {
            kind: StartFailure::NoProgram,
            error: GuestError { errno: 2, message },
        })
        .unwrap()),
        text().prop_map(|message| encode_frame(&ExecOutput::Failed(GuestError {
            errno: 0,
            message
        }))
        .unwrap()),
        (any::<u64>(), any::<i64>()).prop_map(|(size, mtime_ns)| {
            let metadata = Metadata {
                size,
                mtime_ns,
                target: Some("/".into()),
                ..Metadata::new("/x", FileKind::Symlink)
            };
            encode_frame(&Reply::Ok(metadata)).unwrap()
        }),
        Just(b"HTTP/1.1 \x1b[2Jx\r\n".to_vec()),
        noise(20),
    ];
    (any::<u8>(), vec(frame, 0..8))
        .prop_map(|(pick, frames)| [vec![pick], frames.concat()].concat())
}

/// Entries of an archive with the names, links and kinds of attacks.
fn archives() -> impl Strategy<Value = Vec<u8>> {
    let path = prop_oneof![
        Just("x"),
        Just("x/a"),
        Just("x/a/b"),
        Just("x/../../outside/file"),
        Just("../outside/file"),
        Just("/etc/passwd"),
        Just("x/a/../../../outside"),
        Just("../../outside"),
        Just("../outside/file"),
        Just("."),
        Just(""),
        Just("x/\u{1b}[2J"),
    ];
    let kinds = *b"01234567LKxgS5522";
    let entry =
        (path.clone(), path, prop::sample::select(kinds.to_vec()), any::<u16>(), 0..700usize);
    vec(entry, 0..8).prop_map(|entries| {
        let mut archive = Vec::new();
        for (name, link, kind, mode, length) in entries {
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
            header.set_entry_type(tar::EntryType::new(kind));
            header.set_mode(u32::from(mode) & 0o7777);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(1);
            header.set_size(length as u64);
            header.set_cksum();
            archive.extend_from_slice(header.as_bytes());
            // A long name or an extension has another attack in it.
            let content = [b"../outside/file\0 20 path=../x\n".as_slice(), &[0; 700]].concat();
            archive.extend_from_slice(&content[..length]);
            archive.resize(archive.len().next_multiple_of(512), 0);
        }
        archive.resize(archive.len() + 1024, 0);
        archive
    })
}

/// Queries, some with a few bytes changed.
fn dns_messages() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        Just("localhost."),
        Just("LocalHost."),
        Just("127.0.0.1."),
        Just("a.example."),
        Just(".")
    ];
    let kind = prop::sample::select(vec![
        RecordType::A,
        RecordType::AAAA,
        RecordType::TXT,
        RecordType::ANY,
    ]);
    let changes = vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    (name, kind, 0..3usize, any::<u16>(), changes).prop_map(|(name, kind, count, id, changes)| {
        let mut message = Message::query();
        message.metadata.id = id;
        for _ in 0..count {
            message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        }
        let mut message = message.to_vec().unwrap();
        for (at, byte) in changes {
            let at = at.index(message.len());
            message[at] = byte;
        }
        message
    })
}

/// What a client says to a proxy.
fn proxy_requests() -> impl Strategy<Value = Vec<u8>> {
    let method = prop::sample::select(vec!["GET", "CONNECT", "POST", "HEAD", "OPTIONS", "X"]);
    let host = || {
        prop::sample::select(vec![
            "localhost",
            "127.0.0.1:80",
            "[::1]:8080",
            "a.example:443",
            "u@localhost",
            "",
        ])
    };
    let scheme = prop::sample::select(vec!["", "http://", "https://", "/"]);
    let rest = prop::sample::select(vec![
        "",
        "Connection: close\r\n",
        "Content-Length: 3\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Expect: 100-continue\r\nContent-Length: 1\r\n",
        "Upgrade: x\r\nConnection: upgrade\r\n",
        "\u{1b}: x\r\n",
    ]);
    let request =
        (method, scheme, host(), host(), rest).prop_map(|(method, scheme, to, host, rest)| {
            format!("{method} {scheme}{to} HTTP/1.1\r\nHost: {host}\r\n{rest}\r\n").into_bytes()
        });
    vec(prop_oneof![9 => request, 1 => noise(30)], 0..6).prop_map(|requests| requests.concat())
}

/// Hosts, URLs and entries of a policy, almost.
fn names_and_entries() -> impl Strategy<Value = Vec<u8>> {
    let part = "[a-zA-Z0-9.:*@_%/\\[\\]-]{0,12}|\\*\\.[a-z]{1,2}\\.[a-z]{1,2}|[a-z]\\.[a-z]\\.[a-z]:8080|\\[::[0-9a-f]{1,4}\\]:80";
    vec(part, 0..12).prop_map(|lines| lines.join("\n").into_bytes())
}

/// What an agent passes on, and how much of it.
fn agents() -> impl Strategy<Value = Vec<u8>> {
    let frame = (any::<u32>(), dns_messages())
        .prop_map(|(tag, message)| encode_frame(&DnsMessage { tag, message }).unwrap());
    let frames =
        vec(prop_oneof![9 => frame, 1 => noise(20)], 0..6).prop_map(|frames| frames.concat());
    let names = prop_oneof![
        frames.prop_map(|frames| (1u8, frames)),
        dns_messages().prop_map(|message| (2, message))
    ];
    (names, any::<bool>(), any::<u8>(), proxy_requests()).prop_map(
        |((pick, names), is_taken, cut, client)| {
            let pick = if is_taken { pick } else { pick | 4 };
            [vec![pick, cut], names, client].concat()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn qmp_is_bounded_and_printable(lines in prop_oneof![qmp_lines(), noise(2000)]) {
        crate::qmp(&lines);
    }

    #[test]
    fn channel_bytes_end_in_an_error(bytes in noise(3000)) {
        crate::channel_bytes(&bytes);
    }

    #[test]
    fn answers_end_in_an_error_or_a_checked_value(bytes in prop_oneof![frames(), noise(400)]) {
        crate::channel_answers(&bytes);
    }

    #[test]
    #[ignore = "needs root"]
    fn an_archive_stays_where_it_belongs(bytes in archives()) {
        crate::tar(&bytes);
    }

    #[test]
    fn a_console_is_bounded_and_printable(bytes in noise(40_000)) {
        crate::console(&bytes);
    }

    #[test]
    fn a_dns_message_has_its_answer_and_no_forbidden_address(message in prop_oneof![dns_messages(), noise(600)]) {
        crate::egress_dns(&message);
    }

    #[test]
    fn a_proxy_client_is_refused_in_plain_words(is_taken in any::<bool>(), bytes in prop_oneof![proxy_requests(), noise(600)]) {
        crate::egress_proxy(&[vec![u8::from(is_taken)], bytes].concat());
    }

    #[test]
    fn a_policy_allows_what_it_names(lines in prop_oneof![names_and_entries(), noise(200)]) {
        crate::egress_policy(&lines);
    }

    #[test]
    fn an_agent_gets_nothing_out(bytes in prop_oneof![agents(), noise(400)]) {
        crate::egress_agent(&bytes);
    }
}
