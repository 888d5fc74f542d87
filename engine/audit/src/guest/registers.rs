//! Model-specific registers of the processor.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::super::check::Findings;
use super::super::lab::Lab;
use super::super::options::AuditError;
use super::super::report::Attempt;
use super::ask::{Said, perl};

const MSR: &str = include_str!("msr.pl");

/// IA32_TSC_AUX (Intel SDM volume 4): any 32-bit value goes, and nothing but RDPID and RDTSCP reads
/// it.
const TSC_AUX: u32 = 0xc000_0103;
/// What is written.
const WRITTEN: u64 = 0x6d61_7966;

/// The host's register, where it has the device for it.
fn of_host() -> Option<u64> {
    let mut bytes = [0; 8];
    let device = File::open("/dev/cpu/0/msr").ok()?;
    device.read_exact_at(&mut bytes, u64::from(TSC_AUX)).ok()?;
    Some(u64::from_ne_bytes(bytes))
}

pub(super) async fn run(lab: &mut Lab) -> Result<Findings, AuditError> {
    let mut findings = Findings::default();
    let neighbour = lab.neighbour().await?;
    // A kernel that finds its own number there (RDPID) does not survive this for long: a session of
    // its own.
    let writer = lab.session(mayfly_host::cgroup::Limits::default()).await?;
    let register = TSC_AUX.to_string();
    let host_before = of_host();
    let wrote = perl(&writer, MSR, &[&register, &WRITTEN.to_string()]).await?;
    let read = perl(&neighbour.session, MSR, &[&register]).await?;
    let host_after = of_host();
    writer.discard().await?;
    let what = "write IA32_TSC_AUX, then read it in a neighbour";
    let missing = |said: &Said| said.answers().get("missing").cloned();
    if let Some(reason) = missing(&wrote).or_else(|| missing(&read)) {
        findings.push(Attempt::not_applicable(
            what,
            format!("the guest's kernel has no MSR device: {reason}"),
        ));
        return Ok(findings);
    }
    let is_written = |said: &Said| {
        said.answers().get("value").is_some_and(|value| *value == WRITTEN.to_string())
    };
    let control = (format!("the writer reads {}", wrote.all()), is_written(&wrote));
    findings.push(Attempt::judge(
        what,
        control.clone(),
        (format!("the neighbour reads {}", read.all()), is_written(&read)),
    ));
    let what = "write IA32_TSC_AUX, then read it on the host";
    findings.push(match (host_before, host_after) {
        (Some(before), Some(after)) => Attempt::judge(
            what,
            control,
            (format!("{before:#x} before, {after:#x} after"), after == WRITTEN),
        ),
        _ => Attempt::not_applicable(what, "this host has no readable /dev/cpu/0/msr"),
    });
    Ok(findings)
}
