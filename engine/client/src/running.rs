//! Commands that run, over a WebSocket.

use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use hyper::Method;
use mayfly_api::{Exec, ExecMessage, STDERR, STDIN, STDOUT, Terminal};
use mayfly_protocol::ExecEvent;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_util::task::AbortOnDropHandle;

use super::call::Client;
use super::endpoint::Transport;
use super::error::ClientError;
use super::sessions::session_path;

/// Messages that may wait to be sent; then whoever sends them waits.
const DEPTH: usize = 16;
/// Bytes of a command that the daemon takes without having been told.
const LONG: usize = 1 << 20;
/// Bytes of stdin in one message.
const PIECE: usize = 64 << 10;

type Socket = WebSocketStream<Box<dyn Transport>>;

/// A running command. Dropping it kills one that [`Client::run`] has started.
#[derive(Debug)]
pub struct Running {
    pid: u32,
    source: SplitStream<Socket>,
    input: RunningInput,
    ended: bool,
    _writer: AbortOnDropHandle<()>,
}

/// Stdin, signals and terminal size of a running command.
#[derive(Debug, Clone)]
pub struct RunningInput {
    messages: mpsc::Sender<Message>,
}

impl Client {
    /// Starts a command and returns when it runs. Its stdin can be written when
    /// [`Exec::open_stdin`] asks for it.
    ///
    /// # Errors
    /// [`ClientError::Refused`], `not_found` when there is no such program.
    pub async fn run(&self, id: &str, command: &Exec) -> Result<Running, ClientError> {
        let command = text(command)?;
        let path = match command.len() {
            long if long > LONG => format!("/exec/stream?command_bytes={long}"),
            _ => "/exec/stream".to_owned(),
        };
        self.converse(session_path(id, &path), Some(command)).await
    }

    /// Attaches to background command `n`: what it writes from now on, and its end; of one that has
    /// ended the end alone. Dropping what is returned leaves the command as it is.
    ///
    /// # Errors
    /// [`ClientError::Refused`].
    pub async fn attach(&self, id: &str, n: u64) -> Result<Running, ClientError> {
        self.converse(session_path(id, &format!("/execs/{n}/attach")), None).await
    }

    async fn converse(&self, path: String, first: Option<Message>) -> Result<Running, ClientError> {
        let transport = self.endpoint().connect().await;
        let transport = transport
            .map_err(|cause| ClientError::Connect { endpoint: self.endpoint().clone(), cause })?;
        // A complete URI, as tungstenite wants it.
        let uri = format!("ws://{}{path}", self.endpoint().authority());
        let request = self
            .request(Method::GET, uri)
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", generate_key())
            .body(())?;
        let (socket, _) = tokio_tungstenite::client_async(request, transport).await?;
        let (mut sink, source) = socket.split();
        if let Some(first) = first {
            sink.send(first).await?;
        }
        let (messages, queue) = mpsc::channel(DEPTH);
        let writer = AbortOnDropHandle::new(tokio::spawn(write(sink, queue)));
        let mut running = Running {
            pid: 0,
            source,
            input: RunningInput { messages },
            ended: false,
            _writer: writer,
        };
        match running.next().await? {
            Some(Said::Message(ExecMessage::Started { pid })) => running.pid = pid,
            other => {
                return Err(ClientError::protocol(format_args!(
                    "a command that begins with {other:?}"
                )));
            }
        }
        Ok(running)
    }
}

#[derive(Debug)]
enum Said {
    Bytes(u8, Bytes),
    Message(ExecMessage),
}

impl Running {
    /// Returns the process id in the guest.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns a handle to write its stdin, to signal and to resize it from elsewhere.
    pub fn input(&self) -> RunningInput {
        self.input.clone()
    }

    /// Waits for the next event; `None` after [`ExecEvent::Exit`]. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError`] when the command is lost, in the daemon's words where it has some.
    pub async fn recv(&mut self) -> Result<Option<ExecEvent>, ClientError> {
        if self.ended {
            return Ok(None);
        }
        let event = match self.next().await? {
            Some(Said::Bytes(STDOUT, bytes)) => ExecEvent::Stdout(bytes),
            Some(Said::Bytes(STDERR, bytes)) => ExecEvent::Stderr(bytes),
            Some(Said::Message(ExecMessage::Exit { outcome })) => {
                self.ended = true;
                ExecEvent::Exit(outcome.into())
            }
            None => return Err(ClientError::protocol("a command without an end")),
            other => {
                return Err(ClientError::protocol(format_args!("{other:?} of a running command")));
            }
        };
        Ok(Some(event))
    }

    async fn next(&mut self) -> Result<Option<Said>, ClientError> {
        while let Some(message) = self.source.next().await {
            match message? {
                Message::Binary(bytes) => match bytes.first() {
                    Some(channel) => return Ok(Some(Said::Bytes(*channel, bytes.slice(1..)))),
                    None => return Err(ClientError::protocol("an empty message")),
                },
                Message::Text(text) => {
                    match serde_json::from_str(&text).map_err(ClientError::protocol)? {
                        ExecMessage::Error { code, message } => {
                            return Err(ClientError::told(code, message));
                        }
                        message => return Ok(Some(Said::Message(message))),
                    }
                }
                Message::Close(_) => return Ok(None),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
        Ok(None)
    }
}

impl RunningInput {
    /// Writes to stdin; waits while the command does not read. Returns whether it still could run.
    pub async fn write(&self, bytes: &[u8]) -> bool {
        for piece in bytes.chunks(PIECE) {
            let mut message = Vec::with_capacity(piece.len() + 1);
            message.push(STDIN);
            message.extend_from_slice(piece);
            if self.messages.send(Message::Binary(message.into())).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Closes stdin; on a terminal, types its end-of-file character.
    pub async fn close(&self) -> bool {
        self.say(&ExecMessage::StdinEof).await
    }

    /// Sends a signal, by its Linux number, to the command's process group.
    pub async fn signal(&self, number: i32) -> bool {
        self.say(&ExecMessage::Signal { number }).await
    }

    /// Sets the size of the command's terminal.
    pub async fn resize(&self, size: Terminal) -> bool {
        self.say(&ExecMessage::Resize { rows: size.rows, cols: size.cols }).await
    }

    async fn say(&self, message: &ExecMessage) -> bool {
        match text(message) {
            Ok(message) => self.messages.send(message).await.is_ok(),
            Err(_) => false,
        }
    }
}

async fn write(mut sink: SplitSink<Socket, Message>, mut queue: mpsc::Receiver<Message>) {
    while let Some(message) = queue.recv().await {
        // The reader hears of it, too.
        if sink.send(message).await.is_err() {
            return;
        }
    }
}

fn text<T: serde::Serialize>(value: &T) -> Result<Message, ClientError> {
    Ok(Message::Text(serde_json::to_string(value).map_err(ClientError::protocol)?.into()))
}
