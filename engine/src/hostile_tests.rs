//! The entry points of the fuzz targets in `engine/fuzz`, with bytes that are made by rule.

#[path = "../fuzz/src/hostile.rs"]
mod drive;

use mayfly_protocol::{
    ByteString, DirEntry, ExecOutput, FileChunk, FileKind, GuestError, Metadata, Reply, WatchEvent, WatchKind,
    encode_frame,
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
            let entries = names.into_iter().map(|name| DirEntry { name, kind: FileKind::File });
            encode_frame(&Reply::Ok(entries.collect::<Vec<_>>())).unwrap()
        }),
        (names(), proptest::option::of(names())).prop_map(|(path, from)| {
            let kind = if from.is_some() { WatchKind::Renamed } else { WatchKind::Created };
            encode_frame(&Reply::Ok(vec![WatchEvent { kind, path, from }])).unwrap()
        }),
        text().prop_map(|message| encode_frame(&Reply::<()>::Err(GuestError { errno: 5, message })).unwrap()),
        noise(80).prop_map(|bytes| encode_frame(&FileChunk::Data(bytes)).unwrap()),
        Just(encode_frame(&FileChunk::End).unwrap()),
        any::<u32>().prop_map(|pid| encode_frame(&ExecOutput::Started { pid }).unwrap()),
        any::<u32>().prop_map(|count| encode_frame(&ExecOutput::StdinConsumed(count)).unwrap()),
        noise(80).prop_map(|bytes| encode_frame(&ExecOutput::Stdout(bytes)).unwrap()),
        text().prop_map(|message| encode_frame(&ExecOutput::Failed(GuestError { errno: 0, message })).unwrap()),
        (any::<u64>(), any::<i64>()).prop_map(|(size, mtime_ns)| {
            let metadata =
                Metadata { kind: FileKind::Symlink, size, mode: 0, uid: 0, gid: 0, mtime_ns, target: Some("/".into()) };
            encode_frame(&Reply::Ok(metadata)).unwrap()
        }),
        Just(b"HTTP/1.1 \x1b[2Jx\r\n".to_vec()),
        noise(20),
    ];
    (any::<u8>(), vec(frame, 0..8)).prop_map(|(pick, frames)| [vec![pick], frames.concat()].concat())
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
    let entry = (path.clone(), path, prop::sample::select(kinds.to_vec()), any::<u16>(), 0..700usize);
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn qmp_is_bounded_and_printable(lines in prop_oneof![qmp_lines(), noise(2000)]) {
        drive::qmp(&lines);
    }

    #[test]
    fn channel_bytes_end_in_an_error(bytes in noise(3000)) {
        drive::channel_bytes(&bytes);
    }

    #[test]
    fn answers_end_in_an_error_or_a_checked_value(bytes in prop_oneof![frames(), noise(400)]) {
        drive::channel_answers(&bytes);
    }

    #[test]
    fn an_archive_stays_where_it_belongs(bytes in archives()) {
        drive::tar(&bytes);
    }

    #[test]
    fn a_console_is_bounded_and_printable(bytes in noise(40_000)) {
        drive::console(&bytes);
    }
}
