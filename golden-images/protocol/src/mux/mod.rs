//! yamux over one byte stream, with few and large system calls.

mod coalesce;
mod stream;
mod transport;

use futures::io::{AsyncRead, AsyncWrite};
use std::fmt;
use std::future::poll_fn;
use std::task::{Context, Poll};

use transport::Shared;

pub use stream::MuxStream;
pub use yamux::{ConnectionError as MuxError, Mode};

/// Streams the engine may have open at one time.
pub const MAX_STREAMS: usize = 256;

/// yamux counts a stream until its drop was processed, so its own limit, whose breach ends the
/// connection, is wider.
const YAMUX_STREAMS: usize = 2 * MAX_STREAMS;

/// What the other end may send unasked on one stream, in bytes. With [`RECEIVE_WINDOW`] yamux has
/// nothing left to make it larger.
pub const STREAM_WINDOW: usize = yamux::DEFAULT_CREDIT as usize;

/// All receive windows together, in bytes: what a hostile other end can make this end buffer.
const RECEIVE_WINDOW: usize = YAMUX_STREAMS * STREAM_WINDOW;

/// A yamux connection that writes to its transport only when it has nothing else to do, in one
/// piece.
///
/// yamux itself writes each header and body on its own and flushes after each; a write to a virtio
/// port is a trap into the VMM.
///
/// A client, which is the engine, does not trust the other end: it joins what yamux would keep in
/// tiny pieces, keeps nothing for streams that it has dropped, and gives other tasks a turn after a
/// bounded number of frames.
pub struct Mux<T> {
    connection: yamux::Connection<Shared<T>>,
    transport: Shared<T>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Mux<T> {
    /// Speaks yamux over `transport`. Nothing is sent before the first poll.
    pub fn new(transport: T, mode: Mode) -> Self {
        let most = (mode == Mode::Client).then_some(YAMUX_STREAMS);
        let transport = Shared::new(transport, most);
        let mut config = yamux::Config::default();
        // The limits check each other, so both are opened before either is set.
        config.set_max_connection_receive_window(None);
        config.set_max_num_streams(YAMUX_STREAMS);
        config.set_max_connection_receive_window(Some(RECEIVE_WINDOW));
        Self { connection: yamux::Connection::new(transport.clone(), config, mode), transport }
    }

    /// Drives the connection; `Ready` with a stream the other end opened, `None` at the end, or an
    /// error. Nothing moves on any stream unless this is polled.
    pub fn poll_inbound(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<MuxStream, MuxError>>> {
        self.transport.lock().begin_poll(cx);
        loop {
            if let Poll::Ready(event) = self.connection.poll_next_inbound(cx) {
                return Poll::Ready(event.map(|event| event.map(|stream| self.stream(stream))));
            }
            let mut transport = self.transport.lock();
            transport.drop_left();
            let drained = transport.poll_drain(cx);
            // yamux met a full buffer and sleeps on a wake-up that the drain has used up.
            let again = transport.take_refused() && drained.is_ready();
            drop(transport);
            match drained {
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(MuxError::Io(error)))),
                _ if again => {}
                _ => return Poll::Pending,
            }
        }
    }

    /// Waits for the next stream the other end opens; see [`Mux::poll_inbound`].
    pub async fn next_inbound(&mut self) -> Option<Result<MuxStream, MuxError>> {
        poll_fn(|cx| self.poll_inbound(cx)).await
    }

    /// Opens a stream. The other end hears of it with the stream's first bytes.
    pub fn poll_outbound(&mut self, cx: &mut Context<'_>) -> Poll<Result<MuxStream, MuxError>> {
        let stream = self.connection.poll_new_outbound(cx);
        stream.map(|stream| stream.map(|stream| self.stream(stream)))
    }

    fn stream(&self, stream: yamux::Stream) -> MuxStream {
        let gauge = self.transport.lock().opened(stream.id().val());
        MuxStream::new(stream, gauge)
    }

    /// Returns whether every byte yamux has produced went to the transport.
    pub fn is_drained(&self) -> bool {
        self.transport.lock().is_drained()
    }

    /// Ends yamux without a word to the other end and gives the transport back, with the last bytes
    /// read from it, at least all of the last read, whether yamux has used them or not: a handshake
    /// message that met an open yamux is in there.
    pub fn into_transport(self) -> Option<(T, Vec<u8>)> {
        drop(self.connection);
        self.transport.into_inner()
    }
}

impl<T> fmt::Debug for Mux<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mux").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::task::noop_waker;
    use std::io;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    /// A transport that has these bytes: again and again, while it takes all that is written, or
    /// once, and takes nothing unless it is told to.
    struct Other {
        bytes: Vec<u8>,
        endless: bool,
        takes: bool,
        reads: usize,
    }

    impl Other {
        fn new(bytes: &[u8], endless: bool) -> Self {
            Self { bytes: bytes.to_vec(), endless, takes: endless, reads: 0 }
        }

        fn unless_it_waits<T>(&self, done: T) -> Poll<io::Result<T>> {
            if self.takes { Poll::Ready(Ok(done)) } else { Poll::Pending }
        }
    }

    impl AsyncRead for Other {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            out: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            self.reads += 1;
            assert!(self.reads < 10_000, "nothing else ever has a turn");
            if self.endless {
                let whole = out.len() - out.len() % self.bytes.len();
                out.iter_mut().zip(self.bytes.iter().cycle()).for_each(|(to, from)| *to = *from);
                return Poll::Ready(Ok(whole));
            }
            let count = out.len().min(self.bytes.len());
            out[..count].copy_from_slice(&self.bytes[..count]);
            self.bytes.drain(..count);
            if count == 0 { Poll::Pending } else { Poll::Ready(Ok(count)) }
        }
    }

    impl AsyncWrite for Other {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.unless_it_waits(bytes.len())
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.unless_it_waits(())
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.unless_it_waits(())
        }
    }

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Credit for a stream that nobody has opened.
    const CREDIT: &[u8] = &[0, 1, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1];
    /// A byte for a stream that nobody has opened.
    const BYTE: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1, 7];

    #[test]
    fn an_other_end_that_always_has_more_leaves_others_their_turn() {
        for bytes in [CREDIT, BYTE] {
            let mut mux = Mux::new(Other::new(bytes, true), Mode::Client);
            let wakes = Arc::new(Wakes::default());
            let waker = Waker::from(wakes.clone());
            for turn in 1..=3 {
                assert!(mux.poll_inbound(&mut Context::from_waker(&waker)).is_pending());
                assert!(wakes.0.load(Ordering::Relaxed) >= turn, "nobody polls it again");
            }
        }
    }

    #[test]
    fn streams_of_a_connection_say_how_far_they_are_read() {
        let mut mux = Mux::new(Other::new(BYTE, true), Mode::Client);
        let waker = noop_waker();
        let mut cx = Context::from_waker(&waker);
        let mut streams = Vec::new();
        // The fifth has the number in the bytes above.
        for _ in 0..5 {
            let Poll::Ready(Ok(stream)) = mux.poll_outbound(&mut cx) else { panic!("no stream") };
            streams.push(stream);
        }
        let mut stream = streams.pop().unwrap();
        let mut read = 0;
        let mut out = [0; 512];
        while read < 100_000 {
            assert!(mux.poll_inbound(&mut cx).is_pending());
            while let Poll::Ready(count) = Pin::new(&mut stream).poll_read(&mut cx, &mut out) {
                let count = count.unwrap();
                assert!(out[..count].iter().all(|byte| *byte == 7));
                read += count;
            }
        }
        drop(stream);
        for _ in 0..10 {
            assert!(mux.poll_inbound(&mut cx).is_pending());
        }
    }

    #[test]
    fn a_stream_that_is_dropped_amid_a_body_is_kept_until_it_has_come() {
        let waker = noop_waker();
        let mut cx = Context::from_waker(&waker);
        let body = [&[0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0][..], &[7; 30_000]].concat();
        let mut mux = Mux::new(Other::new(&body, false), Mode::Client);
        let Poll::Ready(Ok(stream)) = mux.poll_outbound(&mut cx) else { panic!("no stream") };
        assert!(mux.poll_inbound(&mut cx).is_pending());
        drop(stream);
        let waiting = |mux: &Mux<Other>| mux.transport.lock().left();
        assert_eq!(waiting(&mux), 1);
        mux.transport.lock().inner_mut().bytes = vec![7; 65_536 - 30_000];
        for _ in 0..3 {
            assert!(mux.poll_inbound(&mut cx).is_pending());
        }
        assert_eq!(waiting(&mux), 0);
        // And one whose body never comes goes with its connection.
        let body = [0, 0, 0, 0, 0, 0, 0, 3, 0, 1, 0, 0, 7];
        mux.transport.lock().inner_mut().bytes = body.to_vec();
        let Poll::Ready(Ok(stream)) = mux.poll_outbound(&mut cx) else { panic!("no stream") };
        assert!(mux.poll_inbound(&mut cx).is_pending());
        drop(stream);
        assert_eq!(waiting(&mux), 1);
        let signal = mux.transport.lock().signal();
        drop(mux.into_transport().unwrap());
        assert!(signal.upgrade().is_none(), "something of the connection is left");
    }

    #[test]
    fn a_stream_that_is_put_aside_has_its_connection_polled() {
        let body = [&[0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0][..], &[7; 30_000]].concat();
        let mut mux = Mux::new(Other::new(&body, false), Mode::Client);
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let mut cx = Context::from_waker(&waker);
        let Poll::Ready(Ok(stream)) = mux.poll_outbound(&mut cx) else { panic!("no stream") };
        assert!(mux.poll_inbound(&mut cx).is_pending());
        let before = wakes.0.load(Ordering::Relaxed);
        drop(stream);
        assert_eq!(mux.transport.lock().left(), 1);
        assert!(wakes.0.load(Ordering::Relaxed) > before, "nobody drops it");
    }

    #[test]
    fn an_other_end_that_stays_amid_a_body_makes_nobody_keep_what_was_dropped() {
        let mut mux = Mux::new(Other::new(&[], false), Mode::Client);
        mux.transport.lock().inner_mut().takes = true;
        let waker = noop_waker();
        let mut cx = Context::from_waker(&waker);
        for n in 0..1000_u32 {
            let Poll::Ready(Ok(stream)) = mux.poll_outbound(&mut cx) else { panic!("no stream") };
            let id = (2 * n + 1).to_be_bytes();
            // Acknowledged, with more short pieces than are given on at once.
            let header = |length: u16| {
                let length = u32::from(length).to_be_bytes();
                [&[0, 0, 0, 2][..], &id, &length].concat()
            };
            let mut bytes = if n == 0 { Vec::new() } else { vec![7] };
            for _ in 0..33 {
                bytes.extend_from_slice(&[&header(1)[..], &[7]].concat());
            }
            bytes.extend_from_slice(&[&header(4095)[..], &[7; 4095]].concat());
            // Of a body for a stream that nobody has opened the only byte is held back.
            bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1]);
            mux.transport.lock().inner_mut().bytes = bytes;
            assert!(mux.poll_inbound(&mut cx).is_pending());
            if n == 0 {
                assert!(mux.transport.lock().kept().1 > 4095, "nothing was kept");
            }
            drop(stream);
            assert!(mux.poll_inbound(&mut cx).is_pending());
        }
        assert_eq!(mux.transport.lock().kept(), (YAMUX_STREAMS, 0));
    }
}
