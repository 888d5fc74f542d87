//! Reading and hashing everything a golden image consists of.

use crate::{
    BadChunk, CHUNK_SIZE, Error, GoldenName, Progress, Result, Store, StreamKind, StreamReader,
};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;

const WORKERS: usize = 2;

/// Findings of [`Store::verify`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Chunks that are not zeros, all of them read and hashed.
    pub chunks: u64,
    /// Uncompressed bytes of those.
    pub bytes: u64,
    /// The bad ones, ordered by stream and index; empty for a good golden image.
    pub bad: Vec<BadChunk>,
}

impl VerifyReport {
    /// Returns whether nothing bad was found.
    pub fn is_ok(&self) -> bool {
        self.bad.is_empty()
    }
}

impl Store {
    /// Reads and hashes every chunk of golden image `name`, and goes on after bad ones.
    ///
    /// # Errors
    /// As [`Store::manifest`]; [`Error::DamagedGolden`] when a chunk table is damaged;
    /// [`Error::Cancelled`] once `cancel` is true. Bad chunks are no error, but in the report.
    pub fn verify(
        &self,
        name: &str,
        progress: &mut dyn FnMut(Progress),
        cancel: &AtomicBool,
    ) -> Result<VerifyReport> {
        let name = GoldenName::new(name)?;
        let readers = self.verify_readers(&name)?;
        let todo: Vec<(&StreamReader, usize)> = readers
            .iter()
            .flat_map(|r| (0..r.chunk_count()).filter(|i| !r.is_zero(*i)).map(move |i| (r, i)))
            .collect();
        let total_bytes = todo.iter().map(|(r, i)| r.chunk_len(*i) as u64).sum();
        let mut report = VerifyReport::default();
        let next = AtomicUsize::new(0);
        let (sender, receiver) = sync_channel(64);
        thread::scope(|scope| {
            for _ in 0..WORKERS {
                let (sender, todo, next) = (sender.clone(), &todo, &next);
                scope.spawn(move || {
                    let mut buffer = vec![0; CHUNK_SIZE];
                    while let Some((reader, index)) = todo.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        let result = reader.read_chunk(*index, &mut buffer);
                        if sender.send((reader.chunk_len(*index) as u64, result)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            for (bytes, result) in receiver {
                if cancel.load(Ordering::Relaxed) {
                    return Err(Error::Cancelled);
                }
                match result {
                    Ok(_) => {}
                    Err(Error::BadChunk(bad)) => report.bad.push(*bad),
                    Err(other) => return Err(other),
                }
                report.chunks += 1;
                report.bytes += bytes;
                progress(Progress { done_bytes: report.bytes, total_bytes });
            }
            Ok(())
        })?;
        report.bad.sort_by_key(|b| (b.stream, b.index));
        Ok(report)
    }

    /// Readers of all streams of one and the same version of the golden image.
    fn verify_readers(&self, name: &GoldenName) -> Result<Vec<StreamReader>> {
        let mut tries = 1;
        loop {
            let manifest = self.manifest(name)?;
            // A missing pack is retried on a newer view first; what is still missing then is
            // reported, chunk by chunk.
            let open = |kind| match self.reader_unchecked(&manifest, kind, |r| {
                r.misses_packs()
                    .filter(|_| self.db.is_read_only())
                    .map_or(Ok(()), |b| Err(Error::BadChunk(Box::new(b))))
            }) {
                Err(Error::BadChunk(_)) => self.reader_unchecked(&manifest, kind, |_| Ok(())),
                other => other,
            };
            match StreamKind::ALL.into_iter().map(open).collect() {
                // Replaced between reading the manifest and the table.
                Err(Error::Stale { .. }) if tries < 5 => {
                    self.refresh()?;
                    tries += 1;
                }
                other => return other,
            }
        }
    }
}
