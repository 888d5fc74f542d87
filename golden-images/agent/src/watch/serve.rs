//! The stream of Watch.

use super::tree::{Queue, Tree};
use crate::context::Context;
use crate::files;
use crate::threads::Work;
use crate::wire::{Event, Wire};
use mayfly_protocol::{
    FilePath, FrameError, GuestError, MAX_WATCH_BATCH, Reply, WatchEvent, WatchInput, WatchOutput,
    decode_frame,
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Reads for one answer to a sync at most. A read takes 15 events at least, so that these are more
/// than the kernel keeps (`fs.inotify.max_queued_events`), also while more happens all the time.
const READS: usize = 2048;

/// Serves a Watch stream until the engine ends it or the watched path is gone.
///
/// While the engine does not read, events stay in the kernel's queue, whose overflow is an event of
/// its own.
pub async fn run(
    mut wire: Wire,
    path: FilePath,
    recursive: bool,
    context: &Context,
) -> Result<(), FrameError> {
    let shown = path.path.clone();
    let failed = move |error: std::io::Error| GuestError::io(format_args!("watch {shown}"), &error);
    let placed = {
        let failed = failed.clone();
        files::at(context, Work::Read, path, move |place| {
            Tree::watch(place, recursive).map_err(&failed)
        })
    };
    let placed = placed.await.and_then(|tree| {
        // SAFETY: a Queue has one descriptor for its whole life, and the AsyncFd keeps it.
        let queue = unsafe { AsyncFd::register_with_interest(tree.queue(), Interest::READABLE) };
        Ok((tree, queue.map_err(|error| failed(error.into()))?))
    });
    let (mut tree, queue) = match placed {
        Ok(placed) => placed,
        Err(error) => {
            wire.send(&Reply::<()>::Err(error))?;
            return wire.close().await;
        }
    };
    wire.send(&Reply::<()>::Ok(()))?;
    loop {
        let sync = tokio::select! {
            event = wire.event() => match event? {
                Event::Input(None) => return Ok(()),
                Event::Input(Some(frame)) => {
                    let WatchInput::Sync(number) = decode_frame(&frame)?;
                    Some(number)
                }
                Event::Drained => continue,
            },
            ready = readable(&queue), if wire.backlog() == 0 => {
                ready.map_err(FrameError::Io)?;
                None
            }
        };
        for _ in 0..if sync.is_some() { READS } else { 1 } {
            let read = context.threads.run(Work::Read, move || {
                let place = tree.place().clone();
                place.act(|| {
                    let events = tree.read();
                    Ok((tree, events))
                })
            });
            let (back, events) = match read.await {
                Ok(read) => read,
                Err(error) => {
                    wire.send(&WatchOutput::Failed(error))?;
                    return wire.close().await;
                }
            };
            tree = back;
            match events {
                Err(Errno::EAGAIN) => break,
                Ok(events) => send(&mut wire, events)?,
                Err(error) => {
                    wire.send(&WatchOutput::Failed(failed(error.into())))?;
                    return wire.close().await;
                }
            }
            if tree.is_over() {
                wire.send(&WatchOutput::Gone)?;
                return wire.close().await;
            }
            wire.drain().await?;
        }
        if let Some(number) = sync {
            wire.send(&WatchOutput::Synced(number))?;
        }
    }
}

/// Waits until there may be something to read, which the reader finds out.
async fn readable(queue: &AsyncFd<Queue>) -> std::io::Result<()> {
    loop {
        let mut ready = queue.readable().await?;
        let mut waiting = [PollFd::new(queue.get_ref().as_fd(), PollFlags::POLLIN)];
        if poll(&mut waiting, PollTimeout::ZERO)? > 0 {
            return Ok(());
        }
        ready.clear_ready();
    }
}

fn send(wire: &mut Wire, mut events: Vec<WatchEvent>) -> Result<(), FrameError> {
    while !events.is_empty() {
        let rest = events.split_off(events.len().min(MAX_WATCH_BATCH));
        wire.send(&WatchOutput::Events(std::mem::replace(&mut events, rest)))?;
    }
    Ok(())
}
