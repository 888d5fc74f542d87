//! Idempotency keys: the same request again, from a client that lost the answer, gets the same
//! session.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use mayfly_api::{CreateSession, TenantName};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio::time::Instant;

use super::fair::FairCounts;

/// Longest key, in bytes.
pub const MAX_KEY_LEN: usize = 255;

type Key = (TenantName, String);

/// The idempotency keys of all tenants, with the sessions that they stand for.
pub struct Idempotency {
    ttl: Duration,
    keys: Mutex<Keys>,
}

impl std::fmt::Debug for Idempotency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Idempotency").field("ttl", &self.ttl).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Keys {
    entries: HashMap<Key, Entry>,
    /// The keys of each tenant whose sessions are made, by age. Those under way are never given up;
    /// the bound on a tenant's requests bounds them.
    made: HashMap<TenantName, BTreeMap<u64, String>>,
    counts: FairCounts,
    next: u64,
}

struct Entry {
    number: u64,
    request: blake3::Hash,
    begun: Instant,
    state: State,
}

enum State {
    /// Closed when the request is done, one way or another.
    UnderWay(watch::Receiver<()>),
    Made(String),
}

/// What to do with a request that has a key.
pub(super) enum Begin {
    /// Make a session.
    Make(Claim),
    /// Wait for another one to be done, then begin again.
    Wait(watch::Receiver<()>),
    /// This session was made for it.
    Made(String),
    /// The key belongs to another request.
    Conflict,
    /// Too many keys are in use by requests under way.
    Full,
}

/// The right to make the session of a key. Dropped without [`Claim::made`], the key is free again.
pub(super) struct Claim {
    keys: Arc<Idempotency>,
    key: Key,
    number: u64,
    /// Dropping it wakes those who wait.
    _done: watch::Sender<()>,
}

impl Idempotency {
    /// Remembers keys for `ttl`.
    pub fn new(ttl: Duration) -> Self {
        Self { ttl, keys: Mutex::default() }
    }

    pub(super) fn begin(
        self: &Arc<Self>,
        tenant: &TenantName,
        key: &str,
        request: &CreateSession,
    ) -> Begin {
        // Maps are sorted, so that equal requests have equal text; a request of plain data always
        // has one.
        let text = serde_json::to_vec(request).unwrap_or_default();
        let request = blake3::hash(&text);
        let key = (tenant.clone(), key.to_owned());
        let mut keys = self.keys();
        keys.expire(tenant, self.ttl);
        if let Some(entry) = keys.entries.get(&key) {
            return match &entry.state {
                _ if entry.request != request => Begin::Conflict,
                State::UnderWay(done) => Begin::Wait(done.clone()),
                State::Made(id) => Begin::Made(id.clone()),
            };
        }
        if !keys.make_room(tenant) {
            return Begin::Full;
        }
        let (done, waiting) = watch::channel(());
        let number = keys.next;
        keys.next += 1;
        keys.counts.add(tenant);
        let entry =
            Entry { number, request, begun: Instant::now(), state: State::UnderWay(waiting) };
        keys.entries.insert(key.clone(), entry);
        Begin::Make(Claim { keys: self.clone(), key, number, _done: done })
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock()
    }
}

impl Keys {
    fn remove(&mut self, key: &Key) {
        let Some(entry) = self.entries.remove(key) else { return };
        let tenant = &key.0;
        self.counts.remove(tenant);
        if let Some(made) = self.made.get_mut(tenant) {
            made.remove(&entry.number);
            if made.is_empty() {
                self.made.remove(tenant);
            }
        }
    }

    fn oldest_made(&self, tenant: &TenantName) -> Option<Key> {
        let (_, key) = self.made.get(tenant)?.first_key_value()?;
        Some((tenant.clone(), key.clone()))
    }

    fn expire(&mut self, tenant: &TenantName, ttl: Duration) {
        while let Some(key) = self.oldest_made(tenant)
            && self.entries.get(&key).is_some_and(|entry| entry.begun.elapsed() >= ttl)
        {
            self.remove(&key);
        }
    }

    /// Whether `tenant` may have one more key, after whoever has the most has given one up.
    fn make_room(&mut self, tenant: &TenantName) -> bool {
        while let Some(victim) = self.counts.victim(tenant) {
            // All of the victim's are under way: then it has to be one of its own.
            let Some(key) = self.oldest_made(&victim).or_else(|| self.oldest_made(tenant)) else {
                return false;
            };
            self.remove(&key);
        }
        true
    }

    fn made(&mut self, key: &Key, id: &str) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.state = State::Made(id.to_owned());
            let made = self.made.entry(key.0.clone()).or_default();
            made.insert(entry.number, key.1.clone());
        }
    }
}

impl Claim {
    /// Records that the session is made.
    pub fn made(self, id: &str) {
        self.keys.keys().made(&self.key, id);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut keys = self.keys.keys();
        let unfinished = |entry: &Entry| {
            entry.number == self.number && matches!(entry.state, State::UnderWay(_))
        };
        if keys.entries.get(&self.key).is_some_and(unfinished) {
            keys.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(per_tenant: usize) -> Arc<Idempotency> {
        let keys = Idempotency::new(Duration::from_secs(60));
        keys.keys().counts = FairCounts::new(per_tenant, 2 * per_tenant);
        Arc::new(keys)
    }

    /// Keys, and those of them whose sessions are made.
    fn sizes(keys: &Idempotency) -> (usize, usize) {
        let keys = keys.keys();
        (keys.entries.len(), keys.made.values().map(BTreeMap::len).sum())
    }

    fn request(golden: &str) -> CreateSession {
        CreateSession { golden: golden.into(), ..CreateSession::default() }
    }

    fn claim(begin: Begin) -> Claim {
        match begin {
            Begin::Make(claim) => claim,
            _ => panic!("the key is in use"),
        }
    }

    #[tokio::test]
    async fn the_same_request_gets_the_same_session_and_another_one_a_conflict() {
        let (keys, tenant, other) =
            (keys(10), TenantName::local(), TenantName::new("other").unwrap());
        let first = claim(keys.begin(&tenant, "k", &request("a")));
        assert!(matches!(keys.begin(&tenant, "k", &request("b")), Begin::Conflict));
        let Begin::Wait(mut done) = keys.begin(&tenant, "k", &request("a")) else {
            panic!("not under way")
        };
        // Another tenant's key is another key.
        drop(claim(keys.begin(&other, "k", &request("b"))));
        first.made("1");
        assert!(done.changed().await.is_err());
        assert!(matches!(keys.begin(&tenant, "k", &request("a")), Begin::Made(id) if id == "1"));
        assert!(matches!(keys.begin(&tenant, "k", &request("b")), Begin::Conflict));
    }

    #[tokio::test]
    async fn a_key_is_free_again_after_its_time() {
        let (keys, tenant) = (Arc::new(Idempotency::new(Duration::ZERO)), TenantName::local());
        let first = claim(keys.begin(&tenant, "k", &request("a")));
        // Not while its request is under way.
        assert!(matches!(keys.begin(&tenant, "k", &request("a")), Begin::Wait(_)));
        first.made("1");
        drop(claim(keys.begin(&tenant, "k", &request("b"))));
    }

    #[tokio::test]
    async fn a_request_that_was_withdrawn_or_failed_leaves_the_key_to_the_next() {
        let (keys, tenant) = (keys(10), TenantName::local());
        let first = claim(keys.begin(&tenant, "k", &request("a")));
        let Begin::Wait(mut done) = keys.begin(&tenant, "k", &request("a")) else {
            panic!("not under way")
        };
        drop(first);
        assert!(done.changed().await.is_err());
        claim(keys.begin(&tenant, "k", &request("a"))).made("2");
        assert!(matches!(keys.begin(&tenant, "k", &request("a")), Begin::Made(id) if id == "2"));
    }

    #[test]
    fn memory_is_bounded_and_keys_under_way_are_never_forgotten() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _entered = runtime.enter();
        let (keys, tenant) = (keys(3), TenantName::local());
        let under_way = claim(keys.begin(&tenant, "0", &request("a")));
        for n in 1..100 {
            claim(keys.begin(&tenant, &n.to_string(), &request("a"))).made("s");
        }
        assert_eq!(sizes(&keys), (3, 2));
        assert!(matches!(keys.begin(&tenant, "0", &request("a")), Begin::Wait(_)));
        let (a, b) = (
            claim(keys.begin(&tenant, "a", &request("a"))),
            claim(keys.begin(&tenant, "b", &request("a"))),
        );
        assert!(matches!(keys.begin(&tenant, "c", &request("a")), Begin::Full));
        drop((under_way, a, b));
        assert_eq!(sizes(&keys), (0, 0));
    }

    #[tokio::test]
    async fn nobody_pushes_out_anothers_keys() {
        let (keys, names) = (keys(10), ["a", "b", "c", "d"].map(|n| TenantName::new(n).unwrap()));
        let make = |tenant: &TenantName, key: &str, id: &str| {
            claim(keys.begin(tenant, key, &request("a"))).made(id);
        };
        make(&names[0], "mine", "1");
        for n in 0..100 {
            for busy in &names[1..] {
                make(busy, &n.to_string(), "2");
            }
        }
        assert_eq!(sizes(&keys), (20, 20));
        let again = keys.begin(&names[0], "mine", &request("a"));
        assert!(matches!(again, Begin::Made(id) if id == "1"));
    }
}
