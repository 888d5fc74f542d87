//! `mayfly start`, `ps`, `logs` and `kill`: the daemon's sessions.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;
use std::time::SystemTime;

use indicatif::HumanDuration;
use mayfly_api::{CreateSession, EgressPolicy, EgressStatus, SessionInfo};
use serde_json::json;

use super::daemon;
use crate::args::{self, Cli};
use crate::failure::Failure;
use crate::{options, pairs};

pub async fn start(cli: &Cli, args: &args::StartArgs) -> Result<ExitCode, Failure> {
    let seconds = |duration: humantime::Duration| duration.as_secs();
    let wanted = CreateSession {
        golden: args.golden.clone(),
        env: pairs::parse("--env", &args.env)?,
        user: args.user.clone(),
        metadata: pairs::parse("--metadata", &args.metadata)?,
        limits: args.bounds.limits(),
        egress: args.bounds.egress(),
        ttl_seconds: args.ttl.map(seconds),
        idle_timeout_seconds: args.idle.map(seconds),
        publish: args.publish,
        ..CreateSession::default()
    };
    let created = daemon().create(&wanted, None).await;
    let info = created.map_err(|error| Failure::new(options::named(&error.to_string())))?;
    println!("{}", if cli.json { serde_json::to_string(&info)? } else { info.id });
    Ok(ExitCode::SUCCESS)
}

pub async fn list(cli: &Cli) -> Result<ExitCode, Failure> {
    let sessions = daemon().sessions().await?;
    if cli.json {
        println!("{}", json!(sessions));
        return Ok(ExitCode::SUCCESS);
    }
    let now = SystemTime::now();
    println!(
        "{:<17} {:<20} {:<8} {:<8} {:<16} {:<16} METADATA",
        "ID", "GOLDEN", "STATE", "TIER", "AGE", "ENDS IN"
    );
    for session in sessions {
        let SessionInfo { id, golden, state, tier, created_at, metadata, .. } = &session;
        // Clocks that were set meanwhile give 0.
        let age = now.duration_since(humantime::parse_rfc3339(created_at)?).unwrap_or_default();
        let left = ends_at(&session)?.duration_since(now).unwrap_or_default();
        println!(
            "{id:<17} {golden:<20} {state:<8} {:<8} {:<16} {:<16} {}",
            tier.word(),
            HumanDuration(age).to_string(),
            HumanDuration(left).to_string(),
            labels(metadata)
        );
    }
    Ok(ExitCode::SUCCESS)
}

pub async fn logs(id: &str) -> Result<ExitCode, Failure> {
    let console = daemon().logs(id).await?;
    let mut out = std::io::stdout().lock();
    out.write_all(console.as_bytes())?;
    if !console.is_empty() && !console.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Discards all it can, and fails when that is not all.
pub async fn kill(cli: &Cli, ids: &[String]) -> Result<ExitCode, Failure> {
    let client = daemon();
    let mut failures = Vec::new();
    for id in ids {
        match client.kill(id).await {
            Ok(()) if cli.json => println!("{}", json!({ "id": id })),
            Ok(()) if cli.quiet => {}
            Ok(()) => println!("{id}"),
            Err(error) => failures.push(error.to_string()),
        }
    }
    if failures.is_empty() { Ok(ExitCode::SUCCESS) } else { Err(Failure::new(failures.join("; "))) }
}

/// Shows what a session may reach, or replaces it.
pub async fn egress(cli: &Cli, args: &args::EgressArgs) -> Result<ExitCode, Failure> {
    let client = daemon();
    let status = match args {
        args::EgressArgs { none: true, .. } => client.set_egress(&args.id, None).await?,
        args::EgressArgs { allow, .. } if allow.is_empty() => client.egress(&args.id).await?,
        args::EgressArgs { allow, deny, .. } => {
            let policy = EgressPolicy {
                allow: allow.clone(),
                deny: deny.clone(),
                ..EgressPolicy::default()
            };
            client.set_egress(&args.id, Some(&policy)).await?
        }
    };
    if cli.json {
        println!("{}", serde_json::to_string(&status)?);
        return Ok(ExitCode::SUCCESS);
    }
    if args.none || !args.allow.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let EgressStatus { policy, bytes_used, connections_used } = status;
    let EgressPolicy { allow, deny, max_connections, max_bytes } = policy.unwrap_or_default();
    for (verb, entries) in [("allow", allow), ("deny", deny)] {
        entries.iter().for_each(|entry| println!("{verb:<6} {}", entry.escape_debug()));
    }
    let most = |most: Option<u64>| most.map_or_else(String::new, |most| format!(" of {most}"));
    println!("used   {bytes_used}{} bytes, {connections_used} connections", most(max_bytes));
    if let Some(count) = max_connections {
        println!("most   {count} connections at a time");
    }
    Ok(ExitCode::SUCCESS)
}

/// What callers wrote, on one line and without what a terminal would obey.
/// When it ends if nobody uses it or lets it live for longer.
fn ends_at(session: &SessionInfo) -> Result<SystemTime, humantime::TimestampError> {
    let expires = humantime::parse_rfc3339(&session.expires_at)?;
    Ok(expires.min(humantime::parse_rfc3339(&session.idle_expires_at)?))
}

fn labels(metadata: &BTreeMap<String, String>) -> String {
    let pairs = metadata
        .iter()
        .map(|(name, value)| format!("{}={}", name.escape_debug(), value.escape_debug()));
    pairs.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_cannot_command_a_terminal() {
        let metadata =
            BTreeMap::from([("run".into(), "7".into()), ("x\n".into(), "\u{1b}[2J".into())]);
        assert_eq!(labels(&metadata), "run=7,x\\n=\\u{1b}[2J");
    }
}
