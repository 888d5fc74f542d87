//! The wire protocol between the engine and the guest agent.
//!
//! One ordered byte stream (a virtio-serial port) carries everything, in two phases:
//!
//! 1. *parked*: the agent reads until it sees [`HELLO_MAGIC`], applies the identity in the
//!    [`Hello`] and answers a [`HelloAck`]. This is the state a golden image is snapshotted in, so
//!    it runs very little code.
//! 2. *open*: [yamux](https://github.com/hashicorp/yamux/blob/master/spec.md) over the same bytes,
//!    the engine as its client. Each request is one yamux stream that starts with one [`Request`]
//!    frame. [`Request::Park`] leads back to 1.
//!
//! Everything that parses bytes is a pure function or a small state machine without I/O, so that it
//! can be fuzzed. The engine treats every byte of a guest as hostile: lengths are bounded, nothing
//! here panics on input.

mod bytestring;
mod duplex;
mod egress;
mod exec;
mod files;
mod frame;
mod hello;
mod mux;
mod printable;
mod probe;
mod request;
mod scanner;
mod stats;
mod time_scale;
mod watch;

pub use bytestring::ByteString;
pub use duplex::Duplex;
pub use egress::{DnsMessage, EgressPorts, MAX_DNS_IN_FLIGHT, MAX_DNS_MESSAGE, PROXY_PORT};
pub use exec::{
    ExecEvent, ExecInput, ExecOutput, ExecRequest, ExitStatus, STDIN_WINDOW, StartFailure, TtySize,
};
pub use files::{
    DirEntry, FileChunk, FileKind, FilePath, Followed, ListOptions, MAX_XATTR_BYTES, MAX_XATTRS,
    Metadata, StatOptions, WriteOptions, Written, Xattr, XattrSet, Xattrs,
};
pub use frame::{
    FrameError, FrameReader, MAX_FRAME, MAX_REQUEST, append_frame, decode_frame, encode_frame,
    encode_request, split_frame,
};
pub use hello::{ApplyError, Entropy, Hello, HelloAck, HelloError, PROTOCOL_VERSION};
pub use mux::{MAX_STREAMS, Mode, Mux, MuxError, MuxStream, STREAM_WINDOW};
pub use printable::{MAX_SHOWN, Printable, is_printable};
pub use probe::{PROBE_ANSWER, PROBE_PARAMETER};
pub use request::{
    GuestError, Health, MAX_CHUNK, PORT_NAME, QuiesceReport, Reply, Request, ServiceHealth,
    ServiceState,
};
pub use scanner::{ACK_MAGIC, HELLO_MAGIC, MAX_HANDSHAKE, PARKED_MAGIC, Scanner, encode_handshake};
pub use stats::GuestStats;
pub use time_scale::{MAX_TIME_SCALE, TIME_SCALE_PARAMETER, parse_time_scale};
pub use watch::{
    MAX_WATCH_BATCH, WatchEvent, WatchInput, WatchKind, WatchOutput, is_file_name, is_relative_path,
};
