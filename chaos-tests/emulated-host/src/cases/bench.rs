//! Starts under KVM beside other systems.

use std::time::Duration;

use crate::case::{Case, Context, Failure};
use crate::distribution::Distribution;
use crate::ensure;

pub(super) const CASES: &[Case] = &[Case {
    name: "bench-peers",
    about: "Starts under KVM beside -loadvm, file migration, a cold boot and a container, in one run",
    limit: Duration::from_secs(1800),
    run: peers,
    ..Case::USUAL
}];

/// Rows of the comparison. A VMM under KVM cannot be forked, and a shell is a stage of a cold
/// start.
const SYSTEMS: [&str; 6] = ["standby", "cold", "loadvm", "stream", "cold-boot", "crun"];
/// A row that needs QEMU 9.
const MAPPED_RAM: &str = "mapped-ram";
const ROUNDS: u64 = 7;

fn peers(context: &mut Context) -> Result<(), Failure> {
    let mut wanted = SYSTEMS.to_vec();
    if context.platform.distribution != Distribution::Debian12 {
        wanted.push(MAPPED_RAM);
    }
    let systems = wanted.join(",");
    let report = context.json(&format!(
        "/opt/mayfly/bin/mayfly-bench peers --rounds {ROUNDS} --boots 1 --only {systems} --json /run/emulated-host/peers.json >&2
         cat /run/emulated-host/peers.json"
    ))?;
    let measured = report["systems"].as_array().cloned().unwrap_or_default();
    for system in &measured {
        let starts = if system["system"] == "cold-boot" { 1 } else { ROUNDS };
        ensure!(
            system["answer_ms"]["n"] == starts,
            "{starts} starts were to be measured: {system}"
        );
    }
    for name in wanted {
        ensure!(
            measured.iter().any(|system| system["system"] == name),
            "{name} is missing: {report}"
        );
    }
    Ok(())
}
