//! Fixed amounts, such as bytes or connections, divided between tenants.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use mayfly_api::TenantName;
use mayfly_guest::channel::{Buffers, SetAside};
use parking_lot::Mutex;

/// One part in this many of the whole is set aside: in equal parts for the known tenants.
const SET_ASIDE: usize = 4;

/// Fixed amount of something, divided between tenants. Whoever comes first gets it, except for a
/// part that is set aside for each known tenant: however much the others hold, that part is there.
pub struct Shares {
    /// Set aside for each known tenant.
    own: usize,
    known: HashSet<TenantName>,
    /// What is left for everybody.
    common: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What each tenant holds that holds anything.
    held: HashMap<TenantName, usize>,
    /// How much of the common part is taken.
    common: usize,
}

impl fmt::Debug for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shares")
            .field("own", &self.own)
            .field("common", &self.common)
            .finish_non_exhaustive()
    }
}

impl Shares {
    /// Divides `total`, a part of which is set aside for the `known` tenants.
    pub fn new(total: usize, known: impl IntoIterator<Item = TenantName>) -> Arc<Self> {
        let known: HashSet<_> = known.into_iter().collect();
        let own = (total / SET_ASIDE).checked_div(known.len()).unwrap_or(0);
        let common = total - own * known.len();
        Arc::new(Self { own, known, common, state: Mutex::default() })
    }

    /// Returns the account of a tenant, which may hold `most` at a time.
    pub fn account(self: &Arc<Self>, tenant: &TenantName, most: Option<usize>) -> Account {
        Account { shares: self.clone(), tenant: tenant.clone(), most: most.unwrap_or(usize::MAX) }
    }

    /// Returns how much a tenant holds.
    pub fn held(&self, tenant: &TenantName) -> usize {
        self.state.lock().held.get(tenant).copied().unwrap_or(0)
    }

    fn own(&self, tenant: &TenantName) -> usize {
        if self.known.contains(tenant) { self.own } else { 0 }
    }

    fn take(&self, tenant: &TenantName, amount: usize, most: usize) -> bool {
        if amount == 0 {
            return true;
        }
        let own = self.own(tenant);
        let mut state = self.state.lock();
        let before = state.held.get(tenant).copied().unwrap_or(0);
        let Some(after) = before.checked_add(amount).filter(|after| *after <= most) else {
            return false;
        };
        let common = state.common - before.saturating_sub(own) + after.saturating_sub(own);
        if common > self.common {
            return false;
        }
        state.common = common;
        state.held.insert(tenant.clone(), after);
        true
    }

    fn give_back(&self, tenant: &TenantName, amount: usize) {
        if amount == 0 {
            return;
        }
        let own = self.own(tenant);
        let mut state = self.state.lock();
        let before = state.held.get(tenant).copied().unwrap_or(0);
        let after = before.saturating_sub(amount);
        state.common -= before.saturating_sub(own) - after.saturating_sub(own);
        if after == 0 {
            state.held.remove(tenant);
        } else {
            state.held.insert(tenant.clone(), after);
        }
    }
}

/// Account of one tenant, from which it takes its shares. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Account {
    shares: Arc<Shares>,
    tenant: TenantName,
    most: usize,
}

impl Account {
    /// Takes `amount`; `None` when the tenant may not hold so much more, or others hold it.
    pub fn take(&self, amount: usize) -> Option<Share> {
        let taken = self.shares.take(&self.tenant, amount, self.most);
        taken.then(|| Share { account: self.clone(), amount })
    }

    /// Returns how much the tenant holds.
    pub fn held(&self) -> usize {
        self.shares.held(&self.tenant)
    }
}

impl Buffers for Account {
    fn set_aside(&self, bytes: usize) -> Option<SetAside> {
        let share = self.take(bytes)?;
        Some(Box::new(share))
    }
}

/// Amount that was taken; given back when dropped.
#[derive(Debug)]
pub struct Share {
    account: Account,
    amount: usize,
}

impl Share {
    /// Takes `more` in addition; false, and nothing has changed, where [`Account::take`] would
    /// refuse.
    pub fn grow(&mut self, more: usize) -> bool {
        let Account { shares, tenant, most } = &self.account;
        let taken = shares.take(tenant, more, *most);
        if taken {
            self.amount += more;
        }
        taken
    }

    /// Returns how much it is.
    pub fn amount(&self) -> usize {
        self.amount
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.account.shares.give_back(&self.account.tenant, self.amount);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tenant(n: u8) -> TenantName {
        TenantName::new(format!("t{n}")).unwrap()
    }

    #[test]
    fn a_tenant_that_takes_all_it_can_leaves_the_others_their_part() {
        let shares = Shares::new(800, [tenant(0), tenant(1)]);
        let (a, b, stranger) = (
            shares.account(&tenant(0), None),
            shares.account(&tenant(1), None),
            shares.account(&tenant(9), None),
        );
        let all: Vec<_> = std::iter::from_fn(|| a.take(10)).collect();
        assert_eq!((all.len(), a.held()), (70, 700));
        assert!(stranger.take(1).is_none());
        let own = b.take(100).unwrap();
        assert!(b.take(1).is_none());
        drop(all);
        assert!(stranger.take(600).is_some() && own.amount() == 100);
    }

    #[test]
    fn a_bound_of_its_own_holds_and_nothing_is_taken_in_part() {
        let shares = Shares::new(1000, [tenant(0)]);
        let bounded = shares.account(&tenant(0), Some(50));
        let mut share = bounded.take(40).unwrap();
        assert!(bounded.take(11).is_none() && !share.grow(11) && !share.grow(usize::MAX));
        assert!(share.grow(10));
        drop(share);
        assert_eq!(bounded.held(), 0);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Take(u8, usize),
        Grow(usize, usize),
        Drop(usize),
    }

    proptest! {
        /// Whatever is taken and given back: never more than the whole, no known tenant is refused
        /// within its part, and nothing is lost.
        #[test]
        fn the_whole_is_never_exceeded_and_each_part_is_there(
            total in 0usize..400,
            steps in prop::collection::vec(prop_oneof![
                3 => (0u8..5, 0usize..120).prop_map(|(t, n)| Step::Take(t, n)),
                1 => (0usize..40, 0usize..60).prop_map(|(at, n)| Step::Grow(at, n)),
                2 => (0usize..40).prop_map(Step::Drop),
            ], 0..120),
        ) {
            let shares = Shares::new(total, (0..3).map(tenant));
            let own = total / SET_ASIDE / 3;
            let mut held: Vec<(u8, Share)> = Vec::new();
            let sum = |held: &[(u8, Share)], t: u8| {
                held.iter().filter(|(of, _)| *of == t).map(|(_, s)| s.amount()).sum::<usize>()
            };
            for step in steps {
                match step {
                    Step::Take(t, amount) => {
                        let before = sum(&held, t);
                        match shares.account(&tenant(t), None).take(amount) {
                            Some(share) => held.push((t, share)),
                            None => prop_assert!(t >= 3 || before + amount > own),
                        }
                    }
                    Step::Grow(at, more) if !held.is_empty() => {
                        let at = at % held.len();
                        let (t, before) = (held[at].0, sum(&held, held[at].0));
                        prop_assert!(held[at].1.grow(more) || t >= 3 || before + more > own);
                    }
                    Step::Drop(at) if !held.is_empty() => {
                        let at = at % held.len();
                        held.swap_remove(at);
                    }
                    _ => {}
                }
                prop_assert!(held.iter().map(|(_, s)| s.amount()).sum::<usize>() <= total);
                for t in 0..5 {
                    prop_assert_eq!(shares.held(&tenant(t)), sum(&held, t));
                }
            }
            held.clear();
            let state = shares.state.lock();
            prop_assert!(state.held.is_empty() && state.common == 0);
        }
    }
}
