//! Runs cases one after the other in one host, which is booted again when a case has ended it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::case::{Case, Context, Failure, Needs};
use crate::distribution::Platform;
use crate::error::{Error, IoContext as _};
use crate::host::Host;
use crate::kept_golden::KeptGolden;
use crate::output::Transcript;
use crate::progress;
use crate::report::{CaseReport, Verdict};

/// Ends what a case has left running, then says what is left nevertheless.
const AFTER: &str = include_str!("after.sh");
/// Bounds on the work between cases, before they are scaled.
const AFTER_LIMIT: Duration = Duration::from_secs(120);
const BOOT_LIMIT: Duration = Duration::from_secs(600);
/// After so many boots in a row that failed, no other is tried.
const BAD_BOOTS: u32 = 3;
/// Lines that are shown of a file when a case fails.
const TAIL_LINES: usize = 15;
/// The case that makes the golden image.
const MAKES_GOLDEN: &str = "golden-build";

/// Runner of cases on a host.
#[derive(Debug)]
pub struct Runner<'a> {
    /// The host, off or running.
    pub host: Host<'a>,
    /// Platform of the host.
    pub platform: Platform,
    /// Folder for transcripts and logs.
    pub results: PathBuf,
    /// Whether transcripts are shown as they come.
    pub echo: bool,
    /// Flag that is set when the run is to end.
    pub cancel: &'a AtomicBool,
    /// Place at which the golden image is kept from run to run; `None` makes it anew.
    pub kept: Option<KeptGolden>,
    /// Whether there is a golden image.
    has_golden: bool,
    /// Whether the host has ended by itself during the case.
    ended: bool,
    /// What the emulator did wrong during the case.
    fault: Option<String>,
    /// How often in a row the host did not come up.
    bad_boots: u32,
}

impl<'a> Runner<'a> {
    /// Creates a runner of `host` that writes to `results`.
    pub fn new(
        host: Host<'a>,
        platform: Platform,
        results: &Path,
        echo: bool,
        cancel: &'a AtomicBool,
    ) -> Self {
        Self {
            host,
            platform,
            results: results.to_owned(),
            echo,
            cancel,
            kept: None,
            has_golden: false,
            ended: false,
            fault: None,
            bad_boots: 0,
        }
    }

    /// Runs them in order; `each` gets the reports that are there whenever there is another.
    ///
    /// # Errors
    /// The run is interrupted, a transcript cannot be written, or `each` fails.
    pub fn run(
        &mut self,
        cases: &[Case],
        mut each: impl FnMut(u32, &[CaseReport]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut reports = Vec::new();
        for case in cases {
            let begun = Instant::now();
            let (mut verdict, mut reason) = self.one(case)?;
            if let Some(fault) = self.fault.take() {
                progress::say(&format!("{} is tried once more: {fault}", case.name));
                let _ = fs::rename(
                    self.transcript(case),
                    self.results.join(format!("{}.first.log", case.name)),
                );
                (verdict, reason) = self.one(case)?;
                let second = format!("at the second try, after {fault}");
                reason = if reason.is_empty() { second } else { format!("{reason} ({second})") };
            }
            let tail = if verdict == Verdict::Failed { self.tails(case) } else { Vec::new() };
            let report = CaseReport {
                name: case.name.to_owned(),
                about: case.about.to_owned(),
                verdict,
                reason,
                seconds: begun.elapsed().as_secs_f64(),
                tail,
            };
            reports.push(report);
            each(self.host.boots(), &reports)?;
        }
        self.collect();
        Ok(())
    }

    fn one(&mut self, case: &Case) -> Result<(Verdict, String), Error> {
        (self.ended, self.fault) = (false, None);
        if case.needs != Needs::Host && !self.platform.has_kvm() {
            return Ok((Verdict::Skipped, "no guest runs under the KVM of this kernel".to_owned()));
        }
        if case.needs == Needs::Golden && !self.has_golden {
            return Ok((Verdict::Skipped, format!("{MAKES_GOLDEN} did not pass")));
        }
        if case.name == MAKES_GOLDEN
            && let Some(disk) = self.kept.as_ref().and_then(KeptGolden::find)
        {
            self.host.power_off();
            self.host.set_base(disk);
            self.has_golden = true;
            return Ok((
                Verdict::Skipped,
                "an earlier run with the same programs has left its golden".to_owned(),
            ));
        }
        if self.bad_boots >= BAD_BOOTS {
            return Ok((Verdict::Skipped, "the host does not come up".to_owned()));
        }
        match self.ready() {
            Ok(()) => self.bad_boots = 0,
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(error) => {
                self.bad_boots += 1;
                self.ended = true;
                self.fault = self.host.is_emulators_fault(&error).then(|| error.to_string());
                self.collect();
                self.host.power_off();
                return Ok((Verdict::Failed, error.to_string()));
            }
        }
        let transcript = Transcript::create(&self.transcript(case), self.echo)?;
        let limit = self.host.scaled(case.limit);
        let mut context = Context::new(&mut self.host, self.platform, transcript, limit);
        let mut outcome = (case.run)(&mut context);
        let spoiled = context.spoiled;
        if self.cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        self.ended = !self.host.is_running();
        if !self.ended {
            // A case that failed has said enough.
            let after = self.after(case);
            outcome = outcome.and(after);
            if outcome.is_ok() && case.name == MAKES_GOLDEN {
                outcome = self.keep_golden().map_err(Failure::Host);
            }
        }
        if let Err(Failure::Host(error)) = &outcome {
            self.fault = self.host.is_emulators_fault(error).then(|| error.to_string());
        }
        if spoiled || matches!(outcome, Err(Failure::Failed(_) | Failure::Host(_))) {
            // Whatever is wrong with it must not be the next case's trouble.
            self.collect();
            self.host.power_off();
        }
        Ok(match outcome {
            Ok(()) => (Verdict::Passed, String::new()),
            Err(Failure::Skipped(reason)) => (Verdict::Skipped, reason),
            Err(Failure::Failed(reason)) => (Verdict::Failed, reason),
            Err(Failure::Host(Error::Interrupted)) => return Err(Error::Interrupted),
            Err(Failure::Host(error)) => (Verdict::Failed, error.to_string()),
        })
    }

    /// Makes what is on the disk the point from which the host is booted from now on.
    fn keep_golden(&mut self) -> Result<(), Error> {
        self.host.checkpoint()?;
        self.has_golden = true;
        self.kept.as_ref().map_or(Ok(()), |kept| kept.keep(self.host.base()))
    }

    /// Boots the host unless it runs.
    fn ready(&mut self) -> Result<(), Error> {
        if self.host.is_running() {
            return Ok(());
        }
        self.host.boot(None)?;
        let path = self.results.join(format!("install-{}.log", self.host.boots()));
        let transcript = Transcript::create(&path, self.echo)?;
        let limit = self.host.scaled(BOOT_LIMIT);
        match Context::new(&mut self.host, self.platform, transcript, limit).install() {
            Ok(()) => Ok(()),
            Err(Failure::Host(error)) => Err(error),
            Err(Failure::Failed(detail) | Failure::Skipped(detail)) => {
                Err(Error::Install { detail })
            }
        }
    }

    fn after(&mut self, case: &Case) -> Result<(), Failure> {
        let path = self.results.join(format!("{}.after.log", case.name));
        let mut transcript = Transcript::create(&path, false)?;
        let output = self.host.run(AFTER, "cleaning up", AFTER_LIMIT, &mut transcript)?;
        if output.success() {
            let _ = fs::remove_file(path);
            return Ok(());
        }
        Err(Failure::Failed(format!("left behind: {}", output.stdout.trim().replace('\n', "; "))))
    }

    fn transcript(&self, case: &Case) -> PathBuf {
        self.results.join(format!("{}.log", case.name))
    }

    /// Copies the console and the journal of the current boot to the results.
    fn collect(&self) {
        for path in
            [self.host.console(), self.host.journal(), self.host.console().with_extension("qemu")]
        {
            if let Some(name) = path.file_name() {
                let _ = fs::copy(&path, self.results.join(name));
            }
        }
    }

    /// The end of a failed case's transcript; of console and journal, too, when the host has ended.
    fn tails(&self, case: &Case) -> Vec<String> {
        let mut lines = Vec::new();
        let host = [self.host.console(), self.host.journal()];
        for path in
            std::iter::once(self.transcript(case)).chain(host.into_iter().filter(|_| self.ended))
        {
            let text = fs::read(&path)
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                .unwrap_or_default();
            let all: Vec<&str> = text.lines().collect();
            lines.push(format!(
                "--- the end of {}",
                path.file_name().unwrap_or_default().to_string_lossy()
            ));
            lines.extend(
                all[all.len().saturating_sub(TAIL_LINES)..].iter().map(|line| (*line).to_owned()),
            );
        }
        lines
    }
}

/// Selects the cases of `all` that run for these filters (parts of names; none means all), and what
/// they need.
///
/// # Errors
/// There is none.
pub fn select(all: &[Case], filters: &[String], quick: bool) -> Result<Vec<Case>, Error> {
    let wanted = |case: &Case| {
        (!quick || case.quick)
            && (filters.is_empty() || filters.iter().any(|filter| case.name.contains(&**filter)))
    };
    if !all.iter().any(wanted) {
        return Err(Error::NoCases { filters: filters.join(", ") });
    }
    let golden = all.iter().any(|case| wanted(case) && case.needs == Needs::Golden);
    Ok(all
        .iter()
        .filter(|case| wanted(case) || golden && case.name == MAKES_GOLDEN)
        .copied()
        .collect())
}

/// Makes an empty folder for results; what an earlier run left there is removed.
///
/// # Errors
/// It cannot be made.
pub fn empty_folder(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).context("replace", path);
        }
        _ => {}
    }
    fs::create_dir_all(path).context("create", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_chosen_case_needs_is_chosen_too() {
        let case = |name, needs, quick| Case { name, needs, quick, ..Case::USUAL };
        let all = [
            case("doctor", Needs::Kvm, true),
            case(MAKES_GOLDEN, Needs::Kvm, true),
            case("run", Needs::Golden, true),
            case("demo", Needs::Golden, false),
        ];
        let names = |filters: &[&str], quick| -> Vec<&str> {
            let filters: Vec<String> = filters.iter().map(|filter| (*filter).to_owned()).collect();
            select(&all, &filters, quick).expect("cases").iter().map(|case| case.name).collect()
        };
        assert_eq!(names(&[], false), ["doctor", MAKES_GOLDEN, "run", "demo"]);
        assert_eq!(names(&[], true), ["doctor", MAKES_GOLDEN, "run"]);
        assert_eq!(names(&["demo"], false), [MAKES_GOLDEN, "demo"]);
        assert_eq!(names(&["doc"], false), ["doctor"]);
        select(&all, &["no such".into()], false).unwrap_err();
    }
}
