//! Rate limits of tenants.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use mayfly_api::TenantName;
use parking_lot::Mutex;

use crate::service::config::TenantLimits;

/// One limiter for each tenant that has asked. Tenants come from the configuration, so that there
/// are not many.
#[derive(Default)]
pub(in crate::service) struct Limiters {
    clock: DefaultClock,
    tenants: Mutex<HashMap<TenantName, DefaultDirectRateLimiter>>,
}

impl Limiters {
    /// Counts a request; when it is one too many, says how long until one is allowed.
    pub fn check(&self, tenant: &TenantName, limits: &TenantLimits) -> Result<(), Duration> {
        let mut tenants = self.tenants.lock();
        if !tenants.contains_key(tenant) {
            tenants.insert(tenant.clone(), RateLimiter::direct(quota(limits)));
        }
        let Some(limiter) = tenants.get(tenant) else { return Ok(()) };
        limiter.check().map_err(|refused| refused.wait_time_from(self.clock.now()))
    }
}

fn quota(limits: &TenantLimits) -> Quota {
    // The configuration has checked the rate; the fallback cannot be reached with a checked one.
    let period = Duration::try_from_secs_f64(1.0 / limits.requests_per_second).ok();
    period
        .and_then(Quota::with_period)
        .unwrap_or(Quota::per_second(NonZeroU32::MIN))
        .allow_burst(limits.burst)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_wait_is_told_for_each_tenant_alone() {
        let limits = TenantLimits {
            requests_per_second: 0.01,
            burst: NonZeroU32::new(3).unwrap(),
            ..TenantLimits::default()
        };
        let limiters = Limiters::default();
        let (a, b) = (TenantName::new("a").unwrap(), TenantName::new("b").unwrap());
        assert!((0..3).all(|_| limiters.check(&a, &limits).is_ok()));
        let wait = limiters.check(&a, &limits).unwrap_err();
        assert!(wait > Duration::ZERO && wait <= Duration::from_secs(100), "{wait:?}");
        limiters.check(&b, &limits).unwrap();
    }
}
