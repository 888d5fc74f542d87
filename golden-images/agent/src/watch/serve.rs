//! The stream of Watch.

use super::tree::Tree;
use crate::wire::{Event, Wire};
use mayfly_protocol::{ByteString, FrameError, GuestError, MAX_WATCH_BATCH, Reply, WatchEvent};
use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Serves a Watch stream until the engine ends it or the watched path is gone.
///
/// While the engine does not read, events stay in the kernel's queue, whose overflow is an event of
/// its own.
pub async fn run(mut wire: Wire, path: &ByteString, recursive: bool) -> Result<(), FrameError> {
    let placed = Tree::watch(path.as_path(), recursive).and_then(|tree| {
        // SAFETY: a Tree owns one inotify descriptor for its whole life, and the AsyncFd keeps the
        // Tree.
        Ok(unsafe { AsyncFd::register_with_interest(tree, Interest::READABLE) }?)
    });
    let mut tree = match placed {
        Ok(tree) => tree,
        Err(error) => {
            wire.send(&Reply::<()>::Err(GuestError::io(format_args!("watch {path}"), &error)))?;
            return wire.close().await;
        }
    };
    wire.send(&Reply::<()>::Ok(()))?;
    loop {
        tokio::select! {
            event = wire.event() => if let Event::Input(None) = event? {
                return Ok(());
            },
            ready = tree.readable_mut(), if wire.backlog() == 0 => {
                let mut ready = ready?;
                match ready.get_inner_mut().read() {
                    Err(Errno::EAGAIN) => ready.clear_ready(),
                    Ok(events) => {
                        let over = ready.get_inner().is_over();
                        send(&mut wire, events)?;
                        if over {
                            wire.send(&Reply::Ok(Vec::<WatchEvent>::new()))?;
                            return wire.close().await;
                        }
                    }
                    Err(error) => {
                        let error = GuestError::io(format_args!("watch {path}"), &error.into());
                        wire.send(&Reply::<Vec<WatchEvent>>::Err(error))?;
                        return wire.close().await;
                    }
                }
            }
        }
    }
}

fn send(wire: &mut Wire, mut events: Vec<WatchEvent>) -> Result<(), FrameError> {
    while !events.is_empty() {
        let rest = events.split_off(events.len().min(MAX_WATCH_BATCH));
        wire.send(&Reply::Ok(std::mem::replace(&mut events, rest)))?;
    }
    Ok(())
}
