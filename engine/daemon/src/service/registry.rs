//! The sessions that live, and the ids of those that are over. An id that is over never comes back.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mayfly_api::TenantName;
use parking_lot::{Mutex, RwLock};

use super::blocking;
use super::error::LookupError;
use super::fair::FairCounts;
use super::journal::Journal;
use super::live::LiveSession;
use crate::observe::Metrics;

/// What every live session needs to end in order.
pub(super) struct Keeper {
    pub registry: Registry<LiveSession>,
    pub journal: Arc<Journal>,
    pub metrics: Arc<Metrics>,
    leaks: AtomicUsize,
}

impl Keeper {
    pub fn new(journal: Journal, metrics: Arc<Metrics>) -> Self {
        let (registry, journal) = (Registry::default(), Arc::new(journal));
        Self { registry, journal, metrics, leaks: AtomicUsize::new(0) }
    }

    /// Removes a discarded session from the journal.
    pub async fn forget(&self, id: &str) {
        let (journal, owned) = (self.journal.clone(), id.to_owned());
        if let Err(error) = blocking(move || journal.remove(&owned)).await {
            tracing::warn!(session = id, %error, "a discarded session stays in the journal");
        }
    }

    /// Counts a session of which something could not be removed.
    pub fn leaked(&self) {
        let leaks = self.leaks.fetch_add(1, Ordering::Relaxed) + 1;
        self.metrics.leaks(leaks);
    }
}

/// What is registered.
pub(super) trait Registered {
    fn id(&self) -> &str;
    fn tenant(&self) -> &TenantName;
    /// The reason, once it is over. It is known before the entry is retired.
    fn is_over(&self) -> Option<Arc<str>>;
}

/// The registry of live sessions, by id.
pub(super) struct Registry<S> {
    live: RwLock<HashMap<String, Arc<S>>>,
    gone: Mutex<Gone>,
}

impl<S> Default for Registry<S> {
    fn default() -> Self {
        Self { live: RwLock::default(), gone: Mutex::default() }
    }
}

/// Ended sessions whose reason is remembered; older ones become unknown.
#[derive(Default)]
struct Gone {
    reasons: HashMap<String, (TenantName, Arc<str>)>,
    /// Ids of each tenant, the oldest first.
    order: HashMap<TenantName, VecDeque<String>>,
    counts: FairCounts,
}

impl Gone {
    fn add(&mut self, id: &str, tenant: &TenantName, reason: Arc<str>) {
        if self.reasons.contains_key(id) {
            return;
        }
        while let Some(victim) = self.counts.victim(tenant) {
            self.counts.remove(&victim);
            let Some(ids) = self.order.get_mut(&victim) else { break };
            if let Some(oldest) = ids.pop_front() {
                self.reasons.remove(&oldest);
            }
            if ids.is_empty() {
                self.order.remove(&victim);
            }
        }
        self.counts.add(tenant);
        self.order.entry(tenant.clone()).or_default().push_back(id.to_owned());
        self.reasons.insert(id.to_owned(), (tenant.clone(), reason));
    }
}

impl<S: Registered> Registry<S> {
    /// Makes a session known. Only then is `start` dropped: whoever waits for starts to be done
    /// finds what they have made here.
    ///
    /// # Errors
    /// The reason, where it is over already: what is over never comes back.
    pub fn add(&self, session: Arc<S>, start: impl Sized) -> Result<(), Arc<str>> {
        {
            let mut live = self.live.write();
            // One that ends after this look is taken out by its `retire`, which waits for the lock.
            if let Some(reason) = session.is_over() {
                return Err(reason);
            }
            live.insert(session.id().to_owned(), session);
        }
        drop(start);
        Ok(())
    }

    /// Marks the id as over, for good.
    pub fn retire(&self, id: &str, tenant: &TenantName, reason: Arc<str>) {
        // First gone, then not live: at no moment is it unknown.
        self.gone().add(id, tenant, reason);
        self.live.write().remove(id);
    }

    pub fn get(&self, tenant: &TenantName, id: &str) -> Result<Arc<S>, LookupError> {
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

    pub fn all(&self) -> Vec<Arc<S>> {
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
    use crate::service::fair::PER_TENANT;

    struct Entry {
        id: String,
        tenant: TenantName,
        over: Mutex<Option<Arc<str>>>,
    }

    impl Registered for Entry {
        fn id(&self) -> &str {
            &self.id
        }

        fn tenant(&self) -> &TenantName {
            &self.tenant
        }

        fn is_over(&self) -> Option<Arc<str>> {
            self.over.lock().clone()
        }
    }

    impl Entry {
        fn new(id: &str, tenant: &TenantName) -> Arc<Self> {
            Arc::new(Self { id: id.into(), tenant: tenant.clone(), over: Mutex::default() })
        }

        /// As a session does.
        fn end(&self, registry: &Registry<Self>) {
            let reason: Arc<str> = "killed".into();
            *self.over.lock() = Some(reason.clone());
            registry.retire(&self.id, &self.tenant, reason);
        }
    }

    fn names() -> (TenantName, TenantName) {
        (TenantName::new("a").unwrap(), TenantName::new("b").unwrap())
    }

    #[test]
    fn a_session_that_is_over_stays_over_for_its_tenant_and_unknown_to_others() {
        let registry = Registry::<Entry>::default();
        let (a, b) = names();
        registry.retire("1", &a, "killed".into());
        registry.retire("1", &a, "killed".into());
        let gone = |id: &str| LookupError::Gone { id: id.into(), reason: "killed".into() };
        let unknown = |id: &str| LookupError::Unknown { id: id.into() };
        assert_eq!(registry.get(&a, "1").err().unwrap(), gone("1"));
        assert_eq!(registry.get(&b, "1").err().unwrap(), unknown("1"));
        assert_eq!(registry.get(&a, "2").err().unwrap(), unknown("2"));
        let live = Entry::new("3", &a);
        registry.add(live.clone(), ()).unwrap();
        registry.get(&a, "3").unwrap();
        assert_eq!(registry.get(&b, "3").err().unwrap(), unknown("3"));
        live.end(&registry);
        assert_eq!(registry.get(&a, "3").err().unwrap(), gone("3"));
        assert_eq!(registry.len(), 0);
    }

    #[test]
    fn what_ended_before_it_was_known_never_becomes_known() {
        let (registry, (a, _)) = (Registry::default(), names());
        let entry = Entry::new("1", &a);
        entry.end(&registry);
        assert_eq!(&*registry.add(entry, ()).unwrap_err(), "killed");
        assert_eq!((registry.len(), registry.all().len()), (0, 0));
        // Also when both happen at the same moment.
        for n in 0..2000 {
            let entry = Entry::new(&n.to_string(), &a);
            std::thread::scope(|scope| {
                scope.spawn(|| entry.end(&registry));
                let _ = registry.add(entry.clone(), ());
            });
            assert_eq!(registry.len(), 0, "{n}");
        }
    }

    #[test]
    fn a_start_is_done_only_when_its_session_is_known() {
        struct Start<'a>(&'a Registry<Entry>, &'a std::cell::Cell<usize>);
        impl Drop for Start<'_> {
            fn drop(&mut self) {
                self.1.set(self.0.len());
            }
        }
        let (registry, (a, _), seen) =
            (Registry::default(), names(), std::cell::Cell::new(usize::MAX));
        registry.add(Entry::new("1", &a), Start(&registry, &seen)).unwrap();
        assert_eq!(seen.get(), 1);
    }

    #[test]
    fn memory_of_the_gone_is_bounded_and_nobody_pushes_out_anothers() {
        let (registry, (a, b)) = (Registry::<Entry>::default(), names());
        registry.retire("mine", &b, "x".into());
        for n in 0..PER_TENANT + 10 {
            registry.retire(&n.to_string(), &a, "x".into());
        }
        assert!(matches!(registry.get(&b, "mine"), Err(LookupError::Gone { .. })));
        let gone = registry.gone();
        assert_eq!((gone.order[&a].len(), gone.reasons.len()), (PER_TENANT, PER_TENANT + 1));
        assert!(!gone.reasons.contains_key("9") && gone.reasons.contains_key("10"));
    }
}
