//! Lines of the log that a tenant or its guest can cause at will: few for each tenant, so that no
//! tenant's requests push other lines out of the log. A log that is full loses lines of its own
//! choice, among them what other tenants' sessions asked of the outside. Metrics count everything.

use std::collections::HashMap;
use std::time::Instant;

use mayfly_api::TenantName;
use parking_lot::Mutex;

/// Most characters of a message that may have words of a client or a guest.
pub const LONGEST: usize = 4096;

/// Lines of each kind that a tenant has after a pause, and how many come back in a second.
const OF_TENANT: Rate = Rate { burst: 30.0, per_second: 1.0 };
/// The same for all of them together. journald drops what one unit writes beyond 10,000 lines in
/// 30 s (journald.conf(5), `RateLimitBurst`): most of that is left to other lines.
const OF_ALL: Rate = Rate { burst: 1000.0, per_second: 50.0 };
/// Most tenants that are told apart, times the kinds. Over the Unix socket a request names any.
const MOST: usize = 1024;

static LINES: Mutex<Option<Lines>> = Mutex::new(None);

tokio::task_local! {
    static ASKING: TenantName;
}

/// What a line is about. Each has lines of its own: a tenant that is refused hides no failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// A request that is refused.
    Refusal,
    /// A guest that fails.
    Guest,
    /// The daemon, which fails at what was asked.
    Daemon,
}

/// Handles a request as that of `tenant`: what fails meanwhile counts as its.
pub async fn on_behalf_of<T>(tenant: TenantName, work: impl Future<Output = T>) -> T {
    ASKING.scope(tenant, work).await
}

/// Returns the tenant whose request is handled, where that is known.
pub fn asking() -> Option<TenantName> {
    ASKING.try_with(Clone::clone).ok()
}

/// Does what [`on_behalf_of`] does, at once.
#[cfg(test)]
pub(crate) fn on_behalf_of_now<T>(tenant: &TenantName, work: impl FnOnce() -> T) -> T {
    ASKING.sync_scope(tenant.clone(), work)
}

/// Leave to write a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leave {
    /// Lines of the same tenant and cause that were left out before it, where some were.
    pub left_out: Option<u64>,
}

/// Gives leave to write a line, unless there were many a moment ago. Without a tenant it counts for
/// all who are not known.
pub fn admit(cause: Cause, tenant: Option<&TenantName>) -> Option<Leave> {
    let now = Instant::now();
    LINES.lock().get_or_insert_with(|| Lines::new(now)).admit(now, cause, tenant)
}

/// Cuts a message that is longer than [`LONGEST`].
pub fn cut(mut message: String) -> String {
    if let Some((end, _)) = message.char_indices().nth(LONGEST) {
        message.truncate(end);
        message.push_str("...");
        message.shrink_to_fit();
    }
    message
}

/// A bucket that fills again with time.
#[derive(Debug, Clone, Copy)]
struct Rate {
    burst: f64,
    per_second: f64,
}

#[derive(Debug)]
struct Bucket {
    rate: Rate,
    left: f64,
    at: Instant,
}

impl Bucket {
    fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, left: rate.burst, at: now }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * self.rate.per_second).min(self.rate.burst);
        self.at = now;
    }

    fn has_one(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.left >= 1.0
    }

    fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.left >= self.rate.burst
    }
}

#[derive(Debug)]
struct Entry {
    bucket: Bucket,
    left_out: u64,
}

#[derive(Debug)]
struct Lines {
    all: Bucket,
    entries: HashMap<(Cause, Option<TenantName>), Entry>,
}

impl Lines {
    fn new(now: Instant) -> Self {
        Self { all: Bucket::new(OF_ALL, now), entries: HashMap::new() }
    }

    fn admit(&mut self, now: Instant, cause: Cause, tenant: Option<&TenantName>) -> Option<Leave> {
        let mut key = (cause, tenant.cloned());
        if self.entries.len() >= MOST && !self.entries.contains_key(&key) {
            self.entries.retain(|_, entry| !entry.bucket.is_full(now));
            if self.entries.len() >= MOST {
                key.1 = None;
            }
        }
        let new = || Entry { bucket: Bucket::new(OF_TENANT, now), left_out: 0 };
        let entry = self.entries.entry(key).or_insert_with(new);
        if !(entry.bucket.has_one(now) && self.all.has_one(now)) {
            entry.left_out += 1;
            return None;
        }
        entry.bucket.left -= 1.0;
        self.all.left -= 1.0;
        let left_out = std::mem::take(&mut entry.left_out);
        Some(Leave { left_out: (left_out > 0).then_some(left_out) })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const FIRST: Option<Leave> = Some(Leave { left_out: None });

    fn after(left_out: u64) -> Leave {
        Leave { left_out: Some(left_out) }
    }

    fn tenant(name: impl std::fmt::Display) -> TenantName {
        TenantName::new(name.to_string()).unwrap()
    }

    #[test]
    fn a_tenant_has_few_lines_and_is_told_how_many_were_left_out() {
        let begun = Instant::now();
        let mut lines = Lines::new(begun);
        let (a, b) = (tenant("a"), tenant("b"));
        let written =
            (0..10_000).filter(|_| lines.admit(begun, Cause::Refusal, Some(&a)).is_some());
        assert_eq!(written.count(), 30);
        // Another tenant, and another cause, have theirs.
        assert_eq!(lines.admit(begun, Cause::Refusal, Some(&b)), FIRST);
        assert_eq!(lines.admit(begun, Cause::Daemon, Some(&a)), FIRST);
        let later = begun + Duration::from_millis(1001);
        assert_eq!(lines.admit(later, Cause::Refusal, Some(&a)), Some(after(9970)));
        assert_eq!(lines.admit(later, Cause::Refusal, Some(&a)), None);
        let later = begun + Duration::from_secs(3);
        assert_eq!(lines.admit(later, Cause::Refusal, Some(&a)), Some(after(1)));
    }

    #[test]
    fn any_number_of_tenants_leaves_most_of_the_log_to_others_and_is_bounded() {
        let begun = Instant::now();
        let mut lines = Lines::new(begun);
        let mut written = 0;
        for millisecond in 0..30_000 {
            let now = begun + Duration::from_millis(millisecond);
            let who = tenant(format!("t{}", millisecond % 5000));
            written += u32::from(lines.admit(now, Cause::Refusal, Some(&who)).is_some());
            written += u32::from(lines.admit(now, Cause::Guest, Some(&who)).is_some());
        }
        assert!((1000..=2600).contains(&written), "{written}");
        assert!(lines.entries.len() <= MOST + 3, "{}", lines.entries.len());
        // Who has been quiet is forgotten, and a new tenant has lines of its own again.
        let later = begun + Duration::from_secs(100);
        for n in 0..900 {
            let new = tenant(format!("new{n}"));
            assert_eq!(lines.admit(later, Cause::Guest, Some(&new)), FIRST, "{n}");
        }
        assert!(lines.entries.len() <= MOST, "{}", lines.entries.len());
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        assert_eq!(cut("ü".repeat(LONGEST)), "ü".repeat(LONGEST));
        assert_eq!(cut("ü".repeat(LONGEST + 1)), "ü".repeat(LONGEST) + "...");
    }

    #[tokio::test]
    async fn who_asks_is_known_within_its_request_only() {
        assert_eq!(asking(), None);
        let seen = on_behalf_of(tenant("a"), async {
            tokio::task::yield_now().await;
            asking()
        });
        assert_eq!(seen.await, Some(tenant("a")));
        assert_eq!(asking(), None);
    }
}
