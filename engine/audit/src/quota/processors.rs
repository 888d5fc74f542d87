//! Processor hogs.

use std::time::{Duration, Instant};

use mayfly_engine::session::Session;
use mayfly_guest::channel::ExecRequest;
use mayfly_host::cgroup::Limits;

use super::meter::Meter;
use super::starts;
use crate::check::Findings;
use crate::lab::Lab;
use crate::options::AuditError;
use crate::report::Attempt;

/// Bound on the abuser, in processors.
const BOUND: f64 = 0.25;
/// What use may be above it: the kernel measures out in slices of a period (CFS bandwidth control).
const TOLERANCE: f64 = 1.2;

/// Has a session compute; returns the processors it used on average while `beside` ran, and at
/// least for the time that is watched.
async fn spin<T>(
    lab: &Lab,
    session: &Session,
    beside: impl Future<Output = T>,
) -> Result<(f64, T), AuditError> {
    let meter = Meter::of(lab, session);
    let gone = || {
        AuditError::host("read the processor time of a session")(
            std::io::ErrorKind::NotFound.into(),
        )
    };
    let spinner =
        session.guest().exec(ExecRequest::new(["/bin/sh", "-c", "while :; do :; done"])).await?;
    let (begun, used) = (Instant::now(), meter.processor_seconds().ok_or_else(gone)?);
    let watch = Duration::from_secs(u64::from(lab.options.watch_s.max(1)));
    let ((), beside) = tokio::join!(tokio::time::sleep(watch), beside);
    let ratio =
        (meter.processor_seconds().ok_or_else(gone)? - used) / begun.elapsed().as_secs_f64();
    drop(spinner);
    Ok((ratio, beside))
}

pub(super) async fn run(lab: &mut Lab) -> Result<Findings, AuditError> {
    let mut findings = Findings::default();
    let alone = starts::measure(lab).await?;
    let free = lab.session(Limits::default()).await?;
    let (free_ratio, ()) = spin(lab, &free, async {}).await?;
    free.discard().await?;
    let bounded = lab.session(Limits { cpus: Some(BOUND), ..Limits::default() }).await?;
    let (ratio, beside) = spin(lab, &bounded, Box::pin(starts::measure(lab))).await?;
    bounded.discard().await?;
    findings.push(Attempt::judge(
        format!("use more than {BOUND} processors"),
        (format!("without the bound: {free_ratio:.2} processors"), free_ratio > BOUND * TOLERANCE),
        (format!("{ratio:.2} processors"), ratio > BOUND * TOLERANCE),
    ));
    findings.push(starts::attempt(&alone, &beside?));
    Ok(findings)
}
