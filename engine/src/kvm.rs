//! KVM probe: boots a small Linux guest to find out whether `/dev/kvm` runs one.
//!
//! That the device opens proves nothing: there are hosts whose KVM is emulated in software and
//! stops on instructions every stock kernel uses. So the golden's own kernel is booted once under
//! KVM, with a short limit, and the verdict kept until the host reboots.

mod device;
mod guest;

use mayfly_snapshotter::Digest;
use serde::{Deserialize, Serialize};

pub use device::{DEVICE, look};
pub use guest::{Bounds, Outcome, Probe, run};

use mayfly_host::facts::Facts;
use mayfly_host::layout::Layout;
use mayfly_host::time_scale;
use mayfly_vmm::Accel;

const FACT: &str = "kvm";
/// Changes with what a probe does, so that no verdict of an earlier way of probing is believed.
const PROBE_VERSION: u32 = 4;

/// Verdict of a probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// A Linux guest ran to user space.
    Usable,
    /// No device can be opened.
    NoDevice {
        /// Reason why it cannot.
        reason: String,
        /// Remedy that helps.
        remedy: String,
    },
    /// The device opens, but a Linux guest does not run on it.
    Broken {
        /// Description of what happened instead.
        reason: String,
    },
    /// A Linux guest runs on it, but did not come to user space in its time.
    TooSlow {
        /// Description of how far it came.
        reason: String,
    },
    /// No guest could be tried, for a reason that is none of the device's.
    Unprobed {
        /// Description of what stood in the way.
        reason: String,
    },
}

/// Obstacle that keeps guests from running under KVM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("KVM is not usable: {found}; {remedy}")]
pub struct Obstacle {
    /// Finding, in words.
    pub found: String,
    /// Remedy that helps.
    pub remedy: String,
}

impl Verdict {
    /// Returns what keeps guests from running; `None` when nothing does.
    pub fn obstacle(&self) -> Option<Obstacle> {
        let slow = |what: &str| {
            let variable = time_scale::VARIABLE;
            format!(
                "{what} set {variable} to more than {}, by which the limits are multiplied",
                time_scale::factor()
            )
        };
        let (found, remedy) = match self {
            Self::Usable => return None,
            Self::NoDevice { reason, remedy } => (reason.clone(), remedy.clone()),
            Self::Broken { reason } => (
                format!("{DEVICE} opens, but runs no Linux guest: {reason}"),
                slow(
                    "use a host with hardware virtualization (this one may emulate it); if it is only very slow,",
                ),
            ),
            Self::TooSlow { reason } => {
                (format!("{DEVICE} runs guests, but too slowly: {reason}"), slow(""))
            }
            Self::Unprobed { reason } => (
                format!("no guest could be started to probe {DEVICE}: {reason}"),
                "mend that and try again".to_owned(),
            ),
        };
        Some(Obstacle { found, remedy: remedy.trim_start().to_owned() })
    }
}

/// Returns why [`DEVICE`] cannot be opened, as an [`Obstacle`].
///
/// # Errors
/// It.
pub fn require_device() -> Result<(), Obstacle> {
    look().map_err(|(found, remedy)| Obstacle { found, remedy: remedy.to_owned() })
}

/// A verdict, and whether it was found just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The verdict.
    pub verdict: Verdict,
    /// Whether a probe guest was run for it; else it is known since an earlier one.
    pub is_new: bool,
}

/// Returns the verdict about this kernel on this host, from memory or by running a probe guest.
pub async fn verdict(layout: &Layout, probe: Probe<'_>, kernel_blake3: &Digest) -> Found {
    if let Err((reason, remedy)) = look() {
        let verdict = Verdict::NoDevice { reason, remedy: remedy.to_owned() };
        return Found { verdict, is_new: false };
    }
    let (facts, driver) = (Facts::new(layout), probe.driver);
    let program =
        (driver.name(Accel::Kvm), driver.version(Accel::Kvm), driver.cpu_model(Accel::Kvm));
    let subject =
        format!("{PROBE_VERSION} {kernel_blake3} {program:?} scale {}", time_scale::factor());
    if let Some(verdict) = facts.get(FACT, &subject) {
        return Found { verdict, is_new: false };
    }
    let verdict = match run(probe, Accel::Kvm, Bounds::default()).await {
        Outcome::Answered => Verdict::Usable,
        Outcome::Stopped(reason) => Verdict::Broken { reason },
        Outcome::TooSlow(reason) => Verdict::TooSlow { reason },
        Outcome::NotStarted(reason) => Verdict::Unprobed { reason },
    };
    tracing::info!(?verdict, "KVM probed");
    // A host that was busy for a moment is not slow until it reboots, and what kept a guest from
    // being started may be mended.
    if !matches!(verdict, Verdict::TooSlow { .. } | Verdict::Unprobed { .. }) {
        facts.put(FACT, &subject, &verdict);
    }
    Found { verdict, is_new: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_slow_is_told_from_what_is_broken_and_from_what_was_not_tried() {
        let said = |verdict: Verdict| verdict.obstacle().expect("an obstacle").to_string();
        let reason = || "a probe guest was still booting after 30s".to_owned();
        let slow = said(Verdict::TooSlow { reason: reason() });
        assert!(
            slow.contains("runs guests, but too slowly: a probe guest was still booting"),
            "{slow}"
        );
        assert!(slow.contains("; set MAYFLY_TIME_SCALE to more than 1,"), "{slow}");
        let broken = said(Verdict::Broken { reason: reason() });
        assert!(
            broken.contains("runs no Linux guest") && broken.contains("MAYFLY_TIME_SCALE"),
            "{broken}"
        );
        let unprobed = said(Verdict::Unprobed { reason: "cannot make cgroup x".to_owned() });
        assert!(
            unprobed.contains("no guest could be started to probe /dev/kvm: cannot make cgroup x"),
            "{unprobed}"
        );
        assert!(!unprobed.contains("hardware"), "{unprobed}");
        assert_eq!(Verdict::Usable.obstacle(), None);
    }
}
