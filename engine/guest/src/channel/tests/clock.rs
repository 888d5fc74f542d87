//! The clock of a guest, as it is told and as it is understood.

use super::Agent;
use super::hostile::{open, scripted};
use crate::channel::{ChannelError, ClockOffset};
use mayfly_protocol::{Reply, Request, encode_frame};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[tokio::test]
async fn an_agent_on_this_host_has_its_clock_and_does_not_change_it() {
    let (_agent, channel) = Agent::open().await;
    let clock = channel.clock();
    let ClockOffset { nanoseconds, error } = clock.offset().await.unwrap();
    assert!(u128::from(nanoseconds.unsigned_abs()) <= error.as_nanos(), "{nanoseconds} {error:?}");
    assert!(matches!(clock.adjust(1).await, Err(ChannelError::Guest(_))));
}

#[tokio::test]
async fn the_offset_is_what_a_guest_is_ahead_whatever_it_says() {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let said = |reply: fn(Duration) -> u64| async move {
        let guest = scripted(move |request| {
            assert!(matches!(request, Request::Clock { adjust_ns: 0 }));
            encode_frame(&Reply::Ok(reply(now()))).unwrap()
        });
        open(guest).await.clock().offset().await.unwrap()
    };
    let ahead = said(|now| u64::try_from(now.as_nanos()).unwrap() + 7_000_000_000).await;
    let wrong = (ahead.nanoseconds - 7_000_000_000).unsigned_abs();
    assert!(u128::from(wrong) <= ahead.error.as_nanos());
    assert!(said(|_| 0).await.nanoseconds < -1_000_000_000_000_000_000);
    assert_eq!(said(|_| u64::MAX).await.nanoseconds, i64::MAX);
}
