//! What the environment says of the confinement of VMMs.

use std::ffi::OsString;

pub use mayfly_vmm_contract::hardening::{Hardening, UnlistedCalls};

/// Says what becomes of a VMM's system calls that are on no list: `off` (the default), `log`,
/// `enforce`.
pub const CALLS_VARIABLE: &str = "MAYFLY_SECCOMP";
/// Says whether each VMM keeps all others off the processor cores it runs on: `on` (the default),
/// `off`.
pub const CORES_VARIABLE: &str = "MAYFLY_CORE_SCHEDULING";

/// A variable has a value that it does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable} is `{value}`: {takes}")]
pub struct BadHardening {
    variable: &'static str,
    value: String,
    takes: &'static str,
}

/// What the environment says; the defaults where it says nothing.
///
/// # Errors
/// [`BadHardening`].
pub fn from_env() -> Result<Hardening, BadHardening> {
    parse(std::env::var_os(CALLS_VARIABLE), std::env::var_os(CORES_VARIABLE))
}

fn parse(calls: Option<OsString>, cores: Option<OsString>) -> Result<Hardening, BadHardening> {
    let mut hardening = Hardening::default();
    if let Some(value) = calls {
        let value = value.to_string_lossy();
        hardening.unlisted_calls = value.parse().map_err(|takes| BadHardening {
            variable: CALLS_VARIABLE,
            value: value.escape_debug().to_string(),
            takes,
        })?;
    }
    if let Some(value) = cores {
        hardening.own_cores = match &*value.to_string_lossy() {
            "on" => true,
            "off" => false,
            other => {
                return Err(BadHardening {
                    variable: CORES_VARIABLE,
                    value: other.escape_debug().to_string(),
                    takes: "it takes on or off",
                });
            }
        };
    }
    Ok(hardening)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_set_has_its_default_and_the_rest_is_refused_with_what_it_takes() {
        let read = |calls: Option<&str>, cores: Option<&str>| {
            parse(calls.map(OsString::from), cores.map(OsString::from))
        };
        let usual = read(None, None).unwrap();
        assert_eq!((usual.unlisted_calls, usual.own_cores), (UnlistedCalls::Allow, true));
        let strict = read(Some("enforce"), Some("off")).unwrap();
        assert_eq!((strict.unlisted_calls, strict.own_cores), (UnlistedCalls::Deny, false));
        assert_eq!(
            read(Some("deny"), None).unwrap_err().to_string(),
            "MAYFLY_SECCOMP is `deny`: it takes off, log or enforce"
        );
        assert_eq!(
            read(None, Some("")).unwrap_err().to_string(),
            "MAYFLY_CORE_SCHEDULING is ``: it takes on or off"
        );
    }
}
