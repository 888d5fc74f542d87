//! Rate of those lines of the egress log that a tenant's sessions can cause at will: as many as leave
//! other tenants theirs, in a log that loses lines of its own choice when one writes too many.

use std::sync::Arc;
use std::time::Instant;

use mayfly_host::lines::{Leave, Lines, Rate};
use parking_lot::Mutex;

/// Lines of a tenant at once after a pause, and in a second over time. A look-up, and a request that
/// is refused, cost the guest nothing, and its sessions may be many, at a time and one after the
/// other.
const OF_TENANT: Rate = Rate { burst: 1000.0, per_second: 20.0 };
/// Most tenants that are told apart. Over the Unix socket a request names any.
const MOST: usize = 1024;

/// Rate of the lines of each tenant, whose sessions share it. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct LineRate(Arc<Mutex<Lines<Option<String>>>>);

impl Default for LineRate {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Lines::new(OF_TENANT, MOST))))
    }
}

impl LineRate {
    /// Gives a tenant leave to write a line, unless it had many a moment ago.
    pub fn admit(&self, now: Instant, tenant: Option<&str>) -> Option<Leave> {
        let answer = self.0.lock().admit(now, tenant.map(str::to_owned), None);
        for (tenant, left_out) in answer.forgotten {
            tracing::info!(
                target: "mayfly::egress",
                tenant = tenant.as_deref().unwrap_or("-"),
                left_out,
                "lines of a tenant were left out"
            );
        }
        answer.leave
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn sessions_of_a_tenant_share_its_lines_at_a_time_and_one_after_the_other() {
        let begun = Instant::now();
        let shared = LineRate::default();
        let written = |now, tenant, count: usize| {
            // What a session has of it goes with the session.
            let session = shared.clone();
            (0..count).filter(|_| session.admit(now, tenant).is_some()).count()
        };
        assert_eq!(written(begun, Some("a"), 600), 600);
        assert_eq!(written(begun, Some("a"), 600), 400);
        assert_eq!(written(begun, Some("a"), 600), 0);
        assert_eq!(written(begun, Some("b"), 600), 600);
        assert_eq!(written(begun, None, 600), 600);
        let later = begun + Duration::from_millis(1001);
        assert_eq!(shared.admit(later, Some("a")), Some(Leave { left_out: Some(800) }));
        assert_eq!(written(later, Some("a"), 600), 19);
    }
}
