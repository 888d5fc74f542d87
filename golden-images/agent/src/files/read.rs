//! The stream of ReadFile.

use super::stat::metadata_of;
use super::{Place, at};
use crate::context::Context;
use crate::threads::Work;
use crate::wire::{Wire, invalid, reply};
use mayfly_protocol::{FileChunk, FilePath, FrameError, MAX_CHUNK, Metadata, Reply};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

/// Bytes that a thread reads at a time.
const PIECE: u64 = 4 * MAX_CHUNK as u64;

/// Serves a ReadFile stream.
pub async fn read(
    mut wire: Wire,
    path: FilePath,
    offset: u64,
    limit: u64,
    context: &Context,
) -> Result<(), FrameError> {
    let shown = path.path.clone();
    let opened = at(context, Work::Read, path, move |place| open(place, offset)).await;
    let (mut file, metadata) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            wire.send(&Reply::<Metadata>::Err(error))?;
            return wire.close().await;
        }
    };
    wire.send(&Reply::Ok(metadata))?;
    let mut left = limit;
    loop {
        let want = left.min(PIECE);
        let what = shown.clone();
        let piece = context.threads.run(Work::Read, move || {
            let bytes = reply(format_args!("read {what}"), read_piece(&mut file, want))?;
            // At the end it is closed here: close(2) may wait for its file system, too.
            Ok(((!bytes.is_empty()).then_some(file), bytes))
        });
        // The piece before leaves meanwhile.
        let (piece, drained) = tokio::join!(piece, wire.drain());
        drained?;
        match piece {
            Ok((None, _)) => {
                wire.send(&FileChunk::End)?;
                return wire.close().await;
            }
            Ok((Some(back), bytes)) => {
                file = back;
                left -= bytes.len() as u64;
                for chunk in bytes.chunks(MAX_CHUNK) {
                    wire.send(&FileChunk::Data(chunk.to_vec()))?;
                }
            }
            Err(error) => {
                wire.send(&FileChunk::Failed(error))?;
                return wire.close().await;
            }
        }
    }
}

/// What one read(2) of at most `want` bytes gives; nothing at the end.
fn read_piece(file: &mut File, want: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(want).unwrap_or(usize::MAX)];
    loop {
        match file.read(&mut bytes) {
            Ok(count) => {
                bytes.truncate(count);
                return Ok(bytes);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn open(place: &Place, offset: u64) -> Reply<(File, Metadata)> {
    let path = &place.path;
    // O_NONBLOCK: opening a named pipe would wait for its writer.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(place.as_path());
    let mut file = reply(format_args!("open {path}"), opened)?;
    let metadata = reply(format_args!("stat {path}"), file.metadata())?;
    if metadata.is_dir() {
        return Err(super::is_a_directory(path));
    }
    if !metadata.is_file() {
        return Err(invalid(format!("{path} is not a regular file")));
    }
    reply(format_args!("seek in {path}"), file.seek(SeekFrom::Start(offset)))?;
    Ok((file, metadata_of(path.clone(), &metadata)))
}
