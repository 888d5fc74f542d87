//! The state of every chunk of an image: absent, asked for, filling, present, evicting.
//!
//! ```text
//!          fault          its turn          verified and written
//!   Absent ----> Asked -------------> Filling ----------------> Present
//!   ^ ^ ^ |      |  ^                  ^    |                      |
//!   | | | +------|--|-- prefetch ------+    |                      |
//!   | | +--------+  |                       |                      | chosen by eviction,
//!   | |  all over   | someone waits         |                      | not pinned
//!   | +-------------|------- read failed ---+                      v
//!   +---------------+---------------------------------------- Evicting
//!     hole punched, nobody waits
//! ```
//! Waiters queue on a chunk in any state but absent and present, so that a fault never sees a state
//! between.

use std::collections::{HashMap, VecDeque};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Absent,
    Asked,
    Filling,
    Present,
    Evicting,
}

#[derive(Clone, Copy)]
struct Slot {
    state: State,
    /// Copies being made from the chunk; a pinned chunk is not evicted.
    pins: u32,
    /// When it was filled, in fills of the host; tells a stale entry of the eviction order.
    filled: u64,
}

/// What a fault has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// The chunk is resident since fill number `.0` (and pinned, when that was asked for).
    Nothing(u64),
    /// It is on its way; the waiter is queued.
    Wait,
    /// Somebody has asked for it, and has not had the turn; the waiter is queued, and the caller
    /// should ask too, lest it wait for all else that the other has asked for.
    Join,
    /// The caller is the first, and must ask for it; the waiter is queued.
    Ask,
}

/// What to do for a chunk that was asked for, now that it has its turn.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn<W> {
    /// It is filling: the caller must see to the fill.
    Fill,
    /// Nothing: another turn was earlier.
    Nothing,
    /// Nothing: all who have waited are over, and it is absent again.
    Over(Vec<W>),
}

/// Chunk states of one image with the waiters of type `W`.
pub(crate) struct Table<W> {
    slots: Vec<Slot>,
    waiters: HashMap<u32, Vec<W>>,
    working_set: Vec<bool>,
    working_set_absent: usize,
    /// Resident chunks in order of fill; entries whose number is not the slot's are stale. First
    /// those outside the working set, then those of it.
    order: [VecDeque<(u64, u32)>; 2],
}

impl<W> Table<W> {
    /// Creates a table with all chunks absent. Entries of `working_set` beyond the image are
    /// ignored.
    pub fn new(chunks: usize, working_set: &[u32]) -> Self {
        let mut member = vec![false; chunks];
        for &chunk in working_set {
            if let Some(slot) = member.get_mut(chunk as usize) {
                *slot = true;
            }
        }
        let count = member.iter().filter(|&&m| m).count();
        Self {
            slots: vec![Slot { state: State::Absent, pins: 0, filled: 0 }; chunks],
            waiters: HashMap::new(),
            working_set: member,
            working_set_absent: count,
            order: [VecDeque::new(), VecDeque::new()],
        }
    }

    /// Returns whether `chunk` is in the recorded working set.
    pub fn in_working_set(&self, chunk: u32) -> bool {
        self.working_set[chunk as usize]
    }

    /// Returns the chunks of the working set that are not resident.
    pub fn working_set_absent(&self) -> usize {
        self.working_set_absent
    }

    /// Requests `chunk` for a fault; `pin` keeps it resident until [`Table::unpin`].
    pub fn request(&mut self, chunk: u32, waiter: W, pin: bool) -> Need {
        let slot = &mut self.slots[chunk as usize];
        let need = match slot.state {
            State::Present => {
                slot.pins += u32::from(pin);
                return Need::Nothing(slot.filled);
            }
            State::Absent => Need::Ask,
            State::Asked => Need::Join,
            // It is asked for once the eviction is done, see [`Table::evicted`].
            State::Filling | State::Evicting => Need::Wait,
        };
        if need == Need::Ask {
            self.begin(chunk, State::Asked);
        }
        self.waiters.entry(chunk).or_default().push(waiter);
        need
    }

    /// Gives `chunk`, which was asked for at any time before, its turn.
    ///
    /// What only those wait for who are over is not filled, except for the working set: a prefetch
    /// has left that to the one who has asked.
    pub fn turn(&mut self, chunk: u32, over: impl Fn(&W) -> bool) -> Turn<W> {
        if self.slots[chunk as usize].state != State::Asked {
            return Turn::Nothing;
        }
        let waiters = self.waiters.get(&chunk);
        if !self.working_set[chunk as usize] && waiters.is_none_or(|w| w.iter().all(over)) {
            self.absent(chunk);
            return Turn::Over(self.waiters.remove(&chunk).unwrap_or_default());
        }
        self.slots[chunk as usize].state = State::Filling;
        Turn::Fill
    }

    /// Returns those who wait for `chunk`.
    pub fn waiters(&self, chunk: u32) -> &[W] {
        self.waiters.get(&chunk).map_or(&[], Vec::as_slice)
    }

    /// Returns whether `chunk` is neither resident nor on its way.
    pub fn is_absent(&self, chunk: u32) -> bool {
        self.slots.get(chunk as usize).is_some_and(|s| s.state == State::Absent)
    }

    /// Starts a fill nobody waits for, unless the chunk is resident or on its way. The caller must
    /// see to it.
    pub fn prefetch(&mut self, chunk: u32) -> bool {
        let start = self.is_absent(chunk);
        if start {
            self.begin(chunk, State::Filling);
        }
        start
    }

    fn begin(&mut self, chunk: u32, state: State) {
        self.slots[chunk as usize].state = state;
        self.working_set_absent -= usize::from(self.working_set[chunk as usize]);
    }

    /// Notes that the fill of `chunk` succeeded as number `filled` of the host. Returns who waits;
    /// one pin is taken for each waiter that `pins` says yes to.
    pub fn filled(&mut self, chunk: u32, filled: u64, pins: impl Fn(&W) -> bool) -> Vec<W> {
        debug_assert_eq!(self.slots[chunk as usize].state, State::Filling);
        self.present(chunk, filled, pins)
    }

    fn present(&mut self, chunk: u32, filled: u64, pins: impl Fn(&W) -> bool) -> Vec<W> {
        let waiters = self.waiters.remove(&chunk).unwrap_or_default();
        let class = usize::from(self.working_set[chunk as usize]);
        self.slots[chunk as usize] = Slot {
            state: State::Present,
            pins: u32::try_from(waiters.iter().filter(|w| pins(w)).count()).unwrap_or(u32::MAX),
            filled,
        };
        self.order[class].push_back((filled, chunk));
        waiters
    }

    /// Notes that the fill of `chunk` failed and nothing of it is in the file.
    pub fn unfilled(&mut self, chunk: u32) -> Vec<W> {
        debug_assert_eq!(self.slots[chunk as usize].state, State::Filling);
        self.absent(chunk);
        self.waiters.remove(&chunk).unwrap_or_default()
    }

    fn absent(&mut self, chunk: u32) {
        self.slots[chunk as usize].state = State::Absent;
        self.working_set_absent += usize::from(self.working_set[chunk as usize]);
    }

    /// Notes that a copy from a pinned chunk is done.
    pub fn unpin(&mut self, chunk: u32) {
        let slot = &mut self.slots[chunk as usize];
        debug_assert!(slot.pins > 0);
        slot.pins = slot.pins.saturating_sub(1);
    }

    /// Returns the number of the oldest resident chunk outside (`false`) or inside (`true`) the
    /// working set.
    pub fn oldest(&mut self, working_set: bool) -> Option<u64> {
        let order = &mut self.order[usize::from(working_set)];
        while let Some(&(filled, chunk)) = order.front() {
            let slot = self.slots[chunk as usize];
            if slot.state == State::Present && slot.filled == filled {
                return Some(filled);
            }
            order.pop_front();
        }
        None
    }

    /// Takes the oldest chunk of a class for eviction. The caller punches its hole and then calls
    /// [`Table::evicted`]. `None`: there is none, or those looked at are pinned.
    pub fn evict(&mut self, working_set: bool) -> Option<u32> {
        let class = usize::from(working_set);
        for _ in 0..self.order[class].len() {
            let (filled, chunk) = self.order[class].pop_front()?;
            let slot = &mut self.slots[chunk as usize];
            if slot.state != State::Present || slot.filled != filled {
                continue;
            }
            if slot.pins > 0 {
                self.order[class].push_back((filled, chunk));
                continue;
            }
            slot.state = State::Evicting;
            return Some(chunk);
        }
        None
    }

    /// Notes that the hole of an evicted chunk is punched. `true`: some wait for it meanwhile, and
    /// the caller must ask for it in the name of each of them.
    pub fn evicted(&mut self, chunk: u32) -> bool {
        debug_assert_eq!(self.slots[chunk as usize].state, State::Evicting);
        let wanted = self.waiters.contains_key(&chunk);
        if wanted {
            self.slots[chunk as usize].state = State::Asked;
        } else {
            self.absent(chunk);
        }
        wanted
    }

    /// Notes that punching failed and the chunk stays. Returns who waits, pinned as by
    /// [`Table::filled`].
    pub fn kept(&mut self, chunk: u32, pins: impl Fn(&W) -> bool) -> Vec<W> {
        debug_assert_eq!(self.slots[chunk as usize].state, State::Evicting);
        let filled = self.slots[chunk as usize].filled;
        self.present(chunk, filled, pins)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_fill_serves_all_who_wait() {
        let mut table = Table::new(4, &[2]);
        assert_eq!(table.request(1, 'a', false), Need::Ask);
        assert_eq!(table.request(1, 'b', true), Need::Join);
        assert!(!table.prefetch(1));
        assert_eq!(table.turn(1, |_| false), Turn::Fill);
        assert_eq!(table.request(1, 'c', false), Need::Wait);
        assert_eq!(table.turn(1, |_| false), Turn::Nothing, "it had its turn");
        assert_eq!(table.filled(1, 9, |&w| w == 'b'), vec!['a', 'b', 'c']);
        assert_eq!(table.turn(1, |_| false), Turn::Nothing);
        assert_eq!(table.request(1, 'c', false), Need::Nothing(9));
        assert_eq!(table.evict(false), None, "pinned by b");
        table.unpin(1);
        assert_eq!(table.evict(false), Some(1));
    }

    #[test]
    fn a_fault_during_eviction_refills() {
        let mut table = Table::new(2, &[]);
        assert_eq!(table.request(0, (), false), Need::Ask);
        assert_eq!(table.turn(0, |()| false), Turn::Fill);
        table.filled(0, 1, |()| false);
        assert_eq!(table.evict(false), Some(0));
        assert_eq!(table.request(0, (), false), Need::Wait);
        assert_eq!(table.turn(0, |()| false), Turn::Nothing, "the hole is not punched");
        assert!(table.evicted(0));
        assert_eq!(table.waiters(0).len(), 1);
        assert_eq!(table.turn(0, |()| false), Turn::Fill);
        assert_eq!(table.filled(0, 2, |()| false).len(), 1);
        assert_eq!(table.oldest(false), Some(2));
    }

    #[test]
    fn what_only_those_wait_for_who_are_over_is_not_filled() {
        let mut table = Table::new(3, &[2]);
        for (chunk, waiters) in [(0, "xx"), (1, "xa"), (2, "x")] {
            for waiter in waiters.chars() {
                table.request(chunk, waiter, false);
            }
        }
        let over = |&waiter: &char| waiter == 'x';
        assert_eq!(table.turn(0, over), Turn::Over(vec!['x', 'x']));
        assert_eq!(table.request(0, 'a', false), Need::Ask, "absent again");
        assert_eq!(table.turn(1, over), Turn::Fill);
        assert_eq!((table.turn(2, over), table.working_set_absent()), (Turn::Fill, 0));
    }

    #[test]
    fn the_working_set_is_counted_and_ordered_apart() {
        let mut table: Table<()> = Table::new(3, &[2, 0, 99]);
        assert_eq!(table.working_set_absent(), 2);
        for (chunk, filled) in [(2, 1), (1, 2), (0, 3)] {
            assert!(table.prefetch(chunk));
            table.filled(chunk, filled, |()| false);
        }
        assert_eq!(
            (table.working_set_absent(), table.oldest(false), table.oldest(true)),
            (0, Some(2), Some(1))
        );
        assert_eq!(table.evict(true), Some(2));
        assert!(!table.evicted(2));
        assert_eq!((table.working_set_absent(), table.oldest(true)), (1, Some(3)));
        assert!(table.prefetch(2));
        assert!(table.unfilled(2).is_empty());
        assert_eq!(table.working_set_absent(), 1);
    }
}
