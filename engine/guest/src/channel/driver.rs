//! The task that owns the yamux connection of a channel.

use super::ChannelError;
use super::buffers::{Buffers, SetAside};
use mayfly_protocol::{MAX_STREAMS, Mode, Mux, MuxError, MuxStream, STREAM_WINDOW};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

/// Requests for a stream that may wait. Those that are still wanted each have one of the places for
/// streams, so that at least half of more are not.
const MOST_WAITING: usize = 2 * MAX_STREAMS;

/// The byte stream of a channel that was stopped, and the last bytes read from it.
pub type Stopped = (UnixStream, Vec<u8>);

enum Command {
    Open(oneshot::Sender<MuxStream>),
    Stop(oneshot::Sender<Stopped>),
}

/// A way to the driver. The driver lives as long as one of these does.
#[derive(Clone, Debug)]
pub struct Driver {
    commands: mpsc::UnboundedSender<Command>,
    streams: Arc<Semaphore>,
    failure: Arc<OnceLock<Failure>>,
    buffers: Arc<OnceLock<Arc<dyn Buffers>>>,
}

/// Guard that keeps the driver alive and its place among the streams as long as a stream is in use.
#[derive(Debug)]
pub struct Lease {
    _driver: Driver,
    _place: OwnedSemaphorePermit,
    _window: Option<SetAside>,
}

#[derive(Clone, Debug)]
enum Failure {
    Closed(String),
    Protocol(String),
}

impl Driver {
    /// Starts the task. It touches `stream` only when the first stream is opened, because yamux
    /// begins with a ping, and the guest should not run for that.
    pub fn start(stream: UnixStream) -> Self {
        let (commands, receiver) = mpsc::unbounded_channel();
        let failure = Arc::new(OnceLock::new());
        let task =
            Task { commands: receiver, waiting: VecDeque::new(), failure: Arc::clone(&failure) };
        tokio::spawn(task.run(stream));
        let streams = Arc::new(Semaphore::new(MAX_STREAMS));
        Self { commands, streams, failure, buffers: Arc::default() }
    }

    /// Sets `buffers` as the bound on what is held from now on. Only the first counts.
    pub fn bound_by(&self, buffers: Arc<dyn Buffers>) {
        let _ = self.buffers.set(buffers);
    }

    /// Sets `bytes` aside of what may be held for the guest; `None` where nothing bounds it.
    ///
    /// # Errors
    /// [`ChannelError::NoBuffers`].
    pub fn set_aside(&self, bytes: usize) -> Result<Option<SetAside>, ChannelError> {
        let Some(buffers) = self.buffers.get() else { return Ok(None) };
        buffers.set_aside(bytes).map(Some).ok_or(ChannelError::NoBuffers)
    }

    /// Opens a stream; waits while [`MAX_STREAMS`] are in use.
    pub async fn open(&self) -> Result<(MuxStream, Lease), ChannelError> {
        let place = Arc::clone(&self.streams).acquire_owned().await.map_err(|_| self.error())?;
        let window = self.set_aside(STREAM_WINDOW)?;
        let (reply, stream) = oneshot::channel();
        self.commands.send(Command::Open(reply)).map_err(|_| self.error())?;
        let stream = stream.await.map_err(|_| self.error())?;
        Ok((stream, Lease { _driver: self.clone(), _place: place, _window: window }))
    }

    /// Ends the driver and takes the byte stream back. Streams still in use fail.
    pub async fn stop(&self) -> Result<Stopped, ChannelError> {
        let (reply, stopped) = oneshot::channel();
        self.commands.send(Command::Stop(reply)).map_err(|_| self.error())?;
        stopped.await.map_err(|_| self.error())
    }

    /// Returns why the channel is over.
    pub fn error(&self) -> ChannelError {
        match self.failure.get() {
            Some(Failure::Protocol(reason)) => ChannelError::Protocol { reason: reason.clone() },
            Some(Failure::Closed(reason)) => ChannelError::Closed { reason: reason.clone() },
            None => ChannelError::Closed { reason: "it was stopped".into() },
        }
    }

    /// Returns what to report for an error of one stream: the cause when the whole channel has
    /// failed.
    pub fn explain(&self, error: ChannelError) -> ChannelError {
        match error {
            ChannelError::Io(_) if self.failure.get().is_some() => self.error(),
            other => other,
        }
    }
}

struct Task {
    commands: mpsc::UnboundedReceiver<Command>,
    waiting: VecDeque<oneshot::Sender<MuxStream>>,
    failure: Arc<OnceLock<Failure>>,
}

enum End {
    /// Asked to give the byte stream back.
    Stop(oneshot::Sender<Stopped>),
    /// Nobody uses the channel any more.
    Unused,
    Failed(Failure),
}

impl Task {
    async fn run(mut self, stream: UnixStream) {
        match self.commands.recv().await {
            Some(Command::Open(reply)) => self.waiting.push_back(reply),
            Some(Command::Stop(reply)) => {
                let _ = reply.send((stream, Vec::new()));
                return;
            }
            None => return,
        }
        let mut mux = Mux::new(stream.compat(), Mode::Client);
        let end = poll_fn(|cx| self.poll(&mut mux, cx)).await;
        let failure = match end {
            End::Stop(reply) => {
                give_back(reply, mux.into_transport());
                return;
            }
            End::Unused => return,
            End::Failed(failure) => failure,
        };
        // Before anyone hears of it, so that they can say why.
        let _ = self.failure.set(failure);
        self.waiting.clear();
        // Ends all streams.
        let stopped = mux.into_transport();
        // A guest that was asked to park leaves yamux first, which looks like a failure here.
        if let Some(reply) = self.next_stop().await {
            give_back(reply, stopped);
        }
    }

    /// Keeps a request. A guest that acknowledges no stream makes it wait for ever, and whoever asked
    /// may have given up.
    fn wait(&mut self, reply: oneshot::Sender<MuxStream>) {
        if self.waiting.len() >= MOST_WAITING {
            self.waiting.retain(|reply| !reply.is_closed());
        }
        self.waiting.push_back(reply);
    }

    fn poll(&mut self, mux: &mut Mux<Compat<UnixStream>>, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            match self.commands.poll_recv(cx) {
                Poll::Ready(Some(Command::Open(reply))) => self.wait(reply),
                Poll::Ready(Some(Command::Stop(reply))) => return Poll::Ready(End::Stop(reply)),
                Poll::Ready(None) => {
                    // Tells the guest of streams that were dropped, if that goes without waiting.
                    let _ = mux.poll_inbound(cx);
                    return Poll::Ready(End::Unused);
                }
                Poll::Pending => break,
            }
        }
        let mut opened = false;
        while let Some(reply) = self.waiting.pop_front() {
            if reply.is_closed() {
                continue;
            }
            match mux.poll_outbound(cx) {
                Poll::Ready(Ok(stream)) => {
                    opened = true;
                    let _ = reply.send(stream);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(End::Failed(failure(&error))),
                Poll::Pending => {
                    self.waiting.push_front(reply);
                    break;
                }
            }
        }
        if opened {
            // Lets the requests be written first, so that they leave together with what yamux
            // itself has to say.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        match mux.poll_inbound(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(_))) => {
                Poll::Ready(End::Failed(Failure::Protocol("it opened a stream".into())))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(End::Failed(failure(&error))),
            Poll::Ready(None) => {
                Poll::Ready(End::Failed(Failure::Closed("the guest or its VMM ended it".into())))
            }
        }
    }

    /// Refuses to open streams until the byte stream is asked for, or nobody is left.
    async fn next_stop(&mut self) -> Option<oneshot::Sender<Stopped>> {
        loop {
            match self.commands.recv().await? {
                Command::Open(reply) => drop(reply),
                Command::Stop(reply) => return Some(reply),
            }
        }
    }
}

fn give_back(reply: oneshot::Sender<Stopped>, transport: Option<(Compat<UnixStream>, Vec<u8>)>) {
    if let Some((stream, last)) = transport {
        let _ = reply.send((stream.into_inner(), last));
    }
}

fn failure(error: &MuxError) -> Failure {
    match error {
        MuxError::Io(error) => Failure::Closed(error.to_string()),
        MuxError::Closed => Failure::Closed("the guest or its VMM ended it".into()),
        other => Failure::Protocol(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    #[test]
    fn requests_that_were_given_up_do_not_pile_up() {
        // Not within a task of the runtime, which would have to pause.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let _guard = runtime.enter();
        let (commands, receiver) = mpsc::unbounded_channel();
        let mut task =
            Task { commands: receiver, waiting: VecDeque::new(), failure: Arc::default() };
        // A guest that says nothing.
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut mux = Mux::new(ours.compat(), Mode::Client);
        let mut ask = || {
            let (reply, stream) = oneshot::channel();
            commands.send(Command::Open(reply)).unwrap();
            let mut cx = Context::from_waker(Waker::noop());
            assert!(task.poll(&mut mux, &mut cx).is_pending());
            (stream, task.waiting.len())
        };
        // As many as there may be without a word of the guest, and one that waits.
        let opened: Vec<_> = std::iter::repeat_with(|| ask().0).take(MAX_STREAMS + 1).collect();
        let most = std::iter::repeat_with(|| ask().1).take(10 * MOST_WAITING).max();
        assert!(most.is_some_and(|most| (2..=MOST_WAITING).contains(&most)), "{most:?} wait");
        // Who still waits is kept.
        for mut stream in opened.into_iter().skip(MAX_STREAMS) {
            assert_eq!(stream.try_recv().unwrap_err(), oneshot::error::TryRecvError::Empty);
        }
    }
}
