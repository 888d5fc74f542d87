//! Fixed amounts, such as bytes or connections, divided between tenants.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use mayfly_api::TenantName;
use mayfly_guest::channel::{Aside, Buffers, SetAside};
use parking_lot::Mutex;

/// One part in this many of the whole is set aside: in equal parts for the known tenants.
const SET_ASIDE: usize = 4;
/// What is kept leaves one part in this many of what there is to what only passes through, and so
/// many of what a tenant with a bound of its own may hold.
const PASSING: (usize, usize) = (64, 8);
/// More than this is never left to what passes through: the longest answer that reads what is kept.
const MOST_PASSING: usize = 2 << 20;

/// Fixed amount of something, divided between tenants.
///
/// A part is set aside for each known tenant: however much the others hold, that part is there. Of
/// the rest, which is common to all, a tenant takes no more than it leaves: the more of them hold
/// something, the smaller the part of each, and there is always something for the next one. (The
/// rule is that of shared buffers in switches: A. K. Choudhury and E. L. Hahne, "Dynamic queue
/// length thresholds for shared-memory packet switches", IEEE/ACM Transactions on Networking 6(2),
/// 1998, with alpha = 1.) A single known tenant has nobody to leave anything to, and may take all.
///
/// What is kept, such as output that nobody has read, must not be in the way of what passes
/// through, such as the answer by which it is read. So what is kept leaves a little, and the rule
/// does not apply to that little.
pub struct Shares {
    /// Set aside for each known tenant.
    own: usize,
    known: HashSet<TenantName>,
    /// What is left for everybody.
    common: usize,
    /// What is left, of the amount of each tenant, to what passes through.
    passing: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What each tenant holds that holds anything.
    held: HashMap<TenantName, Holding>,
    /// How much of the common part is taken.
    common: usize,
}

/// What one tenant holds.
#[derive(Debug, Clone, Copy, Default)]
struct Holding {
    all: usize,
    /// How much of it passes through.
    passing: usize,
}

impl Holding {
    fn with(self, amount: usize, passes: bool) -> Option<Self> {
        let all = self.all.checked_add(amount)?;
        Some(Self { all, passing: self.passing + if passes { amount } else { 0 } })
    }
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
    /// Divides `total`, a part of which is set aside for the `known` tenants. Nothing of it passes
    /// through.
    pub fn new(total: usize, known: impl IntoIterator<Item = TenantName>) -> Arc<Self> {
        Arc::new(Self::divide(total, known))
    }

    /// Divides as many bytes as [`Shares::new`] does, some of which are left to what
    /// [passes through](Account::passing).
    pub fn of_bytes(total: usize, known: impl IntoIterator<Item = TenantName>) -> Arc<Self> {
        let passing = (total / PASSING.0).min(MOST_PASSING);
        Arc::new(Self { passing, ..Self::divide(total, known) })
    }

    fn divide(total: usize, known: impl IntoIterator<Item = TenantName>) -> Self {
        let known: HashSet<_> = known.into_iter().collect();
        let own = (total / SET_ASIDE).checked_div(known.len()).unwrap_or(0);
        let common = total - own * known.len();
        Self { own, known, common, passing: 0, state: Mutex::default() }
    }

    /// Returns the account of a tenant, which may hold `most` at a time.
    pub fn account(self: &Arc<Self>, tenant: &TenantName, most: Option<usize>) -> Account {
        let most = most.unwrap_or(usize::MAX);
        Account { shares: self.clone(), tenant: tenant.clone(), most, passes: false }
    }

    /// Returns how much a tenant holds.
    pub fn held(&self, tenant: &TenantName) -> usize {
        self.state.lock().held.get(tenant).map_or(0, |held| held.all)
    }

    fn own(&self, tenant: &TenantName) -> usize {
        if self.known.contains(tenant) { self.own } else { 0 }
    }

    fn take(&self, account: &Account, amount: usize) -> bool {
        if amount == 0 {
            return true;
        }
        let mut state = self.state.lock();
        let before = state.held.get(&account.tenant).copied().unwrap_or_default();
        let Some(after) = before.with(amount, account.passes) else { return false };
        let own = self.own(&account.tenant);
        let of_common = after.all.saturating_sub(own);
        let common = state.common - before.all.saturating_sub(own) + of_common;
        if common > self.common || !self.may_hold(account, after, self.common - common) {
            return false;
        }
        state.common = common;
        state.held.insert(account.tenant.clone(), after);
        true
    }

    /// Whether a tenant may hold `after` when `free` of the common part is left then.
    fn may_hold(&self, account: &Account, after: Holding, free: usize) -> bool {
        let passing = self.passing.min(account.most / PASSING.1);
        let (needed, bound_by_others) = if account.passes {
            (after.all, after.passing > passing)
        } else {
            (after.all.saturating_add(passing.saturating_sub(after.passing)), true)
        };
        let of_common = needed.saturating_sub(self.own(&account.tenant));
        let alone = self.known.len() <= 1;
        // Where there are few, the first one leaves none, and is taken all the same.
        needed <= account.most && (alone || !bound_by_others || of_common <= free.max(1))
    }

    fn give_back(&self, account: &Account, amount: usize) {
        if amount == 0 {
            return;
        }
        let own = self.own(&account.tenant);
        let mut state = self.state.lock();
        let before = state.held.get(&account.tenant).copied().unwrap_or_default();
        let passing = before.passing - if account.passes { amount } else { 0 };
        let after = Holding { all: before.all.saturating_sub(amount), passing };
        state.common -= before.all.saturating_sub(own) - after.all.saturating_sub(own);
        if after.all == 0 {
            state.held.remove(&account.tenant);
        } else {
            state.held.insert(account.tenant.clone(), after);
        }
    }
}

/// Account of one tenant, from which it takes its shares. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Account {
    shares: Arc<Shares>,
    tenant: TenantName,
    most: usize,
    passes: bool,
}

impl Account {
    /// Returns the account for what only passes through: it is given back soon, whatever the tenant
    /// does.
    pub fn passing(&self) -> Self {
        Self { passes: true, ..self.clone() }
    }

    /// Takes `amount`; `None` when the tenant may not hold so much more, or others hold it.
    pub fn take(&self, amount: usize) -> Option<Share> {
        self.shares.take(self, amount).then(|| Share { account: self.clone(), amount })
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

impl Aside for Share {
    fn grow(&mut self, more: usize) -> bool {
        Share::grow(self, more)
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
        let taken = self.account.shares.take(&self.account, more);
        if taken {
            self.amount += more;
        }
        taken
    }

    /// Gives back what is beyond `to`.
    pub fn shrink(&mut self, to: usize) {
        let less = self.amount.saturating_sub(to);
        self.account.shares.give_back(&self.account, less);
        self.amount -= less;
    }

    /// Returns how much it is.
    pub fn amount(&self) -> usize {
        self.amount
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.account.shares.give_back(&self.account, self.amount);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tenant(n: u8) -> TenantName {
        TenantName::new(format!("t{n}")).unwrap()
    }

    /// As many tens as there are for an account.
    fn tens(account: &Account) -> Vec<Share> {
        std::iter::from_fn(|| account.take(10)).collect()
    }

    #[test]
    fn a_tenant_that_takes_all_it_can_leaves_as_much_of_what_is_common() {
        let shares = Shares::new(800, [tenant(0), tenant(1)]);
        let [a, b, stranger] = [0, 1, 9].map(|n| shares.account(&tenant(n), None));
        // 100 of its own, and half of 600.
        let all = tens(&a);
        assert_eq!((all.len(), a.held()), (40, 400));
        assert_eq!(tens(&stranger).len(), 15);
        let own = b.take(100).unwrap();
        assert!(b.take(151).is_none());
        drop(all);
        // 300 of 600, once more.
        assert!(stranger.take(301).is_none() && stranger.take(300).is_some());
        assert_eq!(own.amount(), 100);
    }

    #[test]
    fn the_last_one_is_for_whoever_has_none() {
        for total in 1..4 {
            let shares = Shares::new(total, [tenant(0), tenant(1)]);
            let [a, b] = [0, 1].map(|n| shares.account(&tenant(n), None));
            let first = a.take(1).unwrap();
            let second = b.take(1);
            assert_eq!(second.is_some(), total > 1, "{total}");
            drop((first, second));
        }
    }

    #[test]
    fn a_single_tenant_may_take_all() {
        let shares = Shares::new(800, [tenant(0)]);
        assert_eq!(tens(&shares.account(&tenant(0), None)).len(), 80);
    }

    #[test]
    fn what_is_kept_is_not_in_the_way_of_what_passes_through() {
        let shares = Shares::of_bytes(6400, [tenant(0), tenant(1)]);
        let [a, b] = [0, 1].map(|n| shares.account(&tenant(n), None));
        let kept = (tens(&a), tens(&b), tens(&a));
        assert!(a.take(10).is_none() && b.take(10).is_none());
        // A hundred is left to what passes, and to nothing that is kept.
        let passing = a.passing().take(100).unwrap();
        assert!(a.passing().take(1).is_none() && a.take(10).is_none());
        drop(passing);
        assert!(a.passing().take(100).is_some() && b.passing().take(100).is_some());
        drop(kept);
        assert_eq!((a.held(), shares.state.lock().common), (0, 0));

        let bounded = shares.account(&tenant(0), Some(400));
        let kept = tens(&bounded);
        assert_eq!(kept.len(), 35);
        assert!(bounded.passing().take(51).is_none() && bounded.passing().take(50).is_some());
    }

    #[test]
    fn a_bound_of_its_own_holds_and_nothing_is_taken_in_part() {
        let shares = Shares::new(1000, [tenant(0)]);
        let bounded = shares.account(&tenant(0), Some(50));
        let mut share = bounded.take(40).unwrap();
        assert!(bounded.take(11).is_none() && !share.grow(11) && !share.grow(usize::MAX));
        assert!(share.grow(10));
        share.shrink(60);
        assert_eq!(bounded.held(), 50);
        share.shrink(20);
        assert_eq!((share.amount(), bounded.held()), (20, 20));
        drop(share);
        assert_eq!(bounded.held(), 0);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Take(u8, usize, bool),
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
                3 => (0u8..5, 0usize..120, any::<bool>()).prop_map(|(t, n, p)| Step::Take(t, n, p)),
                1 => (0usize..40, 0usize..60).prop_map(|(at, n)| Step::Grow(at, n)),
                2 => (0usize..40).prop_map(Step::Drop),
            ], 0..120),
        ) {
            let shares = Shares::of_bytes(total, (0..3).map(tenant));
            // What is kept may take all of it but a little.
            let own = (total / SET_ASIDE / 3).saturating_sub(total / PASSING.0);
            let mut held: Vec<(u8, Share)> = Vec::new();
            let sum = |held: &[(u8, Share)], t: u8| {
                held.iter().filter(|(of, _)| *of == t).map(|(_, s)| s.amount()).sum::<usize>()
            };
            for step in steps {
                match step {
                    Step::Take(t, amount, passes) => {
                        let before = sum(&held, t);
                        let account = shares.account(&tenant(t), None);
                        let account = if passes { account.passing() } else { account };
                        match account.take(amount) {
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
