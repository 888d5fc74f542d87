//! Chunk sources: verified chunks of a RAM image, and a way to find the image of a golden.

use std::{sync::Arc, time::Duration};

/// Error of a chunk or an image that could not be had. The message is shown to the owner of the
/// session as it is.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    /// Message that says what was tried and what went wrong, in one line.
    pub message: String,
}

impl SourceError {
    /// Creates an error that carries `message`.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

/// Cost of reading one chunk.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReadReport {
    /// Time spent on verifying the chunk's content.
    pub hash: Duration,
}

/// The RAM image of one golden, as equal chunks. Chunk `i` covers the bytes from
/// `i * chunk_size()`; the last one may be shorter.
pub trait ChunkSource: Send + Sync {
    /// Returns the number of bytes of the image: a non-zero multiple of 4096.
    fn len(&self) -> u64;

    /// Returns whether the image has no byte. The pager refuses such an image.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of bytes of a chunk: a power of two from 4096 to 2 MiB.
    fn chunk_size(&self) -> usize;

    /// Returns whether chunk `i` is known to be all zeros, so that reading it is needless. Must be
    /// cheap: it is asked on the fault path.
    fn is_zero(&self, i: usize) -> bool;

    /// Reads chunk `i` into `buf`, whose length is the chunk's. Returns success only when the
    /// content has been verified: the pager puts what it gets in front of guests.
    ///
    /// # Errors
    /// The chunk could not be read or its content is not what the image's manifest says.
    fn read(&self, i: usize, buf: &mut [u8]) -> Result<ReadReport, SourceError>;

    /// Tells which chunks will be read soon, in this order, so that a source on a disk can have
    /// them fetched in large pieces. It is advice: every chunk is read with [`ChunkSource::read`]
    /// all the same. Must not wait for the disk, for faults may wait for the thread that calls it.
    fn will_read(&self, _chunks: &[u32]) {}
}

/// An image found by a [`SourceResolver`].
pub struct OpenedSource {
    /// Content identity of the RAM image. The same golden name with another key is another image;
    /// equal keys share one page cache.
    pub key: String,
    /// Source of the chunks.
    pub source: Arc<dyn ChunkSource>,
    /// Chunk indexes touched by a recorded session, in order of first touch; prefetched in that
    /// order. May be empty.
    pub working_set: Vec<u32>,
}

impl std::fmt::Debug for OpenedSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = f.debug_struct("OpenedSource");
        text.field("key", &self.key).field("working_set", &self.working_set).finish_non_exhaustive()
    }
}

/// Resolver that finds the RAM image of a golden by name. It is called on every attach, on the
/// pager's control thread, so it should answer from memory when nothing changed.
pub trait SourceResolver: Send + Sync {
    /// Opens the RAM image of `golden`.
    ///
    /// # Errors
    /// The golden is unknown or its image cannot be opened.
    fn open(&self, golden: &str) -> Result<OpenedSource, SourceError>;
}
