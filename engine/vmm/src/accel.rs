//! Accelerators: how guest instructions run.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Warning of what is to be known before sessions run under software emulation.
pub const EMULATION_WARNING: &str = "sessions run under software emulation (TCG), which is no security boundary by \
    QEMU's own policy: run only what you would run as an unprivileged user of this host";

/// Way that guest instructions run. Device and CPU state of one is not loadable under the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// Hardware virtualisation through `/dev/kvm`.
    Kvm,
    /// QEMU's software emulation.
    Tcg,
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

impl FromStr for Accel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err(format!("`{text}` is not an accelerator: use kvm or tcg")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accel_text_round_trips() {
        for accel in [Accel::Kvm, Accel::Tcg] {
            assert_eq!(accel.to_string().parse(), Ok(accel));
            assert_eq!(serde_json::to_value(accel).unwrap(), accel.to_string());
        }
        assert!("xen".parse::<Accel>().unwrap_err().contains("xen"));
    }
}
