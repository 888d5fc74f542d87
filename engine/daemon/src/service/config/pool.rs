//! Pools: what they keep, and what refilling them may cost.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::duration;

/// Budget of all pools together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolBudget {
    /// Share of the host's processors that refilling may take over time, more than 0 and at most 1.
    pub cpu: f64,
    /// Processor time that refilling may take at once after a rest.
    #[serde(with = "duration")]
    pub cpu_burst: Duration,
    /// Most memory of all waiting standbys and shells, in MiB; an eighth of the host's when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Most standbys in the making at a time; half the number of processors when absent, so that
    /// requests find one free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<usize>,
    /// Time for which refilling waits for a moment in which no session is being started.
    #[serde(with = "duration")]
    pub max_yield: Duration,
    /// Whether a forked standby takes first steps once more before it waits, those of
    /// [`mayfly_engine::golden::Extent::Start`]: it then writes its own copy of the pages that
    /// every session writes, which a request need not wait for. Costs a standby some megabytes and some processor time.
    pub rehearse: bool,
    /// Time without a request after which a golden that is not configured loses its pool.
    #[serde(with = "duration")]
    pub forget_after: Duration,
}

/// The pool of one golden image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolConfig {
    /// Fewest standbys to keep.
    pub floor: usize,
    /// Most standbys to keep.
    pub max_standbys: usize,
    /// Shells to keep for the time when standbys run out. Not kept while there is a warmed-up VMM
    /// to fork.
    pub shells: usize,
    /// Fork standbys from one warmed-up VMM where guests run under software emulation: many times
    /// faster, and what they have in common stays shared. Otherwise each is restored by itself.
    pub fork: bool,
}

impl Default for PoolBudget {
    fn default() -> Self {
        Self {
            cpu: 0.75,
            cpu_burst: Duration::from_secs(5),
            memory_mib: None,
            concurrency: None,
            max_yield: Duration::from_millis(20),
            rehearse: true,
            forget_after: Duration::from_secs(600),
        }
    }
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self { floor: 1, max_standbys: 32, shells: 1, fork: true }
    }
}
