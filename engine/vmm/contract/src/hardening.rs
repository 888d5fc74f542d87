//! How far a VMM is confined beyond what every VMM is: what an operator chooses.

use std::fmt;
use std::str::FromStr;

/// What becomes of a system call of a VMM that is on no list, neither of what is denied nor of what
/// a VMM makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnlistedCalls {
    /// It is made.
    #[default]
    Allow,
    /// It is made, and the kernel logs it (seccomp(2), `SECCOMP_RET_LOG`).
    Log,
    /// It fails with `EPERM`.
    Deny,
}

impl UnlistedCalls {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Allow, "off"), (Self::Log, "log"), (Self::Deny, "enforce")];
}

impl fmt::Display for UnlistedCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = Self::ALL.iter().find(|(known, _)| known == self).map_or("", |(_, word)| word);
        f.write_str(word)
    }
}

impl FromStr for UnlistedCalls {
    type Err = &'static str;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.iter().find(|(_, known)| *known == word);
        found.map(|(value, _)| *value).ok_or("it takes off, log or enforce")
    }
}

/// What an operator chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hardening {
    /// What becomes of system calls on no list.
    pub unlisted_calls: UnlistedCalls,
    /// Whether each VMM keeps all others off the processor cores it runs on, where the kernel can.
    pub own_cores: bool,
}

impl Default for Hardening {
    fn default() -> Self {
        Self { unlisted_calls: UnlistedCalls::default(), own_cores: true }
    }
}

/// The value of [`CONFINE`](crate::preload::CONFINE): `calls=off,cores=1`.
impl fmt::Display for Hardening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "calls={},cores={}", self.unlisted_calls, u8::from(self.own_cores))
    }
}

impl Hardening {
    /// Reads the variable's value.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence that begins with the variable's name.
    pub fn parse(value: &[u8]) -> Result<Self, &'static str> {
        let text = std::str::from_utf8(value).map_err(|_| " is no text")?;
        let (calls, cores) = text
            .strip_prefix("calls=")
            .and_then(|rest| rest.split_once(",cores="))
            .ok_or(" is not of the form calls=WORD,cores=NUMBER")?;
        let unlisted_calls = calls.parse().map_err(|_| ": calls is none of off, log, enforce")?;
        let own_cores = match cores {
            "0" => false,
            "1" => true,
            _ => return Err(": cores is neither 0 nor 1"),
        };
        Ok(Self { unlisted_calls, own_cores })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_the_same_and_the_rest_is_refused() {
        for (unlisted_calls, _) in UnlistedCalls::ALL {
            for own_cores in [false, true] {
                let hardening = Hardening { unlisted_calls, own_cores };
                assert_eq!(Hardening::parse(hardening.to_string().as_bytes()), Ok(hardening));
            }
        }
        for (bad, why) in [
            ("", "of the form"),
            ("1", "of the form"),
            ("calls=deny,cores=1", "none of"),
            ("calls=log,cores=2", "neither"),
        ] {
            assert!(Hardening::parse(bad.as_bytes()).unwrap_err().contains(why), "{bad}");
        }
    }
}
