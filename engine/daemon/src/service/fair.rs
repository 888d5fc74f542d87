//! How many entries each tenant has in a table of bounded size, and whose goes when it is full.

use std::collections::{BTreeSet, HashMap};

use mayfly_api::TenantName;

/// Most entries of one tenant.
pub(super) const PER_TENANT: usize = 16 << 10;
/// Most entries of all tenants together. When so many are there, the tenant with the most gives one
/// up, so that nobody's few are pushed out by another's many.
pub(super) const IN_ALL: usize = 64 << 10;

/// Counts the entries of each tenant in a table.
#[derive(Debug)]
pub(super) struct FairCounts {
    per_tenant: usize,
    in_all: usize,
    total: usize,
    counts: HashMap<TenantName, usize>,
    /// The same, by count.
    ranked: BTreeSet<(usize, TenantName)>,
}

impl Default for FairCounts {
    fn default() -> Self {
        Self::new(PER_TENANT, IN_ALL)
    }
}

impl FairCounts {
    pub fn new(per_tenant: usize, in_all: usize) -> Self {
        Self { per_tenant, in_all, total: 0, counts: HashMap::new(), ranked: BTreeSet::new() }
    }

    /// Who has to give up an entry before `tenant` may add one; `None` when there is room.
    pub fn victim(&self, tenant: &TenantName) -> Option<TenantName> {
        if self.of(tenant) >= self.per_tenant {
            return Some(tenant.clone());
        }
        let (_, largest) = self.ranked.last().filter(|_| self.total >= self.in_all)?;
        Some(largest.clone())
    }

    pub fn add(&mut self, tenant: &TenantName) {
        self.total += 1;
        self.set(tenant, self.of(tenant) + 1);
    }

    pub fn remove(&mut self, tenant: &TenantName) {
        if let Some(less) = self.of(tenant).checked_sub(1) {
            self.total -= 1;
            self.set(tenant, less);
        }
    }

    fn of(&self, tenant: &TenantName) -> usize {
        self.counts.get(tenant).copied().unwrap_or(0)
    }

    fn set(&mut self, tenant: &TenantName, count: usize) {
        if let Some(before) = self.counts.remove(tenant) {
            self.ranked.remove(&(before, tenant.clone()));
        }
        if count > 0 {
            self.counts.insert(tenant.clone(), count);
            self.ranked.insert((count, tenant.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whoever adds how much: the bounds hold, and nobody with no more than an equal part of
        /// the whole gives anything up to another.
        #[test]
        fn few_are_never_pushed_out_by_many(adds in prop::collection::vec(0u8..4, 0..200)) {
            let name = |n: u8| TenantName::new(format!("t{n}")).unwrap();
            let mut counts = FairCounts::new(12, 20);
            for n in adds {
                let tenant = name(n);
                if let Some(victim) = counts.victim(&tenant) {
                    prop_assert!(victim == tenant || counts.of(&victim) > 20 / 5);
                    prop_assert!((0..4).all(|other| counts.of(&name(other)) <= counts.of(&victim))
                        || victim == tenant);
                    counts.remove(&victim);
                }
                counts.add(&tenant);
                prop_assert!(counts.of(&tenant) <= 12);
                prop_assert!((0..4).map(|n| counts.of(&name(n))).sum::<usize>() <= 20);
            }
        }
    }
}
