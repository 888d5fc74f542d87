//! The messages between the pager and its clients.
//!
//! A Unix socket of type `SOCK_SEQPACKET`, one JSON object a message. The client sends a
//! [`Request`] and gets a [`Message::Reply`] or a [`Message::Error`]. A connection that has
//! attached a session belongs to it: closing the connection detaches the session, and the pager
//! sends [`Message::Event`] on it at any time, also before the reply to a request. Descriptors come
//! with the reply to `attach` and `listen`: first the read-only RAM file when `ram_file` is true,
//! then the VMM's end of the handshake socket when `handshake` is true.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use nix::sys::socket::MsgFlags;
use serde::{Deserialize, Serialize};

use crate::{
    stats::{HostStats, SessionStats},
    wire,
};

/// Most bytes of one request.
pub const MAX_REQUEST: usize = 16 << 10;
/// Most bytes of one reply or event. Stays under the kernel's default socket buffer of 208 KiB.
pub const MAX_REPLY: usize = 160 << 10;
/// Most chunk indexes in one [`Reply::Recording`].
pub const RECORDING_PAGE: usize = 8192;

/// Way that pages get into the VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The VMM maps the page-cache file `MAP_PRIVATE`.
    #[default]
    Shared,
    /// The VMM registers anonymous memory; chunks are copied into it.
    Copy,
}

/// Request to attach a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// Name of the golden image, for the [`crate::SourceResolver`].
    pub golden: String,
    /// Way that pages get into the VMM.
    #[serde(default)]
    pub mode: Mode,
    /// Record the order in which chunks are touched first. The session gets a page cache of its
    /// own, empty at first, so that every first touch is seen.
    #[serde(default)]
    pub record: bool,
    /// Name of the session, for the log.
    #[serde(default)]
    pub session: String,
}

/// Request to attach a session for a VMM that connects to a socket path on its own (Firecracker's
/// `mem_backend.backend_path`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenRequest {
    /// Parameters as for `attach`.
    pub attach: AttachRequest,
    /// Path on which to listen. Must not exist; is removed once the VMM has connected or the
    /// session is detached.
    pub path: PathBuf,
    /// User who may connect, and who gets the socket file. Default: the pager's own user.
    #[serde(default)]
    pub owner: Option<u32>,
}

/// A message to the pager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Makes this connection a session.
    Attach {
        /// Parameters of the session to attach.
        attach: AttachRequest,
    },
    /// Makes this connection a session whose VMM will connect to a path.
    Listen {
        /// Parameters of the session to attach, and the path to listen on.
        listen: ListenRequest,
    },
    /// State of a session.
    Stats {
        /// The `id` of the reply to `attach`; by default the session of this connection.
        #[serde(default)]
        id: Option<u64>,
    },
    /// Chunks a recording session has touched, in order of first touch.
    Recording {
        /// Session id, as for `stats`.
        #[serde(default)]
        id: Option<u64>,
        /// Number of entries to skip.
        #[serde(default)]
        from: u64,
    },
    /// Whether the pager answers.
    Ping {},
    /// State of the pager.
    HostStats {},
    /// Evicts chunks, coldest first.
    Evict {
        /// Bytes to free at least.
        bytes: u64,
    },
    /// Drops the page cache of a golden that no session uses.
    Forget {
        /// Name of the golden.
        golden: String,
    },
    /// Ends the pager; refused while sessions are attached, unless forced.
    Shutdown {
        /// End it although sessions are attached: they fail.
        #[serde(default)]
        force: bool,
    },
}

/// The answer to a [`Request`] that succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// Reply to `attach` and `listen`.
    Attached {
        /// Identity of the session in this pager.
        id: u64,
        /// Bytes of the RAM image.
        ram_bytes: u64,
        /// Bytes of a chunk.
        chunk_bytes: u64,
        /// The read-only RAM file comes along.
        ram_file: bool,
        /// The VMM's end of the handshake socket comes along.
        handshake: bool,
    },
    /// Reply to `stats`.
    Stats {
        /// State of the session.
        stats: Box<SessionStats>,
    },
    /// Reply to `recording`.
    Recording {
        /// Chunk indexes, at most [`RECORDING_PAGE`].
        chunks: Vec<u32>,
        /// Number of entries in all.
        total: u64,
    },
    /// Reply to `ping`.
    Pong {
        /// Process id of the pager.
        pid: u32,
        /// Version of the pager.
        version: String,
        /// Number of sessions attached.
        sessions: u64,
    },
    /// Reply to `host_stats`.
    HostStats {
        /// State of the pager.
        stats: Box<HostStats>,
    },
    /// Reply to `evict` and `forget`.
    Freed {
        /// Number of bytes freed.
        bytes: u64,
    },
    /// Reply to `shutdown`.
    Bye {},
}

/// Kind of a session's failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// A chunk could not be read, verified or placed.
    Chunk,
    /// The VMM's handshake was refused.
    Handshake,
    /// The VMM has gone.
    VmmGone,
    /// The VMM did something that cannot be served.
    Protocol,
    /// The page cache holds pages the pager did not place.
    Tampered,
    /// The pager itself cannot go on.
    Pager,
}

/// A message from the pager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Message {
    /// The answer to a request.
    Reply(Reply),
    /// The request was refused.
    Error {
        /// Reason for the refusal, and what to do, in one line.
        error: String,
    },
    /// The session of this connection has failed; its faulting threads stay blocked until the VMM
    /// is killed.
    Event {
        /// Always `failed`.
        event: String,
        /// Kind of failure.
        kind: FailureKind,
        /// Reason for the failure, in one line.
        reason: String,
    },
}

/// Parses a request.
///
/// # Errors
/// One line that says what is wrong with it.
pub fn parse_request(bytes: &[u8]) -> Result<Request, String> {
    if bytes.len() > MAX_REQUEST {
        return Err(format!("request of {} bytes is longer than {MAX_REQUEST}", bytes.len()));
    }
    serde_json::from_slice(bytes).map_err(|e| format!("request not understood: {e}"))
}

/// Sends the failure event of a session. A client that does not read its few events loses them, and
/// its connection is its own concern.
pub(crate) fn send_failure(connection: &OwnedFd, kind: FailureKind, reason: &str) {
    let reason: String = reason.chars().take(1024).collect();
    let message = Message::Event { event: "failed".to_owned(), kind, reason };
    if let Ok(json) = serde_json::to_vec(&message)
        && let Err(errno) = wire::send(connection.as_fd(), &json, &[], MsgFlags::MSG_DONTWAIT)
    {
        tracing::debug!(%errno, "failure event not delivered");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_wire_is_as_documented() {
        let attach = br#"{"request":"attach","attach":{"golden":"g","mode":"copy"}}"#;
        let expected = AttachRequest {
            golden: "g".to_owned(),
            mode: Mode::Copy,
            record: false,
            session: String::new(),
        };
        assert_eq!(parse_request(attach), Ok(Request::Attach { attach: expected }));
        let event = Message::Event {
            event: "failed".to_owned(),
            kind: FailureKind::VmmGone,
            reason: "r".to_owned(),
        };
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(json, r#"{"event":"failed","kind":"vmm_gone","reason":"r"}"#);
        let pong = Message::Reply(Reply::Pong { pid: 1, version: "v".to_owned(), sessions: 2 });
        assert_eq!(
            serde_json::to_string(&pong).unwrap(),
            r#"{"reply":"pong","pid":1,"version":"v","sessions":2}"#
        );
        for message in [event, pong, Message::Error { error: "e".to_owned() }] {
            let json = serde_json::to_vec(&message).unwrap();
            assert_eq!(serde_json::from_slice::<Message>(&json).unwrap(), message);
        }
    }

    #[test]
    fn unknown_requests_and_fields_are_refused() {
        for bad in [
            r#"{"request":"atach"}"#,
            r#"{"request":"ping","x":1}"#,
            "{}",
            "",
            r#"{"request":"evict","bytes":-1}"#,
        ] {
            assert!(parse_request(bad.as_bytes()).is_err(), "{bad}");
        }
        parse_request(&vec![b' '; MAX_REQUEST + 1]).unwrap_err();
    }

    #[test]
    fn the_largest_recording_fits_one_message() {
        let reply = Message::Reply(Reply::Recording {
            chunks: vec![u32::MAX; RECORDING_PAGE],
            total: u64::MAX,
        });
        assert!(serde_json::to_vec(&reply).unwrap().len() <= MAX_REPLY);
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_a_request(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(request) = parse_request(&bytes) {
                let json = serde_json::to_vec(&request).unwrap();
                prop_assert_eq!(parse_request(&json), Ok(request));
            }
        }

        #[test]
        fn requests_round_trip(golden in ".{0,40}", session in ".{0,40}", record: bool, owner: Option<u32>, from: u64) {
            let attach = AttachRequest { golden, mode: Mode::Shared, record, session };
            let listen = ListenRequest { attach: attach.clone(), path: "/run/x".into(), owner };
            for request in [Request::Attach { attach }, Request::Listen { listen }, Request::Recording { id: None, from }] {
                let json = serde_json::to_vec(&request).unwrap();
                prop_assert_eq!(parse_request(&json), Ok(request));
            }
        }
    }
}
