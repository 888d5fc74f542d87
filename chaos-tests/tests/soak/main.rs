//! A soak with faults: a daemon serves clients of all kinds while its VMMs, its zygote, its pager,
//! its store, its disks and it itself fail, each when a seed says so.
//!
//! `MAYFLY_SOAK_SESSIONS` is how many sessions are asked for, `MAYFLY_SOAK_SEED` repeats a run.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

mod errand;
mod faults;
mod outcome;
mod plan;
mod system;

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Instant;

use mayfly_chaos_tests::slots;

use self::outcome::Tally;
use self::plan::{Errand, Fault};
use self::system::System;

/// Sessions unless said otherwise.
const SESSIONS: usize = 300;
/// Seed unless said otherwise: what fails can be repeated, as far as it is not a matter of time.
const SEED: u64 = 1;
/// Sessions after each other, when all of it is over.
const AFTER: usize = 20;

fn setting<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Says how to repeat the run, should it fail.
struct Repeat(String);

impl Drop for Repeat {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("to repeat it: {}", self.0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_session_is_accounted_for_whatever_fails() {
    let sessions = setting("MAYFLY_SOAK_SESSIONS").unwrap_or(SESSIONS);
    let seed = setting("MAYFLY_SOAK_SEED").unwrap_or(SEED);
    let _all = slots::take(slots::ALL);
    let mut system = match System::start().await {
        Ok(system) => system,
        Err(lacking) => return mayfly_skip::skip(format!("no small file systems: {lacking}")),
    };
    let mut faults = Fault::ALL.to_vec();
    faults.retain(|fault| *fault != Fault::Zygote || system.emulated());
    let rounds = plan::rounds(seed, sessions, &faults);
    let again = format!("MAYFLY_SOAK_SEED={seed} MAYFLY_SOAK_SESSIONS={sessions}");
    println!("{sessions} sessions in {} rounds: {again}", rounds.len());
    let _repeat = Repeat(again);

    let begun = Instant::now();
    let (mut all, mut errands, mut objections) =
        (Tally::default(), BTreeMap::<Errand, usize>::new(), Vec::new());
    for (number, round) in rounds.iter().enumerate() {
        println!("round {number}: {round}");
        let mut tally = Tally::default();
        let amid: Vec<Fault> = round.injections.iter().map(|it| it.fault).collect();
        for (errand, outcome) in system.round(round).await {
            if outcome.told().is_some() {
                println!("    {errand:?}: {outcome}");
            }
            tally.count(&outcome);
            all.count(&outcome);
            *errands.entry(errand).or_default() += 1;
            objections.extend(outcome.objection(errand, &amid));
        }
        println!("    {tally}");
        assert_eq!(tally.sum(), round.errands.len(), "sessions without an end");
        assert!(objections.is_empty(), "{}\n{}", objections.join("\n"), system.log());
        let tries = system.recovered().await;
        println!("    recovered {:.1?} after the begin, {tries} sessions", begun.elapsed());
    }
    println!("all: {all}; {errands:?}; faults: {:?}", system.done());
    assert_eq!(all.sum(), sessions);
    if rounds.len() >= faults.len() {
        assert!(faults.iter().all(|fault| system.done().contains_key(fault)), "not every fault");
    }
    assert!(all.of("served") * 3 >= sessions, "few were served: {all}");

    for turn in 0..AFTER {
        let outcome = system.one().await;
        assert!(system.is_warm(&outcome), "{turn} after all: {outcome}: {}", system.log());
    }
    system.end();
}
