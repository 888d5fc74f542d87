//! State of the service, shared by its requests.

use std::sync::Arc;
use std::time::Instant;

use mayfly_engine::{DiskUsage, Engine};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admission::{Gate, Limiters};
use super::capacity::Capacity;
use super::catalog::Catalog;
use super::ceilings::HostSize;
use super::config::ServiceConfig;
use super::idempotency::Idempotency;
use super::pool::Pools;
use super::reap::Reaped;
use super::registry::Keeper;
use crate::observe::Metrics;

/// One service. What is in it is shared by all requests.
pub(super) struct ServiceState {
    pub engine: Arc<Engine>,
    pub config: ServiceConfig,
    pub metrics: Arc<Metrics>,
    pub gate: Arc<Gate>,
    pub limiters: Limiters,
    pub pools: Arc<Pools>,
    pub catalog: Arc<Catalog>,
    pub keeper: Arc<Keeper>,
    pub idempotency: Arc<Idempotency>,
    pub started: Instant,
    pub reaped: Vec<Reaped>,
    pub host: String,
    pub host_size: HostSize,
    pub capacity: Capacity,
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
    pub pressure: Arc<Mutex<Option<String>>>,
    /// The space for disks, at the last look.
    pub disk: Arc<Mutex<Option<DiskUsage>>>,
}
