//! `mayfly audit`, group by group, so that what one does to the host is not taken for another's
//! doing.

use std::time::Duration;

use serde_json::Value;

use crate::case::{Case, Context, Failure};
use crate::ensure;

/// The audit of one group of checks.
const fn group(name: &'static str, run: fn(&mut Context<'_, '_>) -> Result<(), Failure>) -> Case {
    Case {
        name,
        about: "What `mayfly audit` tries to get out of a session holds",
        limit: Duration::from_secs(900),
        run,
        ..Case::USUAL
    }
}

pub(super) const CASES: &[Case] = &[
    group("audit-host", |context| audit(context, "host")),
    group("audit-vmm", |context| audit(context, "vmm")),
    group("audit-guest-memory", |context| audit(context, "guest.memory")),
    group("audit-guest-ports", |context| audit(context, "guest.ports")),
    group("audit-guest-registers", |context| audit(context, "guest.registers")),
    group("audit-guest-devices", |context| audit(context, "guest.devices")),
    group("audit-guest-disk", |context| audit(context, "guest.disk")),
    group("audit-guest-network", |context| audit(context, "guest.network")),
    group("audit-guest-packets", |context| audit(context, "guest.packets")),
    group("audit-guest-credentials", |context| audit(context, "guest.credentials")),
    group("audit-guest-power", |context| audit(context, "guest.power")),
    group("audit-egress", |context| audit(context, "egress")),
    group("audit-quota", |context| audit(context, "quota")),
    group("audit-destruction", |context| audit(context, "destruction")),
    group("audit-guest-neighbours", |context| audit(context, "guest.neighbours")),
];

/// Checks that the emulated processor spoils in restored guests, and what they say then: see "What
/// the emulator gets wrong" in docs/src/emulated-hosts.md.
const EMULATOR: [(&str, &str); 1] = [("guest.ports", "exit code 139, 0 ports")];

fn audit(context: &mut Context, group: &str) -> Result<(), Failure> {
    let report = "/run/emulated-host/audit.md";
    let output =
        context.sh(&format!("mayfly --json audit default --only {group} --report {report}"))?;
    context.sh(&format!("cat {report}"))?;
    let printed: Value = serde_json::from_str(&output.stdout)?;
    let checks = printed["checks"].as_array().cloned().unwrap_or_default();
    let is_wrong =
        |check: &&Value| check["verdict"] != "held" && check["verdict"] != "not_applicable";
    let wrong: Vec<&Value> = checks.iter().filter(is_wrong).collect();
    if let [check] = wrong[..]
        && EMULATOR
            .iter()
            .any(|(id, seen)| check["id"] == *id && check["attempts"][0]["seen"] == *seen)
    {
        return Err(Failure::Skipped(
            "the emulated processor refuses I/O ports to programs of restored guests".into(),
        ));
    }
    let told: Vec<String> =
        wrong.iter().map(|check| format!("{} {}", check["id"], check["verdict"])).collect();
    ensure!(wrong.is_empty() && output.success(), "{} ({})", told.join(", "), output.ending());
    ensure!(checks.iter().any(|check| check["verdict"] == "held"), "nothing was tried: {printed}");
    Ok(())
}
