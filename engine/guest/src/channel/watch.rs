//! Changes below a path of the guest.

use super::client::RequestStream;
use super::{Channel, ChannelError};
use mayfly_protocol::{ByteString, MAX_WATCH_BATCH, Request, WatchEvent};
use std::collections::VecDeque;

impl Channel {
    /// Watches a directory or a file; with `recursive` also all directories below, those made later
    /// too. Returns when the watch is in place.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when there is no such path, or there are more directories than the
    /// guest can watch.
    pub async fn watch(
        &self,
        path: impl Into<ByteString>,
        recursive: bool,
    ) -> Result<Watch, ChannelError> {
        let mut stream = self.send(&Request::Watch { path: path.into(), recursive }).await?;
        stream.reply::<()>().await?;
        Ok(Watch { stream, events: VecDeque::new(), ended: false })
    }
}

/// A watch in the guest, ended by dropping it. Events that nobody takes wait in the guest; when its
/// bounded queue is full, the next event is [`mayfly_protocol::WatchKind::Overflow`].
#[derive(Debug)]
pub struct Watch {
    stream: RequestStream,
    events: VecDeque<WatchEvent>,
    ended: bool,
}

impl Watch {
    /// Waits for the next event, `None` when the watched path is gone. Cancel-safe.
    ///
    /// # Errors
    /// [`ChannelError`]; nothing follows. [`ChannelError::Protocol`] for a path that is not below
    /// the watched one.
    pub async fn next(&mut self) -> Result<Option<WatchEvent>, ChannelError> {
        if self.events.is_empty() && !self.ended {
            let batch = self.stream.reply::<Vec<WatchEvent>>().await.and_then(checked);
            self.ended = !matches!(&batch, Ok(events) if !events.is_empty());
            self.events = batch?.into();
        }
        Ok(self.events.pop_front())
    }
}

fn checked(batch: Vec<WatchEvent>) -> Result<Vec<WatchEvent>, ChannelError> {
    if batch.len() > MAX_WATCH_BATCH {
        return Err(ChannelError::Protocol { reason: format!("{} events at once", batch.len()) });
    }
    match batch.iter().find(|event| !event.is_contained()) {
        Some(bad) => Err(ChannelError::Protocol {
            reason: format!("an event of {:?} from {:?}", bad.path, bad.from),
        }),
        None => Ok(batch),
    }
}
