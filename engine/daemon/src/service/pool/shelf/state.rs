//! What a shelf has, and what is known of the demand for it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mayfly_engine::golden::{Extent, LoadedGolden};
use mayfly_engine::session::{Shell, Standby, Zygote};

use super::super::policy;
use super::super::zygote_slot::{Forkable, ZygoteSlot};
use super::{Item, KINDS};
use crate::service::catalog::Identity;
use crate::service::rate::{DecayingRate, Smoothed};

pub(super) struct State {
    pub golden: Option<Arc<LoadedGolden>>,
    /// Of which golden all items were made.
    pub made_of: Option<Identity>,
    /// Raised when the golden changes; what was begun before is not put on the shelf.
    pub generation: u64,
    /// With the bytes of their own, and what they were forked from.
    pub standbys: VecDeque<(Box<Standby>, u64, Option<Extent>)>,
    pub shells: VecDeque<(Box<Shell>, u64)>,
    pub zygote: ZygoteSlot<Zygote>,
    /// By [`Kind`](super::Kind).
    pub making: [usize; KINDS],
    pub arrivals: DecayingRate,
    pub last_demand: Instant,
    /// Whether anything is to be kept ready: it is configured, or a request came.
    pub wanted: bool,
    /// Seconds to make a standby, and its bytes of its own.
    pub seconds: Smoothed,
    pub memory: Smoothed,
    /// Processor seconds to make one, by [`Kind`](super::Kind).
    pub cpu: [Smoothed; KINDS],
    pub failure: Option<Failure>,
    pub held: Option<String>,
    pub surplus_since: Option<Instant>,
    pub closed: bool,
}

pub(super) struct Failure {
    pub error: String,
    pub wait: Duration,
    pub until: Instant,
}

impl Forkable for Zygote {
    fn is_dead(&self) -> bool {
        self.is_lost()
    }

    fn forks(&self) -> u64 {
        self.forks()
    }

    fn failed_forks(&self) -> u32 {
        self.failed_forks()
    }
}

impl State {
    pub fn clear(&mut self) -> Vec<Item> {
        self.generation += 1;
        let standbys = std::mem::take(&mut self.standbys)
            .into_iter()
            .map(|(standby, ..)| Item::Standby(standby));
        let shells =
            std::mem::take(&mut self.shells).into_iter().map(|(shell, _)| Item::Shell(shell));
        standbys.chain(shells).chain(self.zygote.take().map(Item::Zygote)).collect()
    }

    pub fn take_dead_zygote(&mut self, now: Instant) -> Option<Item> {
        self.zygote.take_dead(now).map(Item::Zygote)
    }

    /// Takes out one standby whose zygote had taken fewer of the first steps than the one from which
    /// another can be forked.
    pub fn take_outdated(&mut self) -> Option<Item> {
        if self.zygote.extent() != Some(Extent::All) {
            return None;
        }
        let at = self.standbys.iter().position(|(.., extent)| *extent == Some(Extent::Quick))?;
        self.standbys.remove(at).map(|(standby, ..)| Item::Standby(standby))
    }

    pub fn zygote(&self) -> Option<Arc<Zygote>> {
        self.zygote.get().filter(|zygote| !zygote.is_dead()).cloned()
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an average of sizes"
    )]
    pub fn memory_each(&self) -> u64 {
        self.memory.get().map_or(policy::MEMORY_UNKNOWN, |bytes| bytes as u64)
    }

    pub fn waiting_memory(&self) -> u64 {
        let standbys = self.standbys.iter().map(|(_, memory, _)| memory);
        self.zygote.memory()
            + standbys.chain(self.shells.iter().map(|(_, memory)| memory)).sum::<u64>()
    }

    pub fn memory_used(&self) -> u64 {
        let making = self.making.iter().sum::<usize>() as u64;
        self.waiting_memory().saturating_add(making.saturating_mul(self.memory_each()))
    }
}
