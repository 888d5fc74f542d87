//! Changes below a path of the guest.

use super::client::RequestStream;
use super::files::answered_soon;
use super::{Channel, ChannelError, SetAside};
use futures::io::AsyncWriteExt;
use mayfly_protocol::{
    FilePath, MAX_WATCH_BATCH, Request, WatchEvent, WatchInput, WatchKind, WatchOutput,
    encode_frame,
};
use std::collections::VecDeque;

/// Longest path of an event, in bytes: a directory that Linux can watch (`PATH_MAX`), and a name in
/// it (`NAME_MAX`, and the slash).
const PATH_LIMIT: usize = 4096 + 256;

/// Bytes of a frame's events for which there is always room.
const HELD_LEAST: usize = 32 << 10;

/// Events that [`Watch::flush`] gives at most: four times what a guest's kernel keeps by default
/// (`fs.inotify.max_queued_events`).
const FLUSH_LIMIT: usize = 65_536;

impl Channel {
    /// Watches a directory or a file; with `recursive` also all directories below, those made later
    /// too. Returns when the watch is in place.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when there is no such path, or there are more directories than the
    /// guest can watch; [`ChannelError::NoBuffers`] where not so much may be held.
    pub async fn watch(
        &self,
        path: impl Into<FilePath>,
        recursive: bool,
    ) -> Result<Watch, ChannelError> {
        let held = self.driver().set_aside(HELD_LEAST)?;
        let mut stream = self.send(&Request::Watch { at: path.into(), recursive }).await?;
        answered_soon(stream.reply::<()>()).await?;
        Ok(Watch {
            stream,
            unsent: Vec::new(),
            asked: 0,
            events: VecDeque::new(),
            more: Vec::new(),
            ended: false,
            _held: held,
        })
    }
}

/// A watch in the guest, ended by dropping it. Events that nobody takes wait in the guest; when its
/// bounded queue is full, the next event is [`mayfly_protocol::WatchKind::Overflow`]. It is so,
/// too, when the events of a frame take more than may be held for the guest.
#[derive(Debug)]
pub struct Watch {
    stream: RequestStream,
    /// What the guest was not sent yet.
    unsent: Vec<u8>,
    /// The number of the last sync.
    asked: u64,
    events: VecDeque<WatchEvent>,
    /// What `events` take beyond [`HELD_LEAST`].
    more: Vec<SetAside>,
    ended: bool,
    _held: Option<SetAside>,
}

/// Events that [`Watch::flush`] has read, which count as held for the guest until this is dropped.
#[derive(Debug)]
pub struct Flushed {
    /// The events, in their order.
    pub events: Vec<WatchEvent>,
    /// Whether the watched path is gone: nothing follows.
    pub ended: bool,
    _held: Vec<SetAside>,
}

impl Watch {
    /// Waits for the next event, `None` when the watched path is gone. Cancel-safe.
    ///
    /// # Errors
    /// [`ChannelError`]; nothing follows. [`ChannelError::Protocol`] for a path that is not below
    /// the watched one, or longer than any of Linux.
    pub async fn next(&mut self) -> Result<Option<WatchEvent>, ChannelError> {
        while self.events.is_empty() && !self.ended {
            self.more.clear();
            // The answer to a flush that was given up says nothing.
            if let WatchOutput::Events(batch) = self.output().await? {
                self.keep(batch);
            }
        }
        Ok(self.events.pop_front())
    }

    /// Takes all events of what has happened by now: what a write has caused that was answered
    /// before is among them. Cancel-safe: what a flush has read that is dropped comes with the next
    /// one.
    ///
    /// Beyond 65,536 events, or what may be held for the guest, the last event is
    /// [`WatchKind::Overflow`].
    ///
    /// # Errors
    /// As [`Watch::next`], and [`ChannelError::NoAnswer`].
    pub async fn flush(&mut self) -> Result<Flushed, ChannelError> {
        if !self.ended {
            self.asked += 1;
            self.unsent.extend(encode_frame(&WatchInput::Sync(self.asked))?);
            answered_soon(self.send_unsent()).await?;
        }
        // Together, as a guest may have no end of events. What was read is kept.
        answered_soon(self.until_synced()).await?;
        Ok(Flushed {
            events: std::mem::take(&mut self.events).into(),
            ended: self.ended,
            _held: std::mem::take(&mut self.more),
        })
    }

    async fn until_synced(&mut self) -> Result<(), ChannelError> {
        while !self.ended {
            match self.output().await? {
                WatchOutput::Events(batch) => self.keep(batch),
                WatchOutput::Synced(number) if number == self.asked => break,
                _ => {}
            }
        }
        Ok(())
    }

    /// Sends what is to be sent; what is left of it when this is dropped is sent the next time.
    async fn send_unsent(&mut self) -> Result<(), ChannelError> {
        while !self.unsent.is_empty() {
            match self.stream.reader.get_mut().write(&self.unsent).await {
                Ok(0) => return Err(std::io::Error::from(std::io::ErrorKind::WriteZero).into()),
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) => return Err(self.stream.driver.explain(error.into())),
            }
        }
        Ok(())
    }

    /// The next frame, checked. After the last one, and after an error, the watch has ended.
    async fn output(&mut self) -> Result<WatchOutput, ChannelError> {
        let output = self.stream.next::<WatchOutput>().await.and_then(checked);
        self.ended = !matches!(&output, Ok(WatchOutput::Events(_) | WatchOutput::Synced(_)));
        match output? {
            WatchOutput::Failed(error) => Err(error.into()),
            other => Ok(other),
        }
    }

    /// Keeps the events of a frame; in their place, where there is no room, that they are lost.
    fn keep(&mut self, batch: Vec<WatchEvent>) {
        let bytes = batch.iter().map(bytes_of).sum::<usize>();
        // There is always room for the first ones.
        let bytes = if self.events.is_empty() { bytes.saturating_sub(HELD_LEAST) } else { bytes };
        match self.stream.driver.set_aside(bytes) {
            Ok(more) if self.events.len() + batch.len() <= FLUSH_LIMIT => {
                self.more.extend(more);
                self.events.extend(batch);
            }
            _ if self.events.back().is_some_and(|last| last.kind == WatchKind::Overflow) => {}
            _ => self.events.push_back(WatchEvent::new(WatchKind::Overflow, "")),
        }
    }
}

fn checked(output: WatchOutput) -> Result<WatchOutput, ChannelError> {
    let WatchOutput::Events(batch) = &output else { return Ok(output) };
    if !(1..=MAX_WATCH_BATCH).contains(&batch.len()) {
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
        None => Ok(output),
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
