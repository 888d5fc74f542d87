//! Requests that wait, in turns between their tenants.

use std::collections::{HashMap, VecDeque};

use mayfly_api::TenantName;

/// Number of a waiting request; never given out twice.
pub(super) type Ticket = u64;

/// First in, first out for each tenant; between tenants round-robin. Bounded by its user.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    tenants: HashMap<TenantName, VecDeque<(Ticket, T)>>,
    /// Tenants with waiting requests, the one whose turn it is first. Each is in here once.
    turns: VecDeque<TenantName>,
    next: Ticket,
    len: usize,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { tenants: HashMap::new(), turns: VecDeque::new(), next: 0, len: 0 }
    }
}

impl<T> FairQueue<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    /// How many of one tenant wait.
    pub fn len_of(&self, tenant: &TenantName) -> usize {
        self.tenants.get(tenant).map_or(0, VecDeque::len)
    }

    pub fn push(&mut self, tenant: &TenantName, item: T) -> Ticket {
        let ticket = self.next;
        self.next += 1;
        self.len += 1;
        if let Some(waiting) = self.tenants.get_mut(tenant) {
            waiting.push_back((ticket, item));
        } else {
            self.tenants.insert(tenant.clone(), VecDeque::from([(ticket, item)]));
            self.turns.push_back(tenant.clone());
        }
        ticket
    }

    /// Takes out the request whose turn it is.
    pub fn pop(&mut self) -> Option<(TenantName, T)> {
        let tenant = self.turns.pop_front()?;
        let waiting = self.tenants.get_mut(&tenant)?;
        let (_, item) = waiting.pop_front()?;
        self.len -= 1;
        if waiting.is_empty() {
            self.tenants.remove(&tenant);
        } else {
            self.turns.push_back(tenant.clone());
        }
        Some((tenant, item))
    }

    /// How many have their turn before the next request of `tenant`.
    pub fn ahead_of_next(&self, tenant: &TenantName) -> usize {
        turns_before(self.len_of(tenant), self.tenants.values().map(VecDeque::len))
    }

    /// Takes out the requests for which `wanted` has an answer, given how many have their turn
    /// before each; with that number and the answer.
    pub fn take_out<R>(
        &mut self,
        wanted: impl Fn(usize, &T) -> Option<R>,
    ) -> Vec<(TenantName, usize, R, T)> {
        let mut lengths: Vec<usize> = self.tenants.values().map(VecDeque::len).collect();
        let mut out = Vec::new();
        for (at, (tenant, waiting)) in self.tenants.iter_mut().enumerate() {
            let mut kept = VecDeque::new();
            for (ticket, item) in waiting.drain(..) {
                let own = kept.len();
                // Those behind it in its own line come after it.
                let others = turns_before(own, lengths.iter().copied());
                let ahead = others.saturating_sub(usize::from(lengths.iter().any(|l| *l > own)));
                match wanted(ahead, &item) {
                    Some(answer) => out.push((tenant.clone(), ahead, answer, item)),
                    None => kept.push_back((ticket, item)),
                }
            }
            // Whoever was taken out is in nobody's way.
            lengths[at] = kept.len();
            *waiting = kept;
        }
        self.len -= out.len();
        let tenants = &mut self.tenants;
        tenants.retain(|_, waiting| !waiting.is_empty());
        self.turns.retain(|tenant| tenants.contains_key(tenant));
        out
    }

    /// Takes a request back; `None` when it is not waiting any more.
    pub fn remove(&mut self, tenant: &TenantName, ticket: Ticket) -> Option<T> {
        let waiting = self.tenants.get_mut(tenant)?;
        let at = waiting.iter().position(|(t, _)| *t == ticket)?;
        let (_, item) = waiting.remove(at)?;
        self.len -= 1;
        if waiting.is_empty() {
            self.tenants.remove(tenant);
            self.turns.retain(|t| t != tenant);
        }
        Some(item)
    }
}

/// How many have their turn before somebody who has `own` others of its tenant before it, where the
/// tenants have lines of these lengths.
fn turns_before(own: usize, lengths: impl Iterator<Item = usize>) -> usize {
    lengths.map(|length| length.min(own + 1)).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tenant(n: u8) -> TenantName {
        TenantName::new(format!("t{n}")).unwrap()
    }

    #[test]
    fn a_tenant_with_many_requests_does_not_hold_up_one_with_few() {
        let mut queue = FairQueue::default();
        for n in 0..100 {
            queue.push(&tenant(0), n);
        }
        queue.push(&tenant(1), 1000);
        queue.push(&tenant(2), 2000);
        queue.push(&tenant(1), 1001);
        let order: Vec<i32> = std::iter::from_fn(|| queue.pop()).map(|(_, n)| n).take(6).collect();
        assert_eq!(order, [0, 1000, 2000, 1, 1001, 2]);
    }

    #[test]
    fn those_ahead_are_counted_in_turns() {
        let mut queue = FairQueue::default();
        for n in 0..100 {
            queue.push(&tenant(0), n);
        }
        queue.push(&tenant(1), 1000);
        assert_eq!(queue.ahead_of_next(&tenant(0)), 101);
        assert_eq!(queue.ahead_of_next(&tenant(1)), 3);
        assert_eq!(queue.ahead_of_next(&tenant(2)), 2);
        let late = queue.take_out(|ahead, _| (ahead > 40).then_some(()));
        let late: Vec<(usize, i32)> =
            late.into_iter().map(|(_, ahead, (), n)| (ahead, n)).collect();
        // The first of the other tenant has its turn among the first two.
        assert_eq!((late[0], late.len()), ((41, 40), 60));
        assert_eq!(queue.len(), 41);
        assert_eq!(queue.take_out(|_, n| (*n == 1000).then_some(())).len(), 1);
        assert_eq!((queue.turns.len(), queue.tenants.len()), (1, 1));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push(u8),
        Pop,
        Remove(u8, u64),
    }

    proptest! {
        /// Against a plain model: everything comes out once, in order within a tenant, and no
        /// tenant that waits is passed over by another twice.
        #[test]
        fn fair_and_complete(steps in prop::collection::vec(prop_oneof![
            3 => (0u8..5).prop_map(Step::Push),
            2 => Just(Step::Pop),
            1 => (0u8..5, 0u64..60).prop_map(|(t, n)| Step::Remove(t, n)),
        ], 0..200)) {
            let mut queue = FairQueue::default();
            let mut model: Vec<(u8, u64)> = Vec::new();
            let mut passed: HashMap<(u8, u8), u32> = HashMap::new();
            for step in steps {
                match step {
                    Step::Push(t) => {
                        if !model.iter().any(|(other, _)| *other == t) {
                            passed.retain(|(waiting, _), _| *waiting != t);
                        }
                        let ticket = queue.push(&tenant(t), t);
                        model.push((t, ticket));
                    }
                    Step::Pop => match queue.pop() {
                        None => prop_assert!(model.is_empty()),
                        Some((name, t)) => {
                            prop_assert_eq!(&name, &tenant(t));
                            let at = model.iter().position(|(other, _)| *other == t).unwrap();
                            model.remove(at);
                            passed.retain(|(waiting, _), _| *waiting != t);
                            let others: std::collections::BTreeSet<u8> = model.iter().map(|(o, _)| *o).collect();
                            for other in others.into_iter().filter(|o| *o != t) {
                                let count = passed.entry((other, t)).or_default();
                                *count += 1;
                                prop_assert!(*count <= 1, "t{} was served twice while t{} waited", t, other);
                            }
                        }
                    },
                    Step::Remove(t, ticket) => {
                        let at = model.iter().position(|m| *m == (t, ticket));
                        prop_assert_eq!(queue.remove(&tenant(t), ticket).is_some(), at.is_some());
                        if let Some(at) = at {
                            model.remove(at);
                        }
                    }
                }
                prop_assert_eq!(queue.len(), model.len());
                let waiting: std::collections::BTreeSet<u8> = model.iter().map(|(t, _)| *t).collect();
                prop_assert_eq!(queue.turns.len(), waiting.len());
                prop_assert_eq!(queue.tenants.len(), waiting.len());
            }
            let mut rest = Vec::new();
            while let Some((_, t)) = queue.pop() {
                rest.push(t);
            }
            rest.sort_unstable();
            let mut expected: Vec<u8> = model.iter().map(|(t, _)| *t).collect();
            expected.sort_unstable();
            prop_assert_eq!(rest, expected);
        }
    }
}
