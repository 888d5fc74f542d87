//! QEMU and the other programs that Mayfly runs.

use std::path::PathBuf;

use mayfly_host::facts::Facts;
use mayfly_host::layout::Layout;
use mayfly_vmm::qemu::QemuProgram;
use mayfly_vmm::{Accel, VmmError};

use super::{Check, Outcome};

/// The programs for both accelerators; nearly always of one package.
pub(super) fn qemu(layout: &Layout) -> Check {
    const SUBJECT: &str = "QEMU";
    const ADVICE: &str = "apt-get install qemu-system-x86 (7.2 or later)";
    let facts = Facts::new(layout);
    let find = |accel| QemuProgram::find(accel, &facts);
    let said = |program: &QemuProgram| format!("{}, {}", program.version, program.path.display());
    match (find(Accel::Tcg), find(Accel::Kvm)) {
        (Ok(tcg), Ok(kvm)) if tcg == kvm => Check::ok(SUBJECT, said(&tcg)),
        (Ok(tcg), Ok(kvm)) => {
            Check::ok(SUBJECT, format!("{}; under KVM {}", said(&tcg), said(&kvm)))
        }
        (Err(error @ (VmmError::NoEmulation { .. } | VmmError::NotInstalled { .. })), Ok(kvm)) => {
            let found = format!("{}, for KVM only: {error}", said(&kvm));
            Check::new(SUBJECT, Outcome::Limited, found, ADVICE)
        }
        (Err(error), _) | (_, Err(error)) => Check::missing(SUBJECT, error.to_string(), ADVICE),
    }
}

/// What image builds and `run --docker` need.
pub(super) fn others() -> Vec<Check> {
    let needed =
        [("qemu-img", "qemu-utils"), ("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs")];
    let mut checks: Vec<_> =
        needed.into_iter().map(|(program, package)| one(program, package)).collect();
    checks.push(match on_path("docker") {
        Some(path) => Check::ok("docker client", path.display().to_string()),
        None => Check::new(
            "docker client",
            Outcome::Limited,
            "not found",
            "only `mayfly run --docker` needs it: apt-get install docker.io (its daemon may stay off)",
        ),
    });
    checks
}

fn one(program: &'static str, package: &str) -> Check {
    match on_path(program) {
        Some(path) => Check::ok(program, path.display().to_string()),
        None => Check::missing(program, "not found", format!("apt-get install {package}")),
    }
}

fn on_path(program: &str) -> Option<PathBuf> {
    // Root's tools are often not on the PATH of a sudo shell.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(extra).map(|dir| dir.join(program)).find(|p| p.is_file())
}
