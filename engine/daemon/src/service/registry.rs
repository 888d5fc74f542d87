//! The sessions that live, and the ids of those that are over. An id that is over never comes back.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mayfly_api::TenantName;
use parking_lot::{Mutex, RwLock};

use super::error::LookupError;
use super::journal::Journal;
use super::live::LiveSession;
use crate::observe::Metrics;

/// Ended sessions whose reason is remembered; older ones become unknown.
const MAX_GONE: usize = 16 << 10;

/// What every live session needs to end in order.
pub(super) struct Keeper {
    pub registry: Registry,
    pub journal: Journal,
    pub metrics: Arc<Metrics>,
    leaks: AtomicUsize,
}

impl Keeper {
    pub fn new(journal: Journal, metrics: Arc<Metrics>) -> Self {
        Self { registry: Registry::default(), journal, metrics, leaks: AtomicUsize::new(0) }
    }

    /// Removes a discarded session from the journal.
    pub fn forget(&self, id: &str) {
        if let Err(error) = self.journal.remove(id) {
            tracing::warn!(session = id, %error, "a discarded session stays in the journal");
        }
    }

    /// Counts a session of which something could not be removed.
    pub fn leaked(&self) {
        let leaks = self.leaks.fetch_add(1, Ordering::Relaxed) + 1;
        self.metrics.leaks(leaks);
    }
}

/// The registry of live sessions, by id.
#[derive(Default)]
pub(super) struct Registry {
    live: RwLock<HashMap<String, Arc<LiveSession>>>,
    gone: Mutex<Gone>,
}

#[derive(Default)]
struct Gone {
    reasons: HashMap<String, (TenantName, Arc<str>)>,
    order: VecDeque<String>,
}

impl Gone {
    fn add(&mut self, id: &str, tenant: &TenantName, reason: Arc<str>) {
        if self.reasons.insert(id.to_owned(), (tenant.clone(), reason)).is_none() {
            self.order.push_back(id.to_owned());
        }
        while self.order.len() > MAX_GONE {
            if let Some(oldest) = self.order.pop_front() {
                self.reasons.remove(&oldest);
            }
        }
    }
}

impl Registry {
    pub fn add(&self, session: Arc<LiveSession>) {
        self.live.write().insert(session.id().to_owned(), session);
    }

    /// Marks the id as over, for good.
    pub fn retire(&self, id: &str, tenant: &TenantName, reason: Arc<str>) {
        // First gone, then not live: at no moment is it unknown.
        self.gone().add(id, tenant, reason);
        self.live.write().remove(id);
    }

    pub fn get(&self, tenant: &TenantName, id: &str) -> Result<Arc<LiveSession>, LookupError> {
        // In this order, for the order in which a session retires.
        let live = self.live.read().get(id).cloned();
        if let Some((owner, reason)) = self.gone().reasons.get(id)
            && owner == tenant
        {
            return Err(LookupError::Gone { id: id.to_owned(), reason: reason.to_string() });
        }
        // Another tenant's session is no session: its id must not be found out by trying.
        live.filter(|session| session.tenant() == tenant)
            .ok_or_else(|| LookupError::Unknown { id: id.to_owned() })
    }

    pub fn all(&self) -> Vec<Arc<LiveSession>> {
        self.live.read().values().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.live.read().len()
    }

    fn gone(&self) -> parking_lot::MutexGuard<'_, Gone> {
        self.gone.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_is_over_stays_over_for_its_tenant_and_unknown_to_others() {
        let registry = Registry::default();
        let (a, b) = (TenantName::new("a").unwrap(), TenantName::new("b").unwrap());
        registry.retire("1", &a, "killed".into());
        registry.retire("1", &a, "killed".into());
        let gone = LookupError::Gone { id: "1".into(), reason: "killed".into() };
        assert_eq!(registry.get(&a, "1").unwrap_err(), gone);
        assert_eq!(registry.get(&b, "1").unwrap_err(), LookupError::Unknown { id: "1".into() });
        assert_eq!(registry.get(&a, "2").unwrap_err(), LookupError::Unknown { id: "2".into() });
    }

    #[test]
    fn memory_of_the_gone_is_bounded() {
        let (registry, tenant) = (Registry::default(), TenantName::local());
        for n in 0..MAX_GONE + 10 {
            registry.retire(&n.to_string(), &tenant, "x".into());
        }
        let gone = registry.gone();
        assert_eq!((gone.order.len(), gone.reasons.len()), (MAX_GONE, MAX_GONE));
        assert!(!gone.reasons.contains_key("9") && gone.reasons.contains_key("10"));
    }
}
