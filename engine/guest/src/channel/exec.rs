//! Commands in the guest: streams, signals, terminal size, exit.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::io::{ReadHalf, WriteHalf};
use mayfly_protocol::{
    ExecEvent, ExecInput, ExecOutput, ExecRequest, ExitStatus, FrameReader, MAX_CHUNK, MuxStream,
    Request, STDIN_WINDOW, TtySize, encode_frame,
};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, coop};
use tokio::time::{Instant, timeout_at};

use super::client::{RequestStream, write_all};
use super::driver::{Driver, Lease};
use super::{Channel, ChannelError};

/// Output that [`ExecHandle::output`] holds at most, stdout and stderr together, in bytes.
const OUTPUT_LIMIT: usize = 64 << 20;

/// How long a guest may take, beyond the time limit of a command, to say that it has ended. Then its
/// end is taken for granted: the guest may hang.
const GRACE: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 3000 });

/// Output that is still taken after that, in bytes: what was on its way to a slow reader.
const LATE_LIMIT: usize = 1 << 20;

/// All of a command that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Exit status of the command.
    pub status: ExitStatus,
    /// Bytes of its stdout, or of its terminal's output.
    pub stdout: Vec<u8>,
    /// Bytes of its stderr.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Returns whether it exited with code 0.
    pub fn success(&self) -> bool {
        self.status.success()
    }
}

impl Channel {
    /// Starts a command; returns when it runs.
    ///
    /// A time limit of the command ([`ExecRequest::timeout_ms`]) is kept here, too, where the guest
    /// does not keep it: 3 s later.
    ///
    /// # Errors
    /// [`ChannelError::NotStarted`] when it could not be started, with the errno of the guest.
    /// [`ChannelError::NoStart`] when the guest has not said so within the time limit.
    pub async fn exec(&self, request: ExecRequest) -> Result<ExecHandle, ChannelError> {
        let limit = request.timeout_ms.map(Duration::from_millis);
        let start = async {
            let mut stream = self.send(&Request::Exec(request)).await?;
            match stream.next::<ExecOutput>().await? {
                ExecOutput::Started { pid } => Ok(ExecHandle::new(pid, stream)),
                ExecOutput::NotStarted { kind, error } => {
                    Err(ChannelError::NotStarted { kind, error })
                }
                ExecOutput::Failed(error) => Err(error.into()),
                other => Err(unexpected(&other)),
            }
        };
        let Some(deadline) = deadline(limit) else { return start.await };
        match timeout_at(deadline, start).await {
            // Its limit counts from here on, as it does in the guest.
            Ok(started) => started.map(|mut handle| {
                handle.deadline = self::deadline(limit);
                handle
            }),
            Err(_) => Err(ChannelError::NoStart { limit: limit.unwrap_or_default() }),
        }
    }
}

/// A running command. Dropping it kills the command's whole process group.
#[derive(Debug)]
pub struct ExecHandle {
    pid: u32,
    events: FrameReader<ReadHalf<MuxStream>>,
    input: Input,
    ended: bool,
    /// When its end is taken for granted, unless something still comes.
    deadline: Option<Instant>,
    /// Since when the next frame is waited for.
    silent: Option<Instant>,
    /// Bytes of output that came after the deadline.
    late: usize,
    writer: AbortHandle,
    driver: Driver,
    _lease: Lease,
}

#[derive(Clone, Debug)]
struct Input {
    frames: mpsc::Sender<Vec<u8>>,
    window: Arc<Window>,
}

/// The part of [`STDIN_WINDOW`] that may be sent now.
#[derive(Debug)]
struct Window {
    free: Semaphore,
    outstanding: AtomicUsize,
}

impl ExecHandle {
    fn new(pid: u32, stream: RequestStream) -> Self {
        let RequestStream { reader, driver, lease } = stream;
        let (reader, writer) = reader.split();
        // A task of its own writes, so that a caller who gives up cannot leave half a frame on the
        // stream.
        let (frames, receiver) = mpsc::channel(8);
        let writer = tokio::spawn(write_frames(receiver, writer)).abort_handle();
        let window =
            Window { free: Semaphore::new(STDIN_WINDOW), outstanding: AtomicUsize::new(0) };
        let input = Input { frames, window: Arc::new(window) };
        Self {
            pid,
            events: reader,
            input,
            ended: false,
            deadline: None,
            silent: None,
            late: 0,
            writer,
            driver,
            _lease: lease,
        }
    }

    /// Returns the process id in the guest; also its process group.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for the next event, `None` after [`ExecEvent::Exit`]. Cancel-safe.
    ///
    /// Stdin moves only while this is being awaited: the guest's word that it has taken some comes
    /// on the same stream.
    ///
    /// Output comes in pieces of 1 byte to 64 KiB.
    ///
    /// # Errors
    /// [`ChannelError`] when the command is lost.
    pub async fn recv(&mut self) -> Result<Option<ExecEvent>, ChannelError> {
        while !self.ended {
            // As in `RequestStream::next`; also for frames that are no event.
            coop::consume_budget().await;
            // A slow reader comes late to what came in time: what counts is that nothing comes.
            let silent = *self.silent.get_or_insert_with(Instant::now) + GRACE;
            let until = self.deadline.map(|deadline| deadline.max(silent));
            let read = self.events.next_as::<ExecOutput>();
            let Some(frame) = within(until, read).await else {
                self.end();
                return Ok(Some(ExecEvent::Exit(ExitStatus::TimedOut)));
            };
            self.silent = None;
            let frame = match frame {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    return Err(
                        self.lost(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into())
                    );
                }
                Err(error) => return Err(self.lost(error.into())),
            };
            return Ok(Some(match frame {
                // Empty pieces would bring nobody nearer to a limit, and whoever reads reckons with
                // the longest that an agent sends.
                ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes)
                    if bytes.is_empty() || bytes.len() > MAX_CHUNK =>
                {
                    let reason = format!("a piece of {} bytes of output", bytes.len());
                    return Err(self.lost(ChannelError::Protocol { reason }));
                }
                ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes)
                    if self.is_too_late(bytes.len()) =>
                {
                    self.end();
                    ExecEvent::Exit(ExitStatus::TimedOut)
                }
                ExecOutput::Stdout(bytes) => ExecEvent::Stdout(bytes.into()),
                ExecOutput::Stderr(bytes) => ExecEvent::Stderr(bytes.into()),
                ExecOutput::StdinConsumed(count) => {
                    self.input.window.credit(count as usize).map_err(|error| self.lost(error))?;
                    continue;
                }
                ExecOutput::Exit(status) => {
                    self.end();
                    ExecEvent::Exit(status)
                }
                ExecOutput::Failed(error) => return Err(self.lost(error.into())),
                other @ (ExecOutput::Started { .. } | ExecOutput::NotStarted { .. }) => {
                    return Err(self.lost(unexpected(&other)));
                }
            }));
        }
        Ok(None)
    }

    /// Returns a handle to write to the command's stdin, which [`ExecRequest::stdin`] must have
    /// asked for.
    pub fn stdin(&self) -> ExecStdin {
        ExecStdin { input: self.input.clone() }
    }

    /// Returns a handle to signal and resize from elsewhere.
    pub fn control(&self) -> ExecControl {
        ExecControl { frames: self.input.frames.clone() }
    }

    /// Waits for the end and collects all output.
    ///
    /// # Errors
    /// [`ChannelError::TooLong`] beyond 64 MiB, and as for [`ExecHandle::recv`].
    pub async fn output(mut self) -> Result<Output, ChannelError> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        while let Some(event) = self.recv().await? {
            match event {
                ExecEvent::Stdout(bytes) => stdout.extend_from_slice(&bytes),
                ExecEvent::Stderr(bytes) => stderr.extend_from_slice(&bytes),
                ExecEvent::Exit(status) => return Ok(Output { status, stdout, stderr }),
            }
            if stdout.len() + stderr.len() > OUTPUT_LIMIT {
                return Err(ChannelError::TooLong { what: "output", limit: OUTPUT_LIMIT });
            }
        }
        Err(ChannelError::Ended)
    }

    /// Writes `stdin`, closes it, waits for the end and collects all output. A command that ends
    /// without reading all of it is no error.
    ///
    /// # Errors
    /// As for [`ExecHandle::output`].
    pub async fn output_with_stdin(self, stdin: &[u8]) -> Result<Output, ChannelError> {
        let input = self.stdin();
        let write = async {
            match input.write_all(stdin).await {
                Ok(()) => input.close().await,
                Err(error) => Err(error),
            }
        };
        let (output, written) = tokio::join!(self.output(), write);
        match (output, written) {
            (Ok(output), Ok(()) | Err(ChannelError::Ended)) => Ok(output),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }

    /// Whether so many more bytes are more than what was on its way at the deadline.
    fn is_too_late(&mut self, more: usize) -> bool {
        let late = self.deadline.is_some_and(|deadline| deadline <= Instant::now());
        self.late += if late { more } else { 0 };
        self.late > LATE_LIMIT
    }

    fn end(&mut self) {
        self.ended = true;
        self.input.window.free.close();
    }

    fn lost(&mut self, error: ChannelError) -> ChannelError {
        self.end();
        self.driver.explain(error)
    }
}

impl Drop for ExecHandle {
    fn drop(&mut self) {
        // With both halves gone the stream is reset, and the guest kills the command.
        self.input.window.free.close();
        self.writer.abort();
    }
}

/// The stdin of a command. Bounded: a write waits while the command does not read.
#[derive(Clone, Debug)]
pub struct ExecStdin {
    input: Input,
}

impl ExecStdin {
    /// Writes all of `bytes`. Dropping the future leaves a part unwritten.
    ///
    /// # Errors
    /// [`ChannelError::Ended`] when the command has ended.
    pub async fn write_all(&self, bytes: &[u8]) -> Result<(), ChannelError> {
        for piece in bytes.chunks(MAX_CHUNK) {
            let frame = encode_frame(&ExecInput::Stdin(piece.to_vec()))?;
            let count = u32::try_from(piece.len()).map_err(|_| ChannelError::Ended)?;
            let room = self
                .input
                .window
                .free
                .acquire_many(count)
                .await
                .map_err(|_| ChannelError::Ended)?;
            let slot = self.input.frames.reserve().await.map_err(|_| ChannelError::Ended)?;
            self.input.window.outstanding.fetch_add(piece.len(), Ordering::AcqRel);
            room.forget();
            slot.send(frame);
        }
        Ok(())
    }

    /// Closes the command's stdin; on a terminal, types its end-of-file character.
    ///
    /// # Errors
    /// [`ChannelError::Ended`] when the command has ended.
    pub async fn close(&self) -> Result<(), ChannelError> {
        let slot = self.input.frames.reserve().await.map_err(|_| ChannelError::Ended)?;
        let frame = encode_frame(&ExecInput::StdinEof)?;
        slot.send(frame);
        Ok(())
    }
}

/// Signals and terminal size of a command.
#[derive(Clone, Debug)]
pub struct ExecControl {
    frames: mpsc::Sender<Vec<u8>>,
}

impl ExecControl {
    /// Sends a signal, by its Linux number, to the command's process group.
    ///
    /// # Errors
    /// [`ChannelError::Ended`] when the command has ended.
    pub async fn signal(&self, number: i32) -> Result<(), ChannelError> {
        send(&self.frames, &ExecInput::Signal(number)).await
    }

    /// Sets the size of the command's terminal.
    ///
    /// # Errors
    /// [`ChannelError::Ended`] when the command has ended.
    pub async fn resize(&self, size: TtySize) -> Result<(), ChannelError> {
        send(&self.frames, &ExecInput::Resize(size)).await
    }
}

impl Window {
    fn credit(&self, count: usize) -> Result<(), ChannelError> {
        let taken = self
            .outstanding
            .try_update(Ordering::AcqRel, Ordering::Acquire, |held| held.checked_sub(count));
        if count == 0 || taken.is_err() {
            return Err(ChannelError::Protocol {
                reason: format!("it took {count} bytes of stdin that nobody sent"),
            });
        }
        self.free.add_permits(count);
        Ok(())
    }
}

/// When the end of a command with such a time limit, if any, is taken for granted.
fn deadline(limit: Option<Duration>) -> Option<Instant> {
    Instant::now().checked_add(limit?.checked_add(GRACE)?)
}

/// Does `work`, which is polled first, until the deadline, if there is one.
async fn within<T>(deadline: Option<Instant>, work: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline, work).await.ok(),
        None => Some(work.await),
    }
}

async fn send(frames: &mpsc::Sender<Vec<u8>>, frame: &ExecInput) -> Result<(), ChannelError> {
    frames.send(encode_frame(frame)?).await.map_err(|_| ChannelError::Ended)
}

async fn write_frames(mut frames: mpsc::Receiver<Vec<u8>>, mut writer: WriteHalf<MuxStream>) {
    while let Some(frame) = frames.recv().await {
        // The reader hears of it, too.
        if write_all(&mut writer, &frame).await.is_err() {
            return;
        }
    }
}

fn unexpected(frame: &ExecOutput) -> ChannelError {
    let name = match frame {
        ExecOutput::Started { .. } => "Started",
        ExecOutput::StdinConsumed(_) => "StdinConsumed",
        ExecOutput::Stdout(_) => "Stdout",
        ExecOutput::Stderr(_) => "Stderr",
        ExecOutput::Exit(_) => "Exit",
        ExecOutput::Failed(_) => "Failed",
        ExecOutput::NotStarted { .. } => "NotStarted",
    };
    ChannelError::Protocol { reason: format!("it sent {name} at a wrong time") }
}
