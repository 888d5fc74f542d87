//! The first exchange after a restore: identity, entropy and clock in, a short answer out.

use crate::Printable;
use crate::scanner::{ACK_MAGIC, HELLO_MAGIC, MAX_HANDSHAKE, encode_handshake};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Version of this protocol. Both ends must have the same one: an agent lives in a golden image
/// made with its engine.
pub const PROTOCOL_VERSION: u16 = 4;

/// 64 bytes from the host's random source for the guest's kernel CRNG (`RNDADDENTROPY`, random(4)).
#[derive(Clone, PartialEq, Eq)]
pub struct Entropy([[u8; 32]; 2]);

impl Entropy {
    /// Wraps 64 fresh random bytes.
    pub fn new(bytes: [u8; 64]) -> Self {
        let mut halves = [[0; 32]; 2];
        halves[0].copy_from_slice(&bytes[..32]);
        halves[1].copy_from_slice(&bytes[32..]);
        Self(halves)
    }

    /// Returns the 64 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_flattened()
    }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entropy(..)")
    }
}

/// Identity of one session, given to a restored guest before anything else runs in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`] of the sender. Kept first, so that it decodes whatever follows.
    pub protocol: u16,
    /// Session id, 1 to 64 of `A-Z a-z 0-9 . _ -`.
    pub session: String,
    /// Host name, one RFC 1123 label: 1 to 63 of `a-z A-Z 0-9 -`, no hyphen at either end.
    pub hostname: String,
    /// machine-id(5) as 16 bytes.
    pub machine_id: [u8; 16],
    /// Boot id (`/proc/sys/kernel/random/boot_id`) as 16 bytes.
    pub boot_id: [u8; 16],
    /// Nanoseconds since the Unix epoch, taken as late as possible before the send.
    pub wall_clock_ns: u64,
    /// Fresh random bytes; never reuse them.
    pub entropy: Entropy,
}

impl Hello {
    /// Checks the bounds that each field's documentation names.
    ///
    /// # Errors
    /// [`HelloError::Version`], [`HelloError::Session`] or [`HelloError::Hostname`]: the field that
    /// is out of bounds.
    pub fn check(&self) -> Result<(), HelloError> {
        if self.protocol != PROTOCOL_VERSION {
            return Err(HelloError::Version { theirs: self.protocol });
        }
        let session = self.session.as_bytes();
        if session.is_empty()
            || session.len() > 64
            || !session.iter().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b))
        {
            return Err(HelloError::Session);
        }
        let host = self.hostname.as_bytes();
        if host.is_empty()
            || host.len() > 63
            || host.starts_with(b"-")
            || host.ends_with(b"-")
            || !host.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
        {
            return Err(HelloError::Hostname);
        }
        Ok(())
    }

    /// Encodes the whole message, to be sent with one write.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn encode(&self) -> Result<Vec<u8>, HelloError> {
        self.check()?;
        let mut payload = Vec::with_capacity(FIXED + self.session.len() + self.hostname.len());
        payload.extend_from_slice(&self.protocol.to_le_bytes());
        // `check` has bounded both to 64 bytes.
        payload.push(u8::try_from(self.session.len()).map_err(|_| HelloError::Session)?);
        payload.push(u8::try_from(self.hostname.len()).map_err(|_| HelloError::Hostname)?);
        payload.extend_from_slice(&self.wall_clock_ns.to_le_bytes());
        payload.extend_from_slice(&self.machine_id);
        payload.extend_from_slice(&self.boot_id);
        payload.extend_from_slice(self.entropy.as_bytes());
        payload.extend_from_slice(self.session.as_bytes());
        payload.extend_from_slice(self.hostname.as_bytes());
        Ok(encode_handshake(&HELLO_MAGIC, &payload))
    }

    /// Parses and checks the payload of a handshake message.
    ///
    /// The layout is fixed and decoded by hand: this is the first thing a restored guest does, and
    /// under software emulation every instruction that runs for the first time costs its
    /// translation. Little-endian: protocol `u16`, length of the session id `u8`, length of the
    /// host name `u8`, clock `u64`, machine id 16, boot id 16, entropy 64, session id, host name,
    /// and nothing behind it.
    ///
    /// # Errors
    /// [`HelloError::Malformed`], and as [`check`](Self::check).
    pub fn decode(payload: &[u8]) -> Result<Self, HelloError> {
        let (protocol, rest) = payload.split_first_chunk::<2>().ok_or(HelloError::Malformed)?;
        let theirs = u16::from_le_bytes(*protocol);
        if theirs != PROTOCOL_VERSION {
            return Err(HelloError::Version { theirs });
        }
        let (&[session_len, hostname_len], rest) =
            rest.split_first_chunk::<2>().ok_or(HelloError::Malformed)?;
        let (clock, rest) = rest.split_first_chunk::<8>().ok_or(HelloError::Malformed)?;
        let (machine_id, rest) = rest.split_first_chunk::<16>().ok_or(HelloError::Malformed)?;
        let (boot_id, rest) = rest.split_first_chunk::<16>().ok_or(HelloError::Malformed)?;
        let (entropy, names) = rest.split_first_chunk::<64>().ok_or(HelloError::Malformed)?;
        if names.len() != usize::from(session_len) + usize::from(hostname_len) {
            return Err(HelloError::Malformed);
        }
        let (session, hostname) = names.split_at(usize::from(session_len));
        let text =
            |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| HelloError::Malformed);
        let hello = Self {
            protocol: theirs,
            session: text(session)?,
            hostname: text(hostname)?,
            machine_id: *machine_id,
            boot_id: *boot_id,
            wall_clock_ns: u64::from_le_bytes(*clock),
            entropy: Entropy::new(*entropy),
        };
        hello.check()?;
        Ok(hello)
    }
}

/// Bytes of a [`Hello`] payload before its names.
const FIXED: usize = 2 + 1 + 1 + 8 + 16 + 16 + 64;

/// Step of the identity that the guest could not apply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplyError {
    /// Name of the step: `entropy`, `clock`, `hostname`, `machine-id`, `boot-id`, `hosts`, `hello`
    /// or `hook NAME`.
    pub step: String,
    /// errno(3), or 0 where no system call failed.
    pub errno: i32,
    /// Message of one line.
    pub message: String,
}

impl fmt::Display for ApplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", Printable(&self.step), Printable(&self.message))
    }
}

/// The guest's answer to a [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloAck {
    /// [`PROTOCOL_VERSION`] of the agent. Kept first, so that it decodes whatever follows.
    pub protocol: u16,
    /// The agent's crate version.
    pub agent: String,
    /// Whether the agent is in the open phase now; false when it refused the Hello and stays
    /// parked.
    pub open: bool,
    /// Steps that failed; a session with any of these is not unique and must not be handed out.
    pub errors: Vec<ApplyError>,
}

impl HelloAck {
    /// Encodes the whole message. Errors beyond what fits [`MAX_HANDSHAKE`] are cut, the first ones
    /// kept.
    pub fn encode(&self) -> Vec<u8> {
        let mut ack = self.clone();
        for error in &mut ack.errors {
            let cut = error.message.floor_char_boundary_at(400);
            error.message.truncate(cut);
            let cut = error.step.floor_char_boundary_at(100);
            error.step.truncate(cut);
        }
        ack.errors.truncate(7);
        let cut = ack.agent.floor_char_boundary_at(64);
        ack.agent.truncate(cut);
        let payload = postcard::to_stdvec(&ack).unwrap_or_default();
        encode_handshake(&ACK_MAGIC, &payload)
    }

    /// Parses the payload of a handshake message.
    ///
    /// # Errors
    /// [`HelloError::Version`] of another protocol, [`HelloError::Malformed`].
    pub fn decode(payload: &[u8]) -> Result<Self, HelloError> {
        let (theirs, _) =
            postcard::take_from_bytes::<u16>(payload).map_err(|_| HelloError::Malformed)?;
        if theirs != PROTOCOL_VERSION {
            return Err(HelloError::Version { theirs });
        }
        match postcard::take_from_bytes::<Self>(payload) {
            Ok((ack, [])) => Ok(ack),
            _ => Err(HelloError::Malformed),
        }
    }
}

trait FloorCharBoundary {
    fn floor_char_boundary_at(&self, index: usize) -> usize;
}

impl FloorCharBoundary for String {
    fn floor_char_boundary_at(&self, index: usize) -> usize {
        (0..=index.min(self.len())).rev().find(|i| self.is_char_boundary(*i)).unwrap_or(0)
    }
}

/// Reason why a handshake message was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// The other end speaks another version.
    #[error(
        "the other end speaks protocol {theirs}, this one {PROTOCOL_VERSION}: rebuild the golden image with this version"
    )]
    Version {
        /// Version that the other end said.
        theirs: u16,
    },
    /// The message is not of this kind, or cut short.
    #[error("malformed handshake message")]
    Malformed,
    /// The session id breaks its rule.
    #[error("session id must be 1 to 64 of A-Z a-z 0-9 . _ -")]
    Session,
    /// The host name breaks its rule.
    #[error("host name must be 1 to 63 of a-z A-Z 0-9 -, with no hyphen at either end")]
    Hostname,
}

const _: () = assert!(MAX_HANDSHAKE >= 7 * (400 + 100 + 16) + 128);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scanner;
    use proptest::prelude::*;

    fn hello() -> Hello {
        Hello {
            protocol: PROTOCOL_VERSION,
            session: "s-1".into(),
            hostname: "mayfly-1".into(),
            machine_id: [1; 16],
            boot_id: [2; 16],
            wall_clock_ns: 1_700_000_000_000_000_000,
            entropy: Entropy::new([231; 64]),
        }
    }

    fn round_trip(bytes: &[u8], magic: [u8; 16]) -> Vec<u8> {
        let mut scanner = Scanner::new(magic);
        scanner.push(bytes);
        scanner.next_payload().expect("one message")
    }

    #[test]
    fn hello_survives_the_wire() {
        let wire = hello().encode().unwrap();
        assert_eq!(Hello::decode(&round_trip(&wire, HELLO_MAGIC)).unwrap(), hello());
        assert!(!format!("{:?}", hello()).contains("231"), "entropy is never printed");
    }

    #[test]
    fn names_that_would_break_files_are_refused() {
        for bad in ["", "-a", "a-", "a b", "a\n", "a.b", &"x".repeat(64)] {
            assert_eq!(
                Hello { hostname: bad.into(), ..hello() }.encode(),
                Err(HelloError::Hostname),
                "{bad:?}"
            );
        }
        for bad in ["", "a/b", "a b", &"x".repeat(65)] {
            assert_eq!(
                Hello { session: bad.into(), ..hello() }.encode(),
                Err(HelloError::Session),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut payload = round_trip(&hello().encode().unwrap(), HELLO_MAGIC);
        payload[0] = 9;
        assert_eq!(Hello::decode(&payload), Err(HelloError::Version { theirs: 9 }));
    }

    #[test]
    fn an_ack_with_many_long_errors_still_fits() {
        let error = ApplyError { step: "é".repeat(900), errno: 5, message: "é".repeat(900) };
        let ack = HelloAck {
            protocol: PROTOCOL_VERSION,
            agent: "é".repeat(900),
            open: true,
            errors: vec![error; 90],
        };
        let back = HelloAck::decode(&round_trip(&ack.encode(), ACK_MAGIC)).unwrap();
        assert_eq!(back.errors.len(), 7);
    }

    proptest! {
        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Hello::decode(&bytes);
            let _ = HelloAck::decode(&bytes);
        }

        #[test]
        fn a_truncated_hello_is_refused(cut in 0usize..100) {
            let payload = round_trip(&hello().encode().unwrap(), HELLO_MAGIC);
            let cut = cut.min(payload.len() - 1);
            prop_assert!(Hello::decode(&payload[..cut]).is_err());
        }
    }
}
