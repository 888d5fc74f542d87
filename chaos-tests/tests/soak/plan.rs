//! What a soak does, all of it drawn from a seed before it begins.

use std::fmt;

/// Sessions of a round.
pub const ROUND: usize = 20;

/// SplitMix64: a seed means the same plan whatever the version of a library.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.roll() % bound as u64).expect("less than a usize")
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count.div_ceil(8)).flat_map(|_| self.roll().to_le_bytes()).take(count).collect()
    }
}

/// What is done to the system while it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A VMM that is no zygote is killed.
    Vmm,
    /// The zygote is killed.
    Zygote,
    /// The pager is killed.
    Pager,
    /// The daemon is killed, and another started in its place.
    Daemon,
    /// Bits of chunks are flipped in the store, and for a while put right again.
    Chunk,
    /// The file system with the disks of sessions is full for a while.
    FullDisk,
    /// The file system of the runtime root is full for a while.
    FullRun,
    /// The pager stands still for a while, as it does when its store is slow.
    SlowStore,
}

impl Fault {
    pub const ALL: [Self; 8] = [
        Self::Vmm,
        Self::Zygote,
        Self::Pager,
        Self::Daemon,
        Self::Chunk,
        Self::FullDisk,
        Self::FullRun,
        Self::SlowStore,
    ];
}

/// What a client does with a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Errand {
    /// Has a command say which session it is in.
    Compute,
    /// Compares files of the golden image.
    Content,
    /// Has Docker answer.
    Docker,
    /// Writes a file and reads it back.
    Files,
    /// Goes away in the middle, without a word.
    Vanish,
    /// Sends what is no request.
    Garbage,
    /// Is as the others, but its guest writes garbage to the channel.
    BadGuest,
}

impl Errand {
    /// As often as they come.
    const DECK: [Self; 10] = [
        Self::Compute,
        Self::Compute,
        Self::Content,
        Self::Content,
        Self::Docker,
        Self::Files,
        Self::Files,
        Self::Vanish,
        Self::Garbage,
        Self::BadGuest,
    ];
}

/// A fault of a round.
#[derive(Debug, Clone)]
pub struct Injection {
    pub fault: Fault,
    /// So many requests of the round have been answered before.
    pub after: usize,
    /// Whatever else it depends on.
    pub dice: Dice,
}

/// Sessions that are asked for at once, and what happens amid them.
#[derive(Debug, Clone)]
pub struct Round {
    pub errands: Vec<(Errand, Dice)>,
    pub injections: Vec<Injection>,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<String> =
            self.injections.iter().map(|it| format!("{:?} after {}", it.fault, it.after)).collect();
        write!(f, "{} sessions, {}", self.errands.len(), faults.join(", "))
    }
}

/// The rounds of a soak of `sessions`. Each fault of `faults` comes once before any comes again, so
/// that the first rounds, as many as there are faults, have each of them.
pub fn rounds(seed: u64, sessions: usize, faults: &[Fault]) -> Vec<Round> {
    let mut dice = Dice::new(seed);
    let mut deck = Vec::new();
    let mut draw = |dice: &mut Dice| {
        if deck.is_empty() {
            deck = faults.to_vec();
        }
        deck.swap_remove(dice.below(deck.len()))
    };
    let sizes = (0..sessions).step_by(ROUND).map(|begun| ROUND.min(sessions - begun));
    let mut rounds = Vec::new();
    for size in sizes {
        let errands =
            (0..size).map(|_| (*dice.pick(&Errand::DECK), Dice::new(dice.roll()))).collect();
        let mut injections = Vec::new();
        for _ in 0..=dice.below(2) {
            let (fault, after) = (draw(&mut dice), dice.below(size.div_ceil(2)));
            injections.push(Injection { fault, after, dice: Dice::new(dice.roll()) });
        }
        injections.sort_by_key(|injection| injection.after);
        rounds.push(Round { errands, injections });
    }
    rounds
}

#[test]
fn a_seed_means_one_plan_and_eight_rounds_have_every_fault() {
    for seed in 0..100 {
        let plan = rounds(seed, 8 * ROUND, &Fault::ALL);
        assert_eq!(format!("{plan:?}"), format!("{:?}", rounds(seed, 8 * ROUND, &Fault::ALL)));
        let all = plan.iter().flat_map(|round| &round.injections).map(|it| it.fault);
        assert_eq!(all.collect::<std::collections::BTreeSet<_>>().len(), Fault::ALL.len());
        assert!(plan.iter().all(|round| round.injections.iter().all(|it| it.after < ROUND / 2)));
    }
    let sizes: Vec<_> = rounds(1, 45, &Fault::ALL).iter().map(|it| it.errands.len()).collect();
    assert_eq!(sizes, [20, 20, 5]);
}
