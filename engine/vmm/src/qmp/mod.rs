//! A small typed client of the QEMU Machine Protocol over a connected Unix stream.
//!
//! Commands, replies and event payloads are in [`schema`]. Framing and limits are here: one JSON
//! object a line, at most [`MAX_LINE`] bytes, few of them kept, and no more than 1 MiB read in a
//! second, so that a hostile VMM can neither fill our memory, nor keep our threads busy, nor stall
//! us past the caller's timeout. Specification: QEMU `docs/interop/qmp-spec.rst`.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use futures::StreamExt;
use mayfly_protocol::Printable;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::Instant;
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};

use crate::console::Throttle;

pub mod schema;

use schema::{Command, Event};

/// Longest line accepted from the VMM, in bytes. The commands of [`schema`] are answered in less
/// than 1 KiB, as far as QEMU has no long error to tell, and events have less too. What QEMU
/// describes itself with is longer (`query-qmp-schema`: 230 KiB), and is not asked for.
pub const MAX_LINE: usize = 64 << 10;
/// Events kept for a later [`QmpClient::wait_event`], and replies for a later [`QmpClient::reply`];
/// older ones are dropped. A migration has half a dozen events, and two commands are on their way
/// at once.
const MAX_QUEUED: usize = 32;
/// Bytes of the lines that these came in, of events and of replies each.
const MAX_QUEUED_BYTES: usize = MAX_LINE;
/// What a message costs beside its bytes, in bytes: we may have been woken for it alone.
const EACH: usize = 256;

/// Error of a QMP connection.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The VMM closed the connection, which it does only when it exits.
    #[error("the VMM closed its QMP connection during {during}")]
    Closed {
        /// The command or wait that was under way.
        during: &'static str,
    },
    /// The socket failed.
    #[error("QMP connection failed during {during}: {cause}")]
    Io {
        /// The command or wait that was under way.
        during: &'static str,
        /// Cause of the failure.
        cause: std::io::Error,
    },
    /// A line that is no QMP message, or a longer one than allowed.
    #[error("the VMM sent an invalid QMP message during {during}: {}", Printable(reason))]
    Invalid {
        /// The command or wait that was under way.
        during: &'static str,
        /// Description of what is wrong with it.
        reason: String,
    },
    /// The VMM answered a command with an error.
    #[error("the VMM refused {command}: {}", Printable(reason))]
    Refused {
        /// The QMP command.
        command: &'static str,
        /// QEMU's own words.
        reason: String,
    },
    /// No answer in time.
    #[error("the VMM did not answer {during} within {limit:?}")]
    TimedOut {
        /// The command or wait that was under way.
        during: &'static str,
        /// The limit that ran out.
        limit: Duration,
    },
}

/// One line to the VMM.
#[derive(Debug, Serialize)]
struct Execute<C> {
    execute: &'static str,
    arguments: C,
    id: u64,
}

/// One line from the VMM. Payloads stay text until somebody wants them: parsed, a line may take
/// fifty times its bytes.
#[derive(Debug, Deserialize)]
struct Message {
    #[serde(rename = "QMP")]
    greeting: Option<IgnoredAny>,
    event: Option<String>,
    data: Option<Box<RawValue>>,
    #[serde(rename = "return")]
    result: Option<Box<RawValue>>,
    error: Option<RefusedBody>,
    id: Option<u64>,
    /// Bytes of the line.
    #[serde(skip)]
    size: usize,
}

#[derive(Debug, Deserialize)]
struct RefusedBody {
    desc: String,
}

/// The messages that wait to be asked for.
#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Message>,
    bytes: usize,
}

impl Queue {
    fn push(&mut self, message: Message) {
        self.bytes += message.size;
        self.messages.push_back(message);
        while self.messages.len() > MAX_QUEUED || self.bytes > MAX_QUEUED_BYTES {
            let Some(dropped) = self.messages.pop_front() else { break };
            self.bytes -= dropped.size;
        }
    }

    fn take(&mut self, wanted: impl Fn(&Message) -> bool) -> Option<Message> {
        let at = self.messages.iter().position(wanted)?;
        let message = self.messages.remove(at)?;
        self.bytes -= message.size;
        Some(message)
    }
}

/// A command that was sent and whose reply has not been read yet.
#[derive(Debug)]
#[must_use = "the reply must be awaited with QmpClient::reply"]
pub struct Pending<C> {
    id: u64,
    command: std::marker::PhantomData<C>,
}

/// A connection to one VMM. Commands may be pipelined: [`QmpClient::send`] several, then
/// [`QmpClient::reply`] in any order of completion.
#[derive(Debug)]
pub struct QmpClient {
    lines: FramedRead<OwnedReadHalf, LinesCodec>,
    writer: OwnedWriteHalf,
    next_id: u64,
    replies: Queue,
    events: Queue,
    throttle: Throttle,
    /// When to read on, if that is not at once.
    rest: Option<Instant>,
}

impl QmpClient {
    /// Takes over a connected stream. Sends nothing; QEMU's greeting is read with the first reply.
    pub fn new(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        Self {
            lines: FramedRead::new(reader, LinesCodec::new_with_max_length(MAX_LINE)),
            writer,
            next_id: 0,
            replies: Queue::default(),
            events: Queue::default(),
            throttle: Throttle::new(Instant::now()),
            rest: None,
        }
    }

    /// Sends a command without waiting for its reply.
    ///
    /// # Errors
    /// [`QmpError::Io`] when the socket fails.
    pub async fn send<C: Command>(&mut self, command: C) -> Result<Pending<C>, QmpError> {
        let (line, pending) = self.encode(command)?;
        self.write(C::NAME, &line).await?;
        Ok(pending)
    }

    fn encode<C: Command>(&mut self, command: C) -> Result<(Vec<u8>, Pending<C>), QmpError> {
        self.next_id += 1;
        let id = self.next_id;
        let mut line = serde_json::to_vec(&Execute { execute: C::NAME, arguments: command, id })
            .map_err(|e| QmpError::Invalid { during: C::NAME, reason: e.to_string() })?;
        line.push(b'\n');
        Ok((line, Pending { id, command: std::marker::PhantomData }))
    }

    async fn write(&mut self, during: &'static str, bytes: &[u8]) -> Result<(), QmpError> {
        self.writer.write_all(bytes).await.map_err(|cause| QmpError::Io { during, cause })
    }

    /// Sends a command that takes a descriptor, such as `getfd`, which the VMM gets a duplicate of
    /// (`SCM_RIGHTS`, unix(7)), and waits for its reply.
    ///
    /// # Errors
    /// As [`QmpClient::execute`].
    pub async fn execute_with_fd<C: Command>(
        &mut self,
        command: C,
        fd: BorrowedFd<'_>,
    ) -> Result<C::Ok, QmpError> {
        let (line, pending) = self.encode(command)?;
        let socket = self.writer.as_ref();
        let sent = socket
            .async_io(Interest::WRITABLE, || {
                let rights = [fd.as_raw_fd()];
                let message = [ControlMessage::ScmRights(&rights)];
                let bytes = [IoSlice::new(&line)];
                Ok(sendmsg::<()>(socket.as_raw_fd(), &bytes, &message, MsgFlags::empty(), None)?)
            })
            .await
            .map_err(|cause| QmpError::Io { during: C::NAME, cause })?;
        // The descriptor went with the first byte; a full socket buffer may have cut the rest.
        self.write(C::NAME, &line[sent..]).await?;
        self.reply(pending).await
    }

    /// Waits for the reply to `pending`.
    ///
    /// # Errors
    /// [`QmpError::Refused`] with QEMU's words; otherwise what broke the connection.
    pub async fn reply<C: Command>(&mut self, pending: Pending<C>) -> Result<C::Ok, QmpError> {
        let during = C::NAME;
        let message = loop {
            if let Some(message) = self.replies.take(|m| m.id == Some(pending.id)) {
                break message;
            }
            self.read_one(during).await?;
        };
        if let Some(refused) = message.error {
            return Err(QmpError::Refused { command: during, reason: refused.desc });
        }
        serde_json::from_str(message.result.as_deref().map_or("null", RawValue::get))
            .map_err(|e| QmpError::Invalid { during, reason: e.to_string() })
    }

    /// Sends a command and waits for its reply.
    ///
    /// # Errors
    /// As [`QmpClient::send`] and [`QmpClient::reply`].
    pub async fn execute<C: Command>(&mut self, command: C) -> Result<C::Ok, QmpError> {
        let pending = self.send(command).await?;
        self.reply(pending).await
    }

    /// Takes the oldest event named as `E` that has not been taken yet, or waits for one.
    ///
    /// # Errors
    /// What broke the connection.
    pub async fn wait_event<E: Event>(&mut self) -> Result<E, QmpError> {
        loop {
            if let Some(event) = self.take_event()? {
                return Ok(event);
            }
            self.read_one(E::NAME).await?;
        }
    }

    /// Takes the oldest event named as `E` that has come; waits for none.
    ///
    /// # Errors
    /// It is not what the schema says.
    pub fn take_event<E: Event>(&mut self) -> Result<Option<E>, QmpError> {
        let during = E::NAME;
        let found = self.events.take(|m| m.event.as_deref() == Some(during));
        found
            .map(|message| {
                // An event without data leaves the field out, where the schema's types want an
                // empty object.
                let data = message.data.as_deref().map_or("{}", RawValue::get);
                serde_json::from_str(data)
                    .map_err(|e| QmpError::Invalid { during, reason: e.to_string() })
            })
            .transpose()
    }

    /// Waits for one more message, whatever it is. Cancel-safe.
    ///
    /// # Errors
    /// What broke the connection.
    pub async fn listen(&mut self) -> Result<(), QmpError> {
        self.read_one("a wait for events").await
    }

    /// Forgets the events that have come.
    pub fn forget_events(&mut self) {
        self.events = Queue::default();
    }

    /// Reads one message. Cancel-safe.
    ///
    /// Rests in proportion to what was read, but only once that was more than an honest VMM ever
    /// sends, and before the next message rather than after this one: an answer somebody waits for
    /// is handed on at once, for `cont` is a part of each start from a standby. The rest outlives a
    /// wait that is given up, which would shorten it otherwise.
    async fn read_one(&mut self, during: &'static str) -> Result<(), QmpError> {
        if let Some(end) = self.rest {
            tokio::time::sleep_until(end).await;
            self.rest = None;
        }
        let line = match self.lines.next().await {
            None => return Err(QmpError::Closed { during }),
            Some(Ok(line)) => line,
            Some(Err(LinesCodecError::MaxLineLengthExceeded)) => {
                let reason = format!("a line of more than {MAX_LINE} bytes");
                return Err(QmpError::Invalid { during, reason });
            }
            // The codec has one kind of error for bytes that are no text and for the socket's own.
            Some(Err(LinesCodecError::Io(cause))) if cause.kind() == ErrorKind::InvalidData => {
                let reason = "a line that is not UTF-8".to_owned();
                return Err(QmpError::Invalid { during, reason });
            }
            Some(Err(LinesCodecError::Io(cause))) => return Err(QmpError::Io { during, cause }),
        };
        self.rest = self.throttle.count(line.len() + EACH, Instant::now());
        let mut message: Message = serde_json::from_str(&line)
            .map_err(|e| QmpError::Invalid { during, reason: e.to_string() })?;
        message.size = line.len();
        if message.event.is_some() {
            self.events.push(message);
        } else if message.greeting.is_none() && message.id.is_some_and(|id| id <= self.next_id) {
            self.replies.push(message);
        } else if message.greeting.is_none() {
            let reason = message.error.map_or_else(|| "a reply to no command".into(), |e| e.desc);
            return Err(QmpError::Invalid { during, reason });
        }
        Ok(())
    }
}

/// Bounds a QMP wait.
///
/// # Errors
/// [`QmpError::TimedOut`], or the error of the wait itself.
pub async fn within<T>(
    limit: Duration,
    during: &'static str,
    wait: impl Future<Output = Result<T, QmpError>>,
) -> Result<T, QmpError> {
    tokio::time::timeout(limit, wait).await.unwrap_or(Err(QmpError::TimedOut { during, limit }))
}

#[cfg(test)]
mod tests;
