//! The order in which chunks are filled that faults wait for: each session has a queue of its own,
//! and they are served in turn, one chunk each.
//!
//! So a session waits for one fill of each other session at most, however many chunks those have
//! asked for. A chunk that several sessions wait for is in the queue of each, and comes when the
//! first of them has its turn; where it is met afterwards, it is passed over.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;

use crate::session::{MAX_WAITING, Session};

/// What one session has asked for. Only [`Turns`] has a use for it.
#[derive(Default)]
pub(crate) struct Asked(Mutex<Chunks>);

#[derive(Default)]
struct Chunks {
    /// In the order of the faults.
    chunks: VecDeque<u32>,
    /// The session is in [`Turns`]: at all times when there are chunks.
    in_turn: bool,
}

/// The sessions that have asked for chunks, in the order of their turns. Nothing here takes longer
/// when more was asked for.
#[derive(Default)]
pub(crate) struct Turns {
    sessions: VecDeque<Arc<Session>>,
}

impl Turns {
    /// Asks for a chunk in the name of `session`.
    pub fn ask(&mut self, session: &Arc<Session>, chunk: u32) {
        // Never waits: `self` is borrowed by one thread at a time.
        self.push(session, &mut session.asked.0.lock(), chunk);
    }

    /// Asks for a chunk that is in the queue of another session too. Does not where the session has
    /// asked for so many already that it is no guest: it would have no bound, for these chunks come
    /// at the turns of others.
    pub fn join(&mut self, session: &Arc<Session>, chunk: u32) {
        let mut asked = session.asked.0.lock();
        if asked.chunks.len() < MAX_WAITING as usize {
            self.push(session, &mut asked, chunk);
        }
    }

    fn push(&mut self, session: &Arc<Session>, asked: &mut Chunks, chunk: u32) {
        asked.chunks.push_back(chunk);
        if !std::mem::replace(&mut asked.in_turn, true) {
            self.sessions.push_back(Arc::clone(session));
        }
    }

    /// Takes the next session, with its first chunk where [`Turns::next_of`] has left one. One that
    /// has asked for more comes again after all others.
    pub fn next(&mut self) -> Option<(Arc<Session>, Option<u32>)> {
        let session = self.sessions.pop_front()?;
        let mut asked = session.asked.0.lock();
        let chunk = asked.chunks.pop_front();
        asked.in_turn = !asked.chunks.is_empty();
        if asked.in_turn {
            self.sessions.push_back(Arc::clone(&session));
        }
        drop(asked);
        Some((session, chunk))
    }

    /// Takes the next chunk of `session`, whose turn it still is.
    pub fn next_of(&mut self, session: &Session) -> Option<u32> {
        session.asked.0.lock().chunks.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{protocol::Mode, session::tests::session};

    fn order(turns: &mut Turns, sessions: &[Arc<Session>]) -> Vec<(usize, u32)> {
        let place = |session| sessions.iter().position(|s| Arc::ptr_eq(s, &session)).unwrap();
        let taken = std::iter::from_fn(|| turns.next());
        taken.filter_map(|(session, chunk)| Some((place(session), chunk?))).collect()
    }

    #[test]
    fn sessions_take_turns() {
        let sessions = [(); 3].map(|()| session(Mode::Shared));
        let [a, b, c] = &sessions;
        let mut turns = Turns::default();
        (0..4).for_each(|chunk| turns.ask(a, chunk));
        turns.ask(b, 7);
        turns.join(c, 3);
        turns.ask(c, 8);
        let expected = [(0, 0), (1, 7), (2, 3), (0, 1), (2, 8), (0, 2), (0, 3)];
        assert_eq!(order(&mut turns, &sessions), expected);
        // And so again, once it was empty.
        turns.ask(b, 9);
        turns.ask(a, 9);
        assert_eq!(order(&mut turns, &sessions), [(1, 9), (0, 9)]);
    }

    #[test]
    fn a_turn_that_goes_on_leaves_nothing_behind() {
        let sessions = [(); 2].map(|()| session(Mode::Shared));
        let [a, b] = &sessions;
        let mut turns = Turns::default();
        (0..3).for_each(|chunk| turns.ask(a, chunk));
        turns.ask(b, 7);
        assert_eq!(turns.next().unwrap().1, Some(0));
        assert_eq!(
            [turns.next_of(a), turns.next_of(a), turns.next_of(a)],
            [Some(1), Some(2), None]
        );
        turns.ask(a, 5);
        assert_eq!(order(&mut turns, &sessions), [(1, 7), (0, 5)]);
        assert!(turns.sessions.is_empty() && turns.next_of(a).is_none());
        turns.ask(a, 6);
        assert_eq!(order(&mut turns, &sessions), [(0, 6)]);
    }

    #[test]
    fn what_a_session_asks_for_beside_others_is_bounded() {
        let session = session(Mode::Shared);
        let mut turns = Turns::default();
        (0..2 * MAX_WAITING).for_each(|chunk| turns.join(&session, chunk));
        assert_eq!(session.asked.0.lock().chunks.len(), MAX_WAITING as usize);
        // What nobody else has asked for is never left out.
        turns.ask(&session, 1);
        assert_eq!(session.asked.0.lock().chunks.len(), MAX_WAITING as usize + 1);
    }
}
