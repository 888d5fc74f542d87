//! Readers of one running command: each gets all that the command writes from some moment on, in
//! order, and the command waits for the slowest.

use std::sync::Arc;

use bytes::Bytes;
use mayfly_guest::channel::{ExitStatus, MAX_CHUNK};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::execs::{ExecState, OutputStream};
use super::held::Full;
use super::shares::{Account, Share};

/// Bytes of output that may wait for one reader; then the command waits for it.
const WINDOW: usize = 2 * MAX_CHUNK;
/// Pieces that may wait for one reader, however short.
const DEPTH: usize = 64;
/// What a reader may hold: the bytes, and what the pieces take beside them.
const HELD: usize = WINDOW + DEPTH * 128;

/// What a reader of a command gets. The last two end it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Bytes of stdout, or of its terminal; 1 byte to 64 KiB.
    Stdout(Bytes),
    /// Bytes of stderr; 1 byte to 64 KiB.
    Stderr(Bytes),
    /// End of the command; nothing follows.
    Exited(ExitStatus),
    /// Loss of the command, with the reason; nothing follows.
    Lost(Arc<str>),
}

/// A piece of output, and its part of [`WINDOW`].
type Piece = (OutputStream, Bytes, OwnedSemaphorePermit);

/// Reader of a running command. Dropping it stops neither the command nor other readers.
///
/// While it is not read, at most 128 KiB wait for it; then the command waits, as with a pipe.
#[derive(Debug)]
pub struct Subscription {
    pieces: mpsc::Receiver<Piece>,
    state: watch::Receiver<ExecState>,
    ended: bool,
    _share: Share,
}

impl Subscription {
    /// Waits for what comes next; `None` after the end. Cancel-safe.
    pub async fn next(&mut self) -> Option<Told> {
        if self.ended {
            return None;
        }
        if let Some((stream, bytes, _room)) = self.pieces.recv().await {
            return Some(match stream {
                OutputStream::Stdout => Told::Stdout(bytes),
                OutputStream::Stderr => Told::Stderr(bytes),
            });
        }
        self.ended = true;
        Some(match &*self.state.borrow() {
            ExecState::Exited(status) => Told::Exited(*status),
            ExecState::Lost(reason) => Told::Lost(reason.clone()),
            ExecState::Running => Told::Lost("nobody reads its output any more".into()),
        })
    }
}

/// The readers of a command; `None` once it has ended.
#[derive(Debug)]
pub(super) struct Readers(Mutex<Option<Vec<Arc<Reader>>>>);

impl Default for Readers {
    fn default() -> Self {
        Self(Mutex::new(Some(Vec::new())))
    }
}

#[derive(Debug)]
struct Reader {
    pieces: mpsc::Sender<Piece>,
    room: Arc<Semaphore>,
}

impl Readers {
    /// Adds a reader of what comes from now on; `state` says how the command ends.
    ///
    /// # Errors
    /// [`Full`].
    pub fn add(
        &self,
        account: &Account,
        state: watch::Receiver<ExecState>,
    ) -> Result<Subscription, Full> {
        let share = account.take(HELD).ok_or(Full)?;
        let (sender, pieces) = mpsc::channel(DEPTH);
        if let Some(readers) = &mut *self.0.lock() {
            readers.retain(|reader| !reader.pieces.is_closed());
            let room = Arc::new(Semaphore::new(WINDOW));
            readers.push(Arc::new(Reader { pieces: sender, room }));
        }
        Ok(Subscription { pieces, state, ended: false, _share: share })
    }

    /// Gives each reader a piece of at most [`MAX_CHUNK`] bytes; waits for the slowest.
    pub async fn tell(&self, stream: OutputStream, bytes: &Bytes) {
        let readers = match &*self.0.lock() {
            Some(readers) if !readers.is_empty() => readers.clone(),
            _ => return,
        };
        let mut gone = false;
        for reader in readers {
            gone |= !reader.tell(stream, bytes).await;
        }
        if gone && let Some(readers) = &mut *self.0.lock() {
            readers.retain(|reader| !reader.pieces.is_closed());
        }
    }

    /// Nothing follows: readers get what waits for them, and then the end.
    pub fn end(&self) {
        *self.0.lock() = None;
    }
}

impl Reader {
    /// Returns whether the reader is still there.
    async fn tell(&self, stream: OutputStream, bytes: &Bytes) -> bool {
        let size = u32::try_from(bytes.len().min(WINDOW)).unwrap_or(u32::MAX);
        let room = tokio::select! {
            // Nobody closes the semaphore.
            room = self.room.clone().acquire_many_owned(size) => room,
            () = self.pieces.closed() => return false,
        };
        match room {
            Ok(room) => self.pieces.send((stream, bytes.clone(), room)).await.is_ok(),
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use mayfly_api::TenantName;

    use super::*;
    use crate::service::shares::Shares;

    fn account(bytes: usize) -> Account {
        Shares::new(bytes, []).account(&TenantName::local(), None)
    }

    /// Tells of as many pieces as nobody has to be waited for; the number of them.
    fn fill(readers: &Readers, length: usize) -> usize {
        let piece = Bytes::from(vec![7; length]);
        // Beyond what a task may do without a pause (tokio::task::coop).
        let tell = || tokio::task::unconstrained(readers.tell(OutputStream::Stdout, &piece));
        let told = || tell().now_or_never().is_some();
        (0..10_000).take_while(|_| told()).count()
    }

    #[tokio::test]
    async fn every_reader_gets_everything_from_its_beginning_and_the_end() {
        let (readers, account) = (Arc::new(Readers::default()), account(1 << 20));
        let state = watch::Sender::new(ExecState::Running);
        let mut first = readers.add(&account, state.subscribe()).unwrap();
        readers.tell(OutputStream::Stdout, &Bytes::from_static(b"1")).await;
        let mut second = readers.add(&account, state.subscribe()).unwrap();
        // More than may wait for either.
        let telling = readers.clone();
        let teller = tokio::spawn(async move {
            for n in 0..10u8 {
                telling.tell(OutputStream::Stderr, &Bytes::from(vec![n; MAX_CHUNK])).await;
            }
            telling.end();
        });
        assert_eq!(first.next().await, Some(Told::Stdout(Bytes::from_static(b"1"))));
        for n in 0..10u8 {
            let piece = Some(Told::Stderr(Bytes::from(vec![n; MAX_CHUNK])));
            assert!(first.next().await == piece && second.next().await == piece, "{n}");
        }
        teller.await.unwrap();
        state.send_replace(ExecState::Exited(ExitStatus::Code(3)));
        let mut late = readers.add(&account, state.subscribe()).unwrap();
        for reader in [&mut first, &mut second, &mut late] {
            assert_eq!(reader.next().await, Some(Told::Exited(ExitStatus::Code(3))));
            assert_eq!(reader.next().await, None);
        }
        drop((first, second, late));
        assert_eq!(account.held(), 0);
    }

    #[tokio::test]
    async fn a_slow_reader_is_waited_for_in_bounded_memory_and_a_dropped_one_is_not() {
        let (readers, account) = (Readers::default(), account(2 * HELD));
        let state = watch::Sender::new(ExecState::Running);
        assert_eq!(fill(&readers, 1), 10_000, "nobody is waited for");
        for (length, most) in [(1, DEPTH), (1000, DEPTH), (MAX_CHUNK, 2)] {
            let mut reader = readers.add(&account, state.subscribe()).unwrap();
            assert_eq!(fill(&readers, length), most.min(WINDOW / length));
            // Each that is read makes room for one more.
            assert!(matches!(reader.next().await, Some(Told::Stdout(_))));
            assert_eq!(fill(&readers, length), 1);
            let piece = Bytes::from(vec![7; length]);
            let mut waits = Box::pin(readers.tell(OutputStream::Stdout, &piece));
            assert!(futures::poll!(&mut waits).is_pending());
            drop(reader);
            waits.await;
            assert_eq!(fill(&readers, length), 10_000);
        }
        assert_eq!(account.held(), 0);
        let _most: Vec<_> =
            (0..2).map(|_| readers.add(&account, state.subscribe()).unwrap()).collect();
        assert_eq!(readers.add(&account, state.subscribe()).unwrap_err(), Full);
    }
}
