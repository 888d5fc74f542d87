//! The host that was audited.

use mayfly_engine::Engine;
use mayfly_engine::golden::LoadedGolden;
use mayfly_host::cgroup::Place;
use mayfly_vmm::Accel;
use serde::{Deserialize, Serialize};

/// Facts about the host that a reviewer has to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Release of its kernel.
    pub kernel: String,
    /// VMM and its version.
    pub vmm: String,
    /// Accelerator of the golden's machine.
    pub accel: String,
    /// Version of the control groups in use.
    pub cgroups: String,
    /// Number of processors.
    pub processors: usize,
    /// Warnings that limit every other statement of the report.
    pub warnings: Vec<String>,
}

impl HostFacts {
    pub(crate) fn find_out(engine: &Engine, golden: &LoadedGolden) -> Self {
        let kernel = nix::sys::utsname::uname()
            .map(|u| u.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        let accel = golden.shape().accel;
        let mut warnings = Vec::new();
        if accel == Accel::Tcg {
            warnings.push(
                "Sessions run under software emulation (TCG). QEMU's policy is that TCG is no security boundary: a guest \
                 that breaks out of it is not taken for a security bug. What counts on this host is what a taken-over VMM \
                 can do."
                    .into(),
            );
        }
        Self {
            kernel,
            vmm: format!("{} {}", engine.driver().name(accel), engine.driver().version(accel)),
            accel: accel.to_string(),
            cgroups: Place::of_this_process()
                .map_or_else(|error| error.to_string(), |place| place.version().to_string()),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            warnings,
        }
    }
}
