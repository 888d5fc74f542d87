//! Lines of the log that a tenant or its guest can cause at will: few for each tenant, so that no
//! tenant's requests push other lines out of the log. A log that is full loses lines of its own
//! choice, among them what other tenants' sessions asked of the outside. Metrics count everything.

use std::time::Instant;

use mayfly_api::TenantName;
use mayfly_host::lines::{Lines, Rate};
use parking_lot::Mutex;

pub use mayfly_host::lines::Leave;

/// Most characters of a message that may have words of a client or a guest.
pub const LONGEST: usize = 4096;

/// Lines of each kind that a tenant has after a pause, and how many come back in a second.
const OF_TENANT: Rate = Rate { burst: 30.0, per_second: 1.0 };
/// The same for all of them together. journald drops what one unit writes beyond 10,000 lines in
/// 30 s (journald.conf(5), `RateLimitBurst`): most of that is left to other lines.
const OF_ALL: Rate = Rate { burst: 1000.0, per_second: 50.0 };
/// Most tenants that are told apart, times the kinds. Over the Unix socket a request names any.
const MOST: usize = 1024;

type Key = (Cause, Option<TenantName>);

static LINES: Mutex<Option<Lines<Key>>> = Mutex::new(None);

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

/// Gives leave to write a line, unless there were many a moment ago. Without a tenant it counts for
/// all who are not known.
pub fn admit(cause: Cause, tenant: Option<&TenantName>) -> Option<Leave> {
    let now = Instant::now();
    let new = || Lines::new(OF_TENANT, MOST).with_all(OF_ALL, now);
    let answer =
        LINES.lock().get_or_insert_with(new).admit(now, (cause, tenant.cloned()), (cause, None));
    // One line, however many of them it tells of: each had its own bound only.
    let left_out: u64 = answer.forgotten.iter().map(|(_, left_out)| left_out).sum();
    if left_out > 0 {
        let tenants = answer.forgotten.len();
        tracing::info!(tenants, left_out, "lines of tenants that are quiet now were left out");
    }
    answer.leave
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

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: impl std::fmt::Display) -> TenantName {
        TenantName::new(name.to_string()).unwrap()
    }

    #[test]
    fn each_tenant_and_each_cause_has_lines_of_its_own() {
        let (a, b) = (tenant("few-lines-a"), tenant("few-lines-b"));
        while admit(Cause::Refusal, Some(&a)).is_some() {}
        let first = Some(Leave { left_out: None });
        assert_eq!(admit(Cause::Refusal, Some(&b)), first);
        assert_eq!(admit(Cause::Daemon, Some(&a)), first);
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
