//! Changes below a path of the guest.

use super::client::RequestStream;
use super::{Channel, ChannelError, SetAside};
use mayfly_protocol::{ByteString, MAX_WATCH_BATCH, Request, WatchEvent, WatchKind};
use std::collections::VecDeque;

/// Longest path of an event, in bytes: a directory that Linux can watch (`PATH_MAX`), and a name in
/// it (`NAME_MAX`, and the slash).
const PATH_LIMIT: usize = 4096 + 256;

/// Bytes of a frame's events for which there is always room.
const HELD_LEAST: usize = 32 << 10;

impl Channel {
    /// Watches a directory or a file; with `recursive` also all directories below, those made later
    /// too. Returns when the watch is in place.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when there is no such path, or there are more directories than the
    /// guest can watch; [`ChannelError::NoBuffers`] where not so much may be held.
    pub async fn watch(
        &self,
        path: impl Into<ByteString>,
        recursive: bool,
    ) -> Result<Watch, ChannelError> {
        let held = self.driver().set_aside(HELD_LEAST)?;
        let mut stream = self.send(&Request::Watch { path: path.into(), recursive }).await?;
        stream.reply::<()>().await?;
        Ok(Watch { stream, events: VecDeque::new(), more: None, ended: false, _held: held })
    }
}

/// A watch in the guest, ended by dropping it. Events that nobody takes wait in the guest; when its
/// bounded queue is full, the next event is [`mayfly_protocol::WatchKind::Overflow`]. It is so,
/// too, when the events of a frame take more than may be held for the guest.
#[derive(Debug)]
pub struct Watch {
    stream: RequestStream,
    events: VecDeque<WatchEvent>,
    /// What `events` take beyond [`HELD_LEAST`].
    more: Option<SetAside>,
    ended: bool,
    _held: Option<SetAside>,
}

impl Watch {
    /// Waits for the next event, `None` when the watched path is gone. Cancel-safe.
    ///
    /// # Errors
    /// [`ChannelError`]; nothing follows. [`ChannelError::Protocol`] for a path that is not below
    /// the watched one, or longer than any of Linux.
    pub async fn next(&mut self) -> Result<Option<WatchEvent>, ChannelError> {
        if self.events.is_empty() && !self.ended {
            self.more = None;
            let batch = self.stream.reply::<Vec<WatchEvent>>().await.and_then(checked);
            self.ended = !matches!(&batch, Ok(events) if !events.is_empty());
            self.events = self.held(batch?);
        }
        Ok(self.events.pop_front())
    }

    /// Counts the events of a frame; in their place, where there is no room, that they are lost.
    fn held(&mut self, batch: Vec<WatchEvent>) -> VecDeque<WatchEvent> {
        let bytes = batch.iter().map(bytes_of).sum::<usize>();
        if let Ok(more) = self.stream.driver.set_aside(bytes.saturating_sub(HELD_LEAST)) {
            self.more = more;
            return batch.into();
        }
        let path = ByteString::default();
        [WatchEvent { kind: WatchKind::Overflow, path, from: None }].into()
    }
}

fn checked(batch: Vec<WatchEvent>) -> Result<Vec<WatchEvent>, ChannelError> {
    if batch.len() > MAX_WATCH_BATCH {
        return Err(ChannelError::Protocol { reason: format!("{} events at once", batch.len()) });
    }
    if let Some(length) = batch.iter().flat_map(lengths).find(|length| *length > PATH_LIMIT) {
        let reason = format!("an event of a path of {length} bytes");
        return Err(ChannelError::Protocol { reason });
    }
    match batch.iter().find(|event| !event.is_contained()) {
        Some(bad) => Err(ChannelError::Protocol {
            reason: format!("an event of {:?} from {:?}", bad.path, bad.from),
        }),
        None => Ok(batch),
    }
}

/// The lengths of the paths of an event.
fn lengths(event: &WatchEvent) -> impl Iterator<Item = usize> {
    std::iter::once(&event.path).chain(&event.from).map(|path| path.as_bytes().len())
}

/// Bytes that an event takes in memory.
fn bytes_of(event: &WatchEvent) -> usize {
    size_of::<WatchEvent>() + lengths(event).sum::<usize>()
}
