//! Egress log: one line for each thing that a session asks of the outside, whatever becomes of it.
//! Of what costs a tenant no connection and comes without end, such as look-ups and what is refused,
//! a part is left out, with its number in the next line.

use super::addresses::Denied;
use super::host::shorten;
use super::line_rate::LineRate;
use super::policy::Policy;
use super::record::{EgressRecord, Kind, Observer, Verdict};
use mayfly_host::lines::Leave;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A line that is written when it is dropped, so that nothing ends without one.
#[derive(Debug)]
pub(super) struct Line {
    record: EgressRecord,
    began: Instant,
    /// A connection was made for it, whatever came of that.
    connected: bool,
    observer: Option<Arc<dyn Observer>>,
    rate: LineRate,
}

impl Line {
    pub fn new(
        session: &str,
        policy: &Policy,
        rate: &LineRate,
        kind: Kind,
        host: &str,
        port: u16,
    ) -> Self {
        let record = EgressRecord {
            session: session.to_owned(),
            tenant: policy.tenant().map(str::to_owned),
            kind,
            host: shorten(host),
            port,
            address: None,
            // Unless it is said to be otherwise, something has ended before it was decided.
            verdict: Verdict::Failed,
            reason: Some("it was given up before it was done".to_owned()),
            bytes_up: 0,
            bytes_down: 0,
            duration: Duration::ZERO,
        };
        let (observer, rate) = (policy.observer().cloned(), rate.clone());
        Self { record, began: Instant::now(), connected: false, observer, rate }
    }

    pub fn denied(&mut self, reason: impl fmt::Display) {
        self.record.verdict = Verdict::Denied;
        self.record.reason = Some(reason.to_string());
    }

    pub fn denied_address(&mut self, address: IpAddr, why: Denied) {
        self.record.address = Some(address);
        self.denied(format_args!("{address} is {why}"));
    }

    /// Records that the policy denies the address to which a name leads, or that was named.
    pub fn denied_by_policy(&mut self, address: IpAddr) {
        self.record.address = Some(address);
        self.denied(format_args!("an entry of the policy denies {address}"));
    }

    pub fn failed(&mut self, reason: impl fmt::Display) {
        self.record.verdict = Verdict::Failed;
        self.record.reason = Some(reason.to_string());
    }

    /// Records that nobody answered; `address` is the last one that was tried.
    pub fn failed_at(&mut self, address: Option<IpAddr>, reason: impl fmt::Display) {
        self.record.address = address;
        self.failed(reason);
    }

    pub fn allowed(&mut self, address: Option<IpAddr>) {
        self.connected = self.record.kind != Kind::Dns;
        self.record.verdict = Verdict::Allowed;
        self.record.reason = None;
        self.record.address = address;
    }

    /// Records the bytes that were sent and received.
    pub fn counted(&mut self, up: u64, down: u64) {
        (self.record.bytes_up, self.record.bytes_down) = (up, down);
    }

    /// Records why a connection that was allowed ended.
    pub fn ended(&mut self, reason: impl fmt::Display) {
        self.record.reason = Some(reason.to_string());
    }
}

impl Line {
    /// Returns leave to write it. What a connection was made for is always told, also when the proxy
    /// says that it failed: the proxy, or the server, has no say in that.
    fn leave(&self, now: Instant) -> Option<Leave> {
        if self.connected {
            return Some(Leave { left_out: None });
        }
        self.rate.admit(now, self.record.tenant.as_deref())
    }

    fn write(&self, leave: Leave) {
        let EgressRecord { session, tenant, kind, host, port, address, verdict, reason, .. } =
            &self.record;
        tracing::info!(
            target: "mayfly::egress",
            session,
            tenant = tenant.as_deref().unwrap_or("-"),
            kind = kind.word(),
            host,
            port,
            address = address.map(tracing::field::display),
            verdict = verdict.word(),
            reason = reason.as_deref().map(tracing::field::display),
            bytes_up = self.record.bytes_up,
            bytes_down = self.record.bytes_down,
            duration = ?self.record.duration,
            left_out = leave.left_out,
            "egress"
        );
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.record.duration = self.began.elapsed();
        if let Some(leave) = self.leave(Instant::now()) {
            self.write(leave);
        }
        if let Some(observer) = &self.observer {
            observer.record(&self.record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A rate of which nothing is left, and when.
    fn spent() -> (LineRate, Instant) {
        let (rate, now) = (LineRate::default(), Instant::now());
        while rate.admit(now, None).is_some() {}
        (rate, now)
    }

    fn line(rate: &LineRate, kind: Kind) -> Line {
        let policy = Policy::allow([""; 0]).unwrap();
        Line::new("s", &policy, rate, kind, "a.example", 443)
    }

    #[test]
    fn what_a_connection_was_made_for_is_told_whatever_came_of_it() {
        let (rate, now) = spent();
        for kind in [Kind::Connect, Kind::Http] {
            let mut line = line(&rate, kind);
            line.failed("nobody answers");
            assert_eq!(line.leave(now), None);
            line.allowed(Some([192, 0, 2, 1].into()));
            assert_eq!(line.leave(now), Some(Leave { left_out: None }));
            line.failed("the server did not answer");
            assert_eq!(line.leave(now), Some(Leave { left_out: None }));
        }
    }

    #[test]
    fn look_ups_have_a_rate_also_when_they_are_allowed() {
        let (rate, now) = spent();
        let mut line = line(&rate, Kind::Dns);
        line.allowed(Some([192, 0, 2, 1].into()));
        assert_eq!(line.leave(now), None);
        let later = now + Duration::from_secs(1);
        assert_eq!(line.leave(later), Some(Leave { left_out: Some(2) }));
    }
}
