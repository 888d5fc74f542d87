//! Runs the checks one after another.

use std::time::{Instant, SystemTime};

use mayfly_engine::Engine;
use mayfly_engine::progress::{Progress, Unit};

use super::check::{Check, Findings};
use super::checks::checks;
use super::lab::Lab;
use super::options::{AuditError, AuditOptions};
use super::report::{Attempt, CheckReport, HostFacts, Report, worst};

/// Audits golden `golden` on this host. A check that cannot be made is part of the report, as not
/// proven.
///
/// Needs root with `CAP_SYS_PTRACE`. Nothing is left behind, also when the future is dropped.
///
/// # Errors
/// [`AuditError`] when the audit cannot begin.
pub async fn run(
    engine: Engine,
    golden: &str,
    options: AuditOptions,
    progress: &dyn Progress,
) -> Result<Report, AuditError> {
    let chosen = choose(&options.only)?;
    let golden = engine.golden(golden).await?;
    let (began, clock) = (SystemTime::now(), Instant::now());
    let host = HostFacts::find_out(&engine, &golden);
    let name = golden.name().to_owned();
    let mut lab = Lab::new(engine, golden, options);
    let mut reports = Vec::new();
    progress.begin("escape audit", Some(chosen.len() as u64), Unit::Items);
    for (done, check) in chosen.iter().enumerate() {
        progress.detail(check.id);
        reports.push(one(check, &mut lab).await);
        progress.advance(done as u64 + 1);
    }
    progress.end();
    lab.close().await?;
    Ok(Report {
        host,
        golden: name,
        began: humantime::format_rfc3339_seconds(began).to_string(),
        seconds: clock.elapsed().as_secs_f64(),
        checks: reports,
    })
}

fn choose(only: &[String]) -> Result<Vec<&'static Check>, AuditError> {
    if let Some(unknown) = only.iter().find(|name| !checks().any(|check| check.is_called(name))) {
        return Err(AuditError::UnknownCheck(unknown.clone()));
    }
    Ok(checks()
        .filter(|check| only.is_empty() || only.iter().any(|name| check.is_called(name)))
        .collect())
}

async fn one(check: &Check, lab: &mut Lab) -> CheckReport {
    let begun = Instant::now();
    let Findings { attempts, notes } = (check.run)(lab).await.unwrap_or_else(|error| Findings {
        attempts: vec![Attempt::not_proven("the check itself", error.to_string())],
        notes: Vec::new(),
    });
    tracing::debug!(check = check.id, verdict = %worst(&attempts), "checked");
    CheckReport {
        id: check.id.to_owned(),
        tried: check.tried.to_owned(),
        threat: check.threat,
        vantage: check.vantage,
        control: check.control.to_owned(),
        verdict: worst(&attempts),
        attempts,
        notes,
        seconds: begun.elapsed().as_secs_f64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_chosen_by_name_and_by_group() {
        assert_eq!(choose(&[]).unwrap().len(), checks().count());
        let chosen = choose(&["guest".into(), "host.user".into()]).unwrap();
        assert!(chosen.iter().all(|check| check.group() == "guest" || check.id == "host.user"));
        assert!(chosen.len() > 2);
        let refused = choose(&["gost".into()]).unwrap_err().to_string();
        assert!(refused.contains("gost"), "{refused}");
    }
}
