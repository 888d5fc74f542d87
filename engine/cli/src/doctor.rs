//! `mayfly doctor`.

use std::process::ExitCode;

use mayfly_engine::doctor::{self, Outcome};
use mayfly_host::layout::Layout;

use super::args::Cli;
use super::failure::Failure;

pub async fn run(cli: &Cli) -> Result<ExitCode, Failure> {
    let checks = doctor::examine(&Layout::from_env()).await;
    if cli.json {
        println!("{}", serde_json::to_string(&checks)?);
    } else {
        for check in &checks {
            let mark = match check.outcome {
                Outcome::Ok => "ok",
                Outcome::Limited => "limited",
                Outcome::Missing => "MISSING",
            };
            println!("{mark:>8}  {:<16} {}", check.subject, check.found);
            if !check.advice.is_empty() {
                println!("{:>8}  {:<16} -> {}", "", "", check.advice);
            }
        }
    }
    let missing: Vec<_> =
        checks.iter().filter(|c| c.outcome == Outcome::Missing).map(|c| c.subject).collect();
    if missing.is_empty() {
        Ok(ExitCode::SUCCESS)
    } else {
        Err(Failure::new(format!("this host lacks: {}", missing.join(", "))))
    }
}
