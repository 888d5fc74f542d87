//! Failures of a command, and the exit codes they end with.

/// Exit code when Mayfly itself failed before or beside the command of `run` and `shell` (as
/// docker-run(1) and podman use it).
pub const EXIT_OURS: u8 = 125;
/// Exit code after an interrupt (128 + SIGINT, as shells report it).
pub const EXIT_INTERRUPTED: u8 = 130;

/// Exit code for arguments that cannot be used (as clap and bash have it).
const EXIT_USAGE: u8 = 2;

/// A command's failure: what to tell the person, and with which code to exit.
#[derive(Debug)]
pub struct Failure {
    /// Message of one line.
    pub message: String,
    /// Exit code, not 0.
    pub code: u8,
}

impl Failure {
    /// Creates a failure with exit code 1.
    pub fn new(error: impl std::fmt::Display) -> Self {
        Self { message: error.to_string(), code: 1 }
    }

    /// Creates a failure beside the command that was to run.
    pub fn ours(error: impl std::fmt::Display) -> Self {
        Self { message: error.to_string(), code: EXIT_OURS }
    }

    /// Creates the failure of an argument that clap took and that cannot be used.
    pub fn arguments(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: EXIT_USAGE }
    }

    /// Creates the failure of arguments that cannot be used: what clap found, its hint, and where to read on.
    pub fn usage(error: &clap::Error) -> Self {
        let text = error.to_string();
        let mut said: Vec<&str> = text
            .lines()
            .map(str::trim)
            .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
            .filter(|line| !line.is_empty())
            .collect();
        if let Some(first) = said.first_mut() {
            *first = first.trim_start_matches("error: ");
        }
        // The words of the usage before its first option or value are the command.
        let command: Vec<&str> = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("Usage: "))
            .unwrap_or("mayfly")
            .split(' ')
            .take_while(|word| word.starts_with(|c: char| c.is_ascii_lowercase()))
            .collect();
        let mut said = said.join(", ").replace(":, ", ": ");
        let runs_a_command = matches!(command.last(), Some(&("run" | "shell" | "exec")));
        let unexpected = said.strip_prefix("unexpected argument '");
        if runs_a_command && unexpected.is_some_and(|word| !word.starts_with('-')) {
            said.push_str(", tip: write `--` before the command that is to run");
        }
        let message = format!("{said}; see `{} --help`", command.join(" "));
        Self { message, code: EXIT_USAGE }
    }

    /// Creates the failure of a command that a signal stopped.
    pub fn interrupted(what: &str) -> Self {
        Self { message: format!("interrupted: {what}"), code: EXIT_INTERRUPTED }
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(error)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn wrong_arguments_are_told_in_one_line_with_what_clap_suggests() {
        for (given, told) in [
            (
                &["mayfly", "run", "--memroy", "1", "default"][..],
                "unexpected argument '--memroy' found, tip: a similar argument exists: '--memory', tip: \
                 to pass '--memroy' as a value, use '-- --memroy'; see `mayfly run --help`",
            ),
            (
                &["mayfly", "run", "default", "docker", "version"],
                "unexpected argument 'docker' found, tip: write `--` before the command that is to \
                 run; see `mayfly run --help`",
            ),
            (
                &["mayfly", "stat"],
                "unrecognized subcommand 'stat', tip: some similar subcommands exist: 'status', \
                 'start'; see `mayfly --help`",
            ),
            (
                &["mayfly", "kill"],
                "the following required arguments were not provided: <IDS>...; \
                 see `mayfly kill --help`",
            ),
        ] {
            let failure = Failure::usage(&Cli::try_parse_from(given).unwrap_err());
            assert_eq!((failure.message.as_str(), failure.code), (told, EXIT_USAGE));
        }
    }
}
