//! The wall clock of a guest: how far it is off, and its adjustment.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mayfly_protocol::Request;

use super::client::RequestStream;
use super::driver::Driver;
use super::{Channel, ChannelError};

/// Ways to the wall clock of a guest. Like a stream it keeps the channel open.
#[derive(Clone, Debug)]
pub struct GuestClock {
    driver: Driver,
}

/// How far a guest's wall clock is ahead of the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockOffset {
    /// Nanoseconds; negative for a guest that is behind.
    pub nanoseconds: i64,
    /// Most that the figure can be wrong: half of the time in which the guest answered.
    pub error: Duration,
}

impl Channel {
    /// Returns a way to the wall clock of the guest.
    pub fn clock(&self) -> GuestClock {
        GuestClock { driver: self.driver().clone() }
    }
}

impl GuestClock {
    /// Measures how far the guest's clock is ahead of the host's: its answer is from some moment
    /// between question and answer, and taken to be from the middle.
    ///
    /// # Errors
    /// [`ChannelError`].
    pub async fn offset(&self) -> Result<ClockOffset, ChannelError> {
        self.ask(0).await
    }

    /// Adds `nanoseconds` to the guest's clock, and measures it then.
    ///
    /// # Errors
    /// [`ChannelError`].
    pub async fn adjust(&self, nanoseconds: i64) -> Result<ClockOffset, ChannelError> {
        self.ask(nanoseconds).await
    }

    async fn ask(&self, adjust_ns: i64) -> Result<ClockOffset, ChannelError> {
        let (wall, begun) = (SystemTime::now(), Instant::now());
        let mut stream = RequestStream::open(&self.driver, &Request::Clock { adjust_ns }).await?;
        let guest: u64 = stream.reply().await?;
        let error = begun.elapsed() / 2;
        let host = wall.duration_since(UNIX_EPOCH).unwrap_or_default() + error;
        let difference = i128::from(guest) - i128::try_from(host.as_nanos()).unwrap_or(i128::MAX);
        // A guest says what it likes.
        let nanoseconds =
            i64::try_from(difference).unwrap_or(if difference < 0 { -i64::MAX } else { i64::MAX });
        Ok(ClockOffset { nanoseconds, error })
    }
}
