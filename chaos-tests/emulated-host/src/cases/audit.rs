//! `mayfly audit`, group by group, so that what one does to the host is not taken for another's doing.

use std::time::Duration;

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
    group("audit-guest-power", |context| audit(context, "guest.power")),
    group("audit-egress", |context| audit(context, "egress")),
    group("audit-quota", |context| audit(context, "quota")),
    group("audit-destruction", |context| audit(context, "destruction")),
    group("audit-guest-neighbours", |context| audit(context, "guest.neighbours")),
];

fn audit(context: &mut Context, group: &str) -> Result<(), Failure> {
    let report = "/run/emulated-host/audit.md";
    let output = context.sh(&format!("mayfly --json audit default --only {group} --report {report}"))?;
    context.sh(&format!("cat {report}"))?;
    let printed: serde_json::Value = serde_json::from_str(&output.stdout)?;
    let checks = printed["checks"].as_array().cloned().unwrap_or_default();
    ensure!(checks.iter().any(|check| check["verdict"] == "held"), "nothing was tried: {printed}");
    let wrong: Vec<String> = checks
        .iter()
        .filter(|check| check["verdict"] != "held" && check["verdict"] != "not_applicable")
        .map(|check| format!("{} {}", check["name"], check["verdict"]))
        .collect();
    ensure!(wrong.is_empty() && output.success(), "{} ({})", wrong.join(", "), output.ending());
    Ok(())
}
