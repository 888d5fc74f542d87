//! Errors between the engine and a guest.

use mayfly_protocol::{ApplyError, FrameError, GuestError, HelloError, Printable, StartFailure};
use std::io;
use std::time::Duration;

/// A failed exchange with a guest.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The byte stream to the guest failed.
    #[error("channel to the guest failed: {0}")]
    Io(io::Error),
    /// The channel is over; the session it belongs to can only be discarded.
    #[error("channel to the guest is closed: {}", Printable(reason))]
    Closed {
        /// Reason why it is over. It may be the guest's, and is displayed as [`Printable`].
        reason: String,
    },
    /// The identity for the guest is not valid, or its answer is not.
    #[error("handshake with the guest: {0}")]
    Handshake(HelloError),
    /// The guest did not take the identity and stays parked.
    #[error("guest refused its identity: {}", list(.errors))]
    Refused {
        /// Reasons that the guest gave.
        errors: Vec<ApplyError>,
    },
    /// The guest sent what no agent sends: it is broken or hostile; discard the session.
    #[error("guest broke the channel protocol: {}; discard this session", Printable(reason))]
    Protocol {
        /// Description of what it sent. Displayed as [`Printable`]: it may have the guest's words.
        reason: String,
    },
    /// The guest did what was asked and says why it failed.
    #[error("guest: {0}")]
    Guest(GuestError),
    /// The guest could not start a command, and says why.
    #[error("guest: {error}")]
    NotStarted {
        /// What kind of failure it is.
        kind: StartFailure,
        /// What was tried, and why it failed.
        error: GuestError,
    },
    /// The guest has neither started a command within its time limit nor said why not. It may hang.
    #[error("the guest has not started the command within {limit:?}, the command's time limit")]
    NoStart {
        /// Time limit of the command.
        limit: Duration,
    },
    /// The output or content is more than the caller wanted to hold.
    #[error("guest sent more than {limit} bytes of {what}; stream it instead of collecting it")]
    TooLong {
        /// Name of what was too long.
        what: &'static str,
        /// The limit in bytes.
        limit: usize,
    },
    /// The owner of the channel holds as much for its guests as it may. The guest has heard of
    /// nothing.
    #[error(
        "as many bytes are held for guests of this tenant as may be: end commands, transfers or \
         connections, or try again later"
    )]
    NoBuffers,
    /// The guest did not answer in time. What it does goes on: a file system of the guest may be
    /// frozen or hung.
    #[error(
        "the guest has not answered for {} s: a file system of it may be frozen or hung; it goes \
         on with what was asked",
        after.as_secs()
    )]
    NoAnswer {
        /// How long it was waited for.
        after: Duration,
    },
    /// The command has ended, or its handle is gone.
    #[error("the command takes no more input: it has ended")]
    Ended,
}

impl From<io::Error> for ChannelError {
    fn from(cause: io::Error) -> Self {
        Self::Io(cause)
    }
}

impl From<HelloError> for ChannelError {
    fn from(cause: HelloError) -> Self {
        Self::Handshake(cause)
    }
}

impl From<GuestError> for ChannelError {
    fn from(cause: GuestError) -> Self {
        Self::Guest(cause)
    }
}

impl From<FrameError> for ChannelError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Io(error) => Self::Io(error),
            other => Self::Protocol { reason: other.to_string() },
        }
    }
}

fn list(errors: &[ApplyError]) -> String {
    let all = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Printable(&all).to_string()
}

#[cfg(test)]
mod tests {
    use mayfly_protocol::{MAX_SHOWN, is_printable};

    use super::*;

    #[test]
    fn what_a_guest_wrote_is_cut_and_escaped() {
        // As an entry of a folder that a guest has named so is told.
        let reason = format!("directory entry named \u{1b}[2J{}", "x\u{202e}".repeat(1 << 20));
        let apply = |_| ApplyError { step: "hook".into(), errno: 0, message: reason.clone() };
        let errors = [
            ChannelError::Protocol { reason: reason.clone() },
            ChannelError::Closed { reason: reason.clone() },
            ChannelError::Refused { errors: (0..3).map(apply).collect() },
            ChannelError::from(FrameError::Io(io::Error::other("cut"))),
        ];
        for error in errors {
            let shown = error.to_string();
            assert!(shown.chars().all(is_printable), "{shown}");
            assert!(shown.len() <= 10 * MAX_SHOWN + 100, "{}", shown.len());
        }
        let plain = ChannelError::Protocol { reason: "a piece of 0 bytes".into() };
        assert_eq!(
            plain.to_string(),
            "guest broke the channel protocol: a piece of 0 bytes; discard this session"
        );
    }
}
