//! The report for a person: at most [`LINES`] lines of at most [`COLUMNS`] columns.

use mayfly_distribution::Summary;
use mayfly_protocol::Printable;
use mayfly_vmm::Accel;

use super::report::{DockerRun, Report, Row};
use super::systems::System;

/// Most lines.
const LINES: usize = 25;
/// Most characters of a line.
const COLUMNS: usize = 100;
/// Most lines that are shown of a container's output.
const OUTPUT_LINES: usize = 3;
/// Width of the names of systems, of each figure, and of the number of starts.
const NAME: usize = 9;
const FIGURE: usize = 8;
const COUNT: usize = 5;

/// One kind of answer: its title, and its figures in a row.
type Column = (&'static str, fn(&Row) -> Option<Summary>);

const AGENT: Column = ("agent", |row| row.agent_ms);
const COMMAND: Column = ("first command", |row| Some(row.command_ms));
const DOCKER: Column = ("Docker", |row| row.docker_ms);

/// Returns the lines to print; `program` is what to type to run `mayfly`.
pub fn lines(report: &Report, program: &str) -> Vec<String> {
    let columns: &[Column] =
        if report.docker { &[AGENT, COMMAND, DOCKER] } else { &[AGENT, COMMAND] };
    let then_docker = if report.docker { ", then Docker answers a ping" } else { "" };
    let mut lines = vec![
        "Milliseconds from a request, p50 and max of n starts. Each round starts each once, in this order.".to_owned(),
        format!("A session starts, its agent answers as itself, then `echo` has printed{then_docker}."),
        String::new(),
        titles(columns),
        subtitles(columns),
    ];
    for system in System::ALL {
        let missing = || report.missing.iter().find(|missing| missing.system == system);
        match (report.row(system), missing()) {
            (Some(row), _) => lines.push(format!("{}  {}", figures(row, columns), row.what)),
            (None, Some(missing)) => {
                let reason = missing.reason.split_whitespace().collect::<Vec<_>>().join(" ");
                lines.push(format!("{:<NAME$}  {}", system.name(), Printable(&reason)));
            }
            (None, None) => {}
        }
    }
    lines.push(String::new());
    lines.extend(ratio(report));
    let accel = match report.accel {
        Accel::Kvm => "KVM",
        Accel::Tcg => "software emulation (TCG); with KVM guests run many times faster",
    };
    lines.push(format!("Measured in this run, under {accel}."));
    lines.push(String::new());
    if let Some(run) = &report.docker_run {
        lines.extend(container(run));
        lines.push(String::new());
    }
    lines.push("Next:".to_owned());
    lines.extend(next(report, program));
    lines.into_iter().map(fit).take(LINES).collect()
}

fn titles(columns: &[Column]) -> String {
    let mut line = " ".repeat(NAME);
    for (title, _) in columns {
        line += &format!("{title:>0$}", 2 * FIGURE);
    }
    line
}

fn subtitles(columns: &[Column]) -> String {
    let pair = format!("{:>FIGURE$}{:>FIGURE$}", "p50", "max");
    format!("{:NAME$}{}{:>COUNT$}", "", pair.repeat(columns.len()), "n")
}

fn figures(row: &Row, columns: &[Column]) -> String {
    let mut line = format!("{:<NAME$}", row.system.name());
    for (_, of) in columns {
        let pair = of(row)
            .map_or_else(|| ["–".to_owned(), "–".to_owned()], |s| [figure(s.p50), figure(s.max)]);
        line += &pair.map(|figure| format!("{figure:>FIGURE$}")).concat();
    }
    line + &format!("{:>COUNT$}", row.command_ms.n)
}

/// Three digits or more.
fn figure(value: f64) -> String {
    let decimals = match value {
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

fn ratio(report: &Report) -> Option<String> {
    let ratio = report.standby_sooner?;
    let times = |n: f64| if n < 10.0 { format!("{n:.1}") } else { format!("{n:.0}") };
    let docker = ratio
        .docker
        .map(|n| format!(", and its Docker {} times sooner", times(n)))
        .unwrap_or_default();
    Some(format!("A standby answers {} times sooner than a cold boot{docker}.", times(ratio.agent)))
}

fn container(run: &DockerRun) -> Vec<String> {
    let quoted =
        |word: &String| if word.contains(' ') { format!("\"{word}\"") } else { word.clone() };
    let command = run.command.iter().map(quoted).collect::<Vec<_>>().join(" ");
    let mut lines =
        vec![format!("# {command}    (in a session, {:.0} ms from the request)", run.ms)];
    lines.extend(run.output.lines().take(OUTPUT_LINES).map(|line| Printable(line).to_string()));
    lines
}

/// Commands to type next, each with what it does.
fn next(report: &Report, program: &str) -> Vec<String> {
    let golden = &report.golden;
    let inside = if report.docker { "docker version" } else { "uname -a" };
    let commands = [
        (format!("{program} run {golden} -- {inside}"), "one command in a fresh session"),
        (format!("{program} shell {golden}"), "a terminal in one"),
        (format!("{program} serve"), "a daemon with standbys and an HTTP API"),
        (format!("{program} golden build RECIPE.toml"), "a golden image of your own"),
    ];
    let width = commands.iter().map(|(command, _)| command.chars().count()).max().unwrap_or(0);
    let line = |(command, does): &(String, &str)| {
        let line = format!("  {command:<width$}   {does}");
        // A command that is cut off is of no use; what it does may be.
        if line.chars().count() <= COLUMNS { line } else { format!("  {command}") }
    };
    commands.iter().map(line).collect()
}

/// Cuts a line that is too long.
fn fit(line: String) -> String {
    if line.chars().count() <= COLUMNS {
        return line;
    }
    line.chars().take(COLUMNS - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::report::Missing;
    use super::super::systems::Sample;
    use super::*;

    /// A report with a row for each of `systems`, of starts that took so many milliseconds.
    fn report(docker: bool, systems: &[System], ms: u64) -> Report {
        let sample = |system: System, ms: u64| {
            let with = |there: bool, ms: u64| there.then(|| Duration::from_millis(ms));
            let agent = system != System::Crun;
            Sample {
                agent: with(agent, ms),
                command: Duration::from_millis(2 * ms),
                docker: with(agent && docker, 3 * ms),
            }
        };
        let row = |system: &System| {
            let ms = if *system == System::ColdBoot { 1500 * ms } else { ms };
            Row::new(*system, &[(1, sample(*system, ms)), (2, sample(*system, ms + 1))])
        };
        let mut report = Report {
            golden: "default".to_owned(),
            accel: Accel::Tcg,
            vmm: "10.0.2".to_owned(),
            docker,
            rounds: 2,
            systems: systems.iter().map(row).collect(),
            missing: Vec::new(),
            standby_sooner: None,
            docker_run: docker.then(|| DockerRun {
                command: ["docker", "run", "--rm", "busybox", "echo", "hello from a container"]
                    .map(str::to_owned)
                    .into(),
                output: "hello from a container".to_owned(),
                ms: 1234.5,
            }),
        };
        report.compare();
        report
    }

    fn assert_fits(lines: &[String]) {
        assert!(lines.len() <= LINES, "{} lines:\n{}", lines.len(), lines.join("\n"));
        for line in lines {
            assert!(
                line.chars().count() <= COLUMNS && !line.contains('\n'),
                "{}: {line}",
                line.chars().count()
            );
        }
    }

    #[test]
    fn a_whole_report_fits_and_nothing_of_it_is_cut() {
        let lines = lines(&report(true, &System::ALL, 2), "./mayfly");
        assert_fits(&lines);
        assert!(lines.iter().all(|line| !line.contains('…')), "{}", lines.join("\n"));
        assert_eq!(
            lines.last().map(|line| line.trim_start().starts_with("./mayfly golden build")),
            Some(true)
        );
        let text = lines.join("\n");
        assert!(text.contains("A standby answers 1500 times sooner than a cold boot"), "{text}");
        assert!(
            text.contains("(in a session, 1234 ms from the request)\nhello from a container\n"),
            "{text}"
        );
    }

    #[test]
    fn figures_stand_below_their_titles() {
        let lines = lines(&report(true, &System::ALL, 2), "mayfly");
        let at = lines.iter().position(|line| line.contains("first command")).unwrap();
        let end_of = |line: &str, word: &str| {
            let byte =
                line.find(word).unwrap_or_else(|| panic!("no {word} in {line}")) + word.len();
            line[..byte].chars().count()
        };
        assert_eq!(end_of(&lines[at], "agent"), NAME + 2 * FIGURE);
        assert_eq!(end_of(&lines[at], "first command"), NAME + 4 * FIGURE);
        assert_eq!(end_of(&lines[at], "Docker"), NAME + 6 * FIGURE);
        let widths: Vec<usize> =
            lines[at + 2..at + 7].iter().map(|line| line.chars().count()).collect();
        let sentences: Vec<usize> =
            System::ALL.iter().map(|system| system.what().chars().count()).collect();
        for ((line, width), sentence) in lines[at + 2..].iter().zip(widths).zip(sentences) {
            assert_eq!(width - sentence, NAME + 6 * FIGURE + COUNT + 2, "{line}");
        }
        assert_eq!(end_of(&lines[at + 1], "n"), NAME + 6 * FIGURE + COUNT);
        assert!(
            lines[at + 2]
                .starts_with("standby      2.00    3.00    4.00    6.00    6.00    9.00    2  ")
        );
        assert!(
            lines[at + 6]
                .starts_with("crun            –       –    4.00    6.00       –       –    2  ")
        );
    }

    #[test]
    fn without_docker_there_is_no_column_of_it_and_no_word() {
        let lines =
            lines(&report(false, &[System::Standby, System::Cold, System::ColdBoot], 2), "mayfly");
        assert_fits(&lines);
        let text = lines.join("\n").to_lowercase();
        assert!(!text.contains("docker"), "{text}");
        assert!(text.contains("a standby answers 1500 times sooner than a cold boot."), "{text}");
    }

    #[test]
    fn what_is_missing_says_why_and_what_cannot_be_is_left_out() {
        let mut report = report(true, &[System::Standby, System::Cold], 2);
        let reason = "crun is not installed: install the package crun".to_owned();
        report.missing.push(Missing { system: System::Crun, reason });
        let lines = lines(&report, "mayfly");
        assert_fits(&lines);
        let text = lines.join("\n");
        assert!(
            text.contains("\ncrun       crun is not installed: install the package crun\n"),
            "{text}"
        );
        assert!(!text.contains("fork") && !text.contains("sooner"), "{text}");
    }

    #[test]
    fn the_longest_words_fit_too() {
        let mut report = report(
            true,
            &[System::Standby, System::Fork, System::Cold, System::ColdBoot],
            9_000_000,
        );
        report.golden = "g".repeat(63);
        report.missing.push(Missing { system: System::Crun, reason: "why\n".repeat(99) });
        if let Some(run) = &mut report.docker_run {
            run.output = format!("{}\n", "\u{1b}[2J".repeat(80)).repeat(40);
        }
        let lines = lines(&report, "./a-long-way/to/mayfly");
        assert_fits(&lines);
        assert!(lines.iter().all(|line| !line.contains('\u{1b}')));
        let command = format!("  ./a-long-way/to/mayfly shell {}", report.golden);
        assert!(lines.contains(&command), "{}", lines.join("\n"));
    }
}
