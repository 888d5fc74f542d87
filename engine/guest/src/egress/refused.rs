//! Lines of the egress log about what a tenant's sessions were not let do: as many as leave other
//! tenants theirs, in a log that loses lines of its own choice when one writes too many.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use parking_lot::Mutex;

/// Lines of a tenant in a second over time, and at once after a pause. A request that is refused
/// costs the guest nothing, and its sessions may be many.
const PER_SECOND: NonZeroU32 = NonZeroU32::new(20).unwrap();
const BURST: NonZeroU32 = NonZeroU32::new(1000).unwrap();

/// Those of all tenants. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Refused(Arc<Mutex<HashMap<Option<String>, Weak<OfTenant>>>>);

/// Lines of one tenant, whose sessions share it.
#[derive(Debug)]
pub(super) struct OfTenant {
    rate: DefaultDirectRateLimiter,
    left_out: AtomicU64,
}

impl Refused {
    /// Returns those of a tenant.
    pub fn of(&self, tenant: Option<&str>) -> Arc<OfTenant> {
        let mut tenants = self.0.lock();
        let tenant = tenant.map(str::to_owned);
        if let Some(lines) = tenants.get(&tenant).and_then(Weak::upgrade) {
            return lines;
        }
        tenants.retain(|_, lines| lines.strong_count() > 0);
        let lines = Arc::new(OfTenant::new());
        tenants.insert(tenant, Arc::downgrade(&lines));
        lines
    }
}

impl OfTenant {
    fn new() -> Self {
        let quota = Quota::per_second(PER_SECOND).allow_burst(BURST);
        Self { rate: RateLimiter::direct(quota), left_out: AtomicU64::new(0) }
    }

    /// Gives leave to write a line, with how many were left out before it; `None` when there were
    /// many a moment ago.
    pub fn admit(&self) -> Option<u64> {
        if self.rate.check().is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.left_out.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenants_sessions_share_its_lines_and_others_have_theirs() {
        let all = Refused::default();
        let (one, other) = (all.of(Some("a")), all.of(Some("a")));
        let written = (0..5000).filter(|_| one.admit().is_some()).count();
        assert!((1000..2000).contains(&written), "{written}");
        assert!(other.admit().is_none_or(|left_out| left_out > 0));
        assert_eq!(all.of(Some("b")).admit(), Some(0));
        assert_eq!(all.of(None).admit(), Some(0));
        drop((one, other));
        // Who has no session is forgotten.
        all.of(None);
        assert_eq!(all.0.lock().len(), 1);
    }
}
