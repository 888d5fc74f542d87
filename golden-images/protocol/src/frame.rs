//! Length-delimited frames: u32 little-endian length, then that many bytes.

use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadHalf, WriteHalf};
use serde::{Deserialize, Serialize};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// Upper bound of a frame's payload in bytes, but for the first one of a stream.
pub const MAX_FRAME: usize = 1 << 20;
/// Upper bound of the payload of the first frame of a stream, the request to the guest: all that
/// Linux starts a program with, 2 MiB (execve(2), a quarter of a stack of 8 MiB), and something
/// beside it.
pub const MAX_REQUEST: usize = (2 << 20) + (64 << 10);

const HEADER: usize = 4;
const READ_SIZE: usize = 16 * 1024;

/// Reason why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream under the frames failed.
    #[error("channel stream failed: {0}")]
    Io(io::Error),
    /// A length beyond what is possible here.
    #[error("frame of {length} bytes, the limit is {limit}")]
    TooLong {
        /// The length that was asked for.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// The stream ended inside a frame.
    #[error("stream ended inside a frame, {held} bytes into it")]
    Truncated {
        /// Bytes of the frame that had arrived.
        held: usize,
    },
    /// The payload is not what was expected here.
    #[error("malformed {what} frame: {reason}")]
    Malformed {
        /// The type that was expected.
        what: &'static str,
        /// Words of the decoder.
        reason: String,
    },
}

impl From<io::Error> for FrameError {
    fn from(cause: io::Error) -> Self {
        Self::Io(cause)
    }
}

/// Encodes `value` (postcard) as one frame.
///
/// # Errors
/// [`FrameError::TooLong`]; [`FrameError::Malformed`] when `value` cannot be encoded.
pub fn encode_frame<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, FrameError> {
    let mut out = Vec::new();
    append_frame(&mut out, value)?;
    Ok(out)
}

/// Encodes the first frame of a stream, which may have [`MAX_REQUEST`] bytes.
///
/// # Errors
/// As [`encode_frame`].
pub fn encode_request(request: &crate::Request) -> Result<Vec<u8>, FrameError> {
    let mut out = Vec::new();
    append_within(&mut out, request, MAX_REQUEST)?;
    Ok(out)
}

/// Appends `value` (postcard) as one frame to `out`; on an error `out` is as it was.
///
/// # Errors
/// As [`encode_frame`].
pub fn append_frame<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) -> Result<(), FrameError> {
    append_within(out, value, MAX_FRAME)
}

fn append_within<T: Serialize + ?Sized>(
    out: &mut Vec<u8>,
    value: &T,
    limit: usize,
) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER]);
    if let Err(error) = postcard::to_io(value, &mut *out) {
        out.truncate(start);
        return Err(FrameError::Malformed {
            what: std::any::type_name::<T>(),
            reason: error.to_string(),
        });
    }
    let length = out.len() - start - HEADER;
    let header = match u32::try_from(length) {
        Ok(header) if length <= limit => header,
        _ => {
            out.truncate(start);
            return Err(FrameError::TooLong { length, limit });
        }
    };
    out[start..start + HEADER].copy_from_slice(&header.to_le_bytes());
    Ok(())
}

/// Decodes a frame's payload; bytes left over are an error.
///
/// # Errors
/// [`FrameError::Malformed`].
pub fn decode_frame<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Result<T, FrameError> {
    let malformed =
        |reason: String| FrameError::Malformed { what: std::any::type_name::<T>(), reason };
    match postcard::take_from_bytes(payload) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(malformed(format!("{} bytes too many", rest.len()))),
        Err(error) => Err(malformed(error.to_string())),
    }
}

/// Returns where the first frame's payload lies in `buffer`, or `None` when it is not complete yet.
///
/// # Errors
/// [`FrameError::TooLong`] for a length beyond [`MAX_FRAME`].
pub fn split_frame(buffer: &[u8]) -> Result<Option<std::ops::Range<usize>>, FrameError> {
    split_within(buffer, MAX_FRAME)
}

fn split_within(buffer: &[u8], limit: usize) -> Result<Option<std::ops::Range<usize>>, FrameError> {
    let Some(length) = announced(buffer) else { return Ok(None) };
    if length > limit {
        return Err(FrameError::TooLong { length, limit });
    }
    let range = HEADER..HEADER + length;
    Ok((buffer.len() >= range.end).then_some(range))
}

/// The length that the first frame says it has.
fn announced(buffer: &[u8]) -> Option<usize> {
    buffer.first_chunk::<HEADER>().map(|header| u32::from_le_bytes(*header) as usize)
}

/// Reader of frames from a byte stream. A dropped read loses nothing: what had arrived stays here.
#[derive(Debug)]
pub struct FrameReader<R> {
    inner: R,
    buffer: Vec<u8>,
    consumed: usize,
    scratch: Box<[u8]>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Frames of `inner`.
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            buffer: Vec::new(),
            consumed: 0,
            scratch: vec![0; READ_SIZE].into_boxed_slice(),
        }
    }

    /// Returns the stream below; reading from it by hand would break the framing.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// Splits the stream below; bytes that were read ahead stay with the reader.
    pub fn split(self) -> (FrameReader<ReadHalf<R>>, WriteHalf<R>)
    where
        R: AsyncWrite,
    {
        let (inner, writer) = self.inner.split();
        (
            FrameReader {
                inner,
                buffer: self.buffer,
                consumed: self.consumed,
                scratch: self.scratch,
            },
            writer,
        )
    }

    /// Waits for the next frame's payload, `None` at the end of the stream.
    ///
    /// # Errors
    /// [`FrameError::TooLong`]; [`FrameError::Truncated`] when the stream ends within a frame;
    /// [`FrameError::Io`].
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Waits for the next frame decoded, `None` at the end of the stream.
    ///
    /// # Errors
    /// As [`next`](Self::next), and [`FrameError::Malformed`].
    pub async fn next_as<T: serde::de::DeserializeOwned>(
        &mut self,
    ) -> Result<Option<T>, FrameError> {
        self.next().await?.map(|payload| decode_frame(&payload)).transpose()
    }

    /// Waits for the first frame of a stream, which may have [`MAX_REQUEST`] bytes; `None` at the
    /// end of the stream.
    ///
    /// # Errors
    /// As [`next_as`](Self::next_as).
    pub async fn next_request(&mut self) -> Result<Option<crate::Request>, FrameError> {
        let frame = poll_fn(|cx| self.poll_next_within(cx, MAX_REQUEST)).await?;
        frame.map(|payload| decode_frame(&payload)).transpose()
    }

    /// Polls for the end of the stream, or its failure: true. False when something else has come,
    /// which stays for the next read.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.consumed < self.buffer.len() {
            return Poll::Ready(false);
        }
        let read = ready!(Pin::new(&mut self.inner).poll_read(cx, &mut self.scratch));
        let count = read.unwrap_or(0);
        self.buffer.extend_from_slice(&self.scratch[..count]);
        Poll::Ready(count == 0)
    }

    /// Polls for the next frame's payload, `None` at the end of the stream.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Vec<u8>>, FrameError>> {
        self.poll_next_within(cx, MAX_FRAME)
    }

    /// As [`poll_next`](Self::poll_next), for frames of at most `most` bytes: of a longer one no
    /// more is taken in.
    pub(crate) fn poll_next_within(
        &mut self,
        cx: &mut Context<'_>,
        most: usize,
    ) -> Poll<Result<Option<Vec<u8>>, FrameError>> {
        loop {
            let held = &self.buffer[self.consumed..];
            if let Some(range) = split_within(held, most)? {
                let payload = held[range.clone()].to_vec();
                self.consumed += range.end;
                if self.consumed == self.buffer.len() {
                    self.buffer.clear();
                    // One long frame must not take its memory for as long as the stream is there.
                    self.buffer.shrink_to(4 * READ_SIZE);
                    self.consumed = 0;
                }
                return Poll::Ready(Ok(Some(payload)));
            }
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
            match ready!(Pin::new(&mut self.inner).poll_read(cx, &mut self.scratch))? {
                0 if self.buffer.is_empty() => return Poll::Ready(Ok(None)),
                0 => return Poll::Ready(Err(FrameError::Truncated { held: self.buffer.len() })),
                count => self.buffer.extend_from_slice(&self.scratch[..count]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ExecInput, ExecOutput, FileChunk, Reply, Request};
    use futures::executor::block_on;
    use futures::io::Cursor;
    use proptest::prelude::*;

    #[test]
    fn a_frame_beyond_the_limit_is_refused_both_ways() {
        let mut out = b"before".to_vec();
        let chunk = FileChunk::Data(vec![0; MAX_FRAME]);
        assert!(matches!(append_frame(&mut out, &chunk), Err(FrameError::TooLong { .. })));
        assert_eq!(out, b"before");
        assert!(matches!(split_frame(&[0xff; 8]), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn a_request_may_be_longer_and_only_where_one_is_read() {
        let request = |bytes: usize| {
            let argv = vec!["x".repeat(bytes / 20); 20];
            Request::Exec(crate::ExecRequest::new(argv))
        };
        let longest = request(MAX_REQUEST - 200);
        let frame = encode_request(&longest).unwrap();
        assert!(matches!(encode_frame(&longest), Err(FrameError::TooLong { .. })));
        assert!(matches!(encode_request(&request(MAX_REQUEST)), Err(FrameError::TooLong { .. })));
        let mut reader = FrameReader::new(Cursor::new(frame.repeat(2)));
        assert_eq!(block_on(reader.next_request()).unwrap(), Some(longest));
        assert!(matches!(block_on(reader.next()), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn an_end_inside_a_frame_is_an_error() {
        let mut reader = FrameReader::new(Cursor::new(vec![9, 0, 0, 0, 1]));
        assert!(matches!(block_on(reader.next()), Err(FrameError::Truncated { held: 5 })));
    }

    #[test]
    fn the_end_is_seen_without_losing_a_frame() {
        let frame = encode_frame(&Request::Park).unwrap();
        let mut reader = FrameReader::new(Cursor::new(frame));
        assert!(!block_on(poll_fn(|cx| reader.poll_end(cx))));
        assert_eq!(block_on(reader.next_as::<Request>()).unwrap(), Some(Request::Park));
        assert!(block_on(poll_fn(|cx| reader.poll_end(cx))));
        assert!(block_on(reader.next()).unwrap().is_none());
    }

    #[test]
    fn left_over_bytes_are_an_error() {
        let mut payload = encode_frame(&Request::Park).unwrap().split_off(4);
        assert_eq!(decode_frame::<Request>(&payload).unwrap(), Request::Park);
        payload.push(0);
        assert!(matches!(decode_frame::<Request>(&payload), Err(FrameError::Malformed { .. })));
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..600), 0..20)
        ) {
            let mut wire = Vec::new();
            for payload in &payloads {
                append_frame(&mut wire, &ExecInput::Stdin(payload.clone())).unwrap();
            }
            let mut reader = FrameReader::new(Cursor::new(wire));
            for payload in payloads {
                let frame: ExecInput = block_on(reader.next_as()).unwrap().unwrap();
                prop_assert_eq!(frame, ExecInput::Stdin(payload));
            }
            prop_assert!(block_on(reader.next()).unwrap().is_none());
        }

        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = split_frame(&bytes);
            let _ = decode_frame::<Request>(&bytes);
            let _ = decode_frame::<ExecInput>(&bytes);
            let _ = decode_frame::<ExecOutput>(&bytes);
            let _ = decode_frame::<FileChunk>(&bytes);
            let _ = decode_frame::<Reply<crate::Health>>(&bytes);
            let _ = decode_frame::<Reply<Vec<crate::DirEntry>>>(&bytes);
            let _ = decode_frame::<Reply<crate::GuestStats>>(&bytes);
            let _ = decode_frame::<crate::WatchOutput>(&bytes);
            let _ = decode_frame::<Reply<crate::Metadata>>(&bytes);
            let _ = decode_frame::<Reply<crate::Written>>(&bytes);
            let _ = decode_frame::<Reply<crate::EgressPorts>>(&bytes);
            let _ = decode_frame::<crate::DnsMessage>(&bytes);
        }
    }
}
