//! Memory hogs.

use std::time::Duration;

use mayfly_engine::session::Session;
use mayfly_guest::channel::ExecRequest;
use mayfly_host::cgroup::Limits;
use mayfly_host::time_scale::scaled;

use super::meter::Meter;
use super::starts;
use crate::check::Findings;
use crate::guest::ask::sh;
use crate::lab::Lab;
use crate::options::AuditError;
use crate::report::Attempt;

/// Writes to a megabyte after another, as many as it is told, and says how many.
const HOG: &str = r#"$| = 1; my @held; for my $n (1 .. $ARGV[0]) { push @held, chr($n % 255) x 1048576; print "$n\n"; } sleep 600;"#;
/// Bound on the abuser, in bytes: more than a VMM needs to run, less than its guest has.
const BOUND: u64 = 448 << 20;
/// Megabytes that it tries to fill.
const WANTED: u32 = 600;
/// Longest time for that.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the kernel may charge above a bound in passing, in bytes (cgroups v1 charges in batches).
const SLACK: u64 = 4 << 20;

/// Has a session fill memory until it has enough or has ended. Returns how far it came, the highest
/// use, and how it ended.
async fn fill(lab: &Lab, session: &Session) -> Result<(u32, u64, Option<String>), AuditError> {
    let meter = Meter::of(lab, session);
    let wanted = WANTED.to_string();
    let mut hog = session.guest().exec(ExecRequest::new(["perl", "-e", HOG, &wanted])).await?;
    let (mut peak, mut reached, mut text) = (0, 0, String::new());
    let begun = std::time::Instant::now();
    while reached < WANTED && begun.elapsed() < scaled(PATIENCE) {
        peak = peak.max(meter.peak_memory().unwrap_or(0));
        tokio::select! {
            event = hog.recv() => match event {
                Ok(Some(mayfly_guest::channel::ExecEvent::Stdout(bytes))) => {
                    text = String::from_utf8_lossy(&bytes).into_owned();
                    reached = text.lines().rev().find_map(|line| line.parse().ok()).unwrap_or(reached);
                }
                Ok(Some(mayfly_guest::channel::ExecEvent::Stderr(_))) => {}
                _ => break,
            },
            _ = session.state().failed() => break,
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    }
    peak = peak.max(meter.peak_memory().unwrap_or(0));
    // It may have fallen silent because its VMM was killed.
    let end = tokio::time::timeout(Duration::from_millis(500), session.state().failed()).await.ok();
    tracing::debug!(reached, peak, ?end, %text, "memory hog");
    Ok((reached, peak, end.map(|reason| reason.to_string())))
}

pub(super) async fn run(lab: &mut Lab) -> Result<Findings, AuditError> {
    let mut findings = Findings::default();
    let neighbour = lab.neighbour().await?;
    let alone = starts::measure(lab).await?;

    let free = lab.session(Limits::default()).await?;
    let (free_reached, free_peak, _) = fill(lab, &free).await?;
    free.discard().await?;

    let bounded = lab.session(Limits { memory_bytes: Some(BOUND), ..Limits::default() }).await?;
    let in_force = Meter::of(lab, &bounded).memory_bound();
    let (outcome, beside) = tokio::join!(fill(lab, &bounded), starts::measure(lab));
    let (reached, peak, end) = outcome?;
    bounded.discard().await?;
    let mib = |bytes: u64| bytes >> 20;
    let control = (
        format!(
            "without the bound: {free_reached} MiB written, {} MiB used at most",
            mib(free_peak)
        ),
        free_peak > BOUND + SLACK,
    );
    let fate =
        end.map_or_else(|| "it lives on".into(), |reason| format!("then it ended: {reason}"));
    findings.push(Attempt::judge(
        format!("use more memory than the bound of {} MiB", mib(BOUND)),
        control.clone(),
        (
            format!("{reached} MiB written, {} MiB used at most; {fate}", mib(peak)),
            peak == 0 || peak > BOUND + SLACK || in_force != Some(BOUND),
        ),
    ));
    let alive =
        sh(&neighbour.session, "echo alive").await.is_ok_and(|said| said.out.trim() == "alive");
    findings.push(Attempt::judge(
        "take a neighbour down",
        control,
        (format!("neighbour answers: {alive}"), !alive),
    ));
    findings.push(starts::attempt(&alone, &beside?));
    Ok(findings)
}
