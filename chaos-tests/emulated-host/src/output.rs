//! Output of a command in the host, and the transcript of a case.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use crate::error::{Error, IoContext as _};
use crate::guest_agent::Exit;

/// A finished command.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit of the command.
    pub exit: Exit,
    /// Bytes of standard output.
    pub stdout: String,
    /// Bytes of standard error.
    pub stderr: String,
    /// Time that it ran, within a fraction of a second.
    pub took: Duration,
}

impl Output {
    /// Returns whether it exited with code 0.
    pub fn success(&self) -> bool {
        self.exit == Exit::Code(0)
    }

    /// Describes its end in words.
    pub fn ending(&self) -> String {
        match self.exit {
            Exit::Code(code) => format!("exit code {code}"),
            Exit::Signal(signal) => format!("ended by signal {signal}"),
        }
    }
}

/// Transcript of all that a case does and gets, written to a file as it happens, so that it is
/// there whatever becomes of the host.
#[derive(Debug)]
pub struct Transcript {
    file: File,
    echo: bool,
    at_line_start: bool,
}

impl Transcript {
    /// Creates a transcript at `path`, also on standard error with `echo`.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(path: &Path, echo: bool) -> Result<Self, Error> {
        Ok(Self { file: File::create(path).context("create", path)?, echo, at_line_start: true })
    }

    /// Notes a command that is about to run.
    pub fn command(&mut self, script: &str) {
        for (index, line) in script.trim().lines().enumerate() {
            self.line(if index == 0 { "$ " } else { "> " }, line);
        }
    }

    /// Notes something that is neither a command nor output.
    pub fn note(&mut self, note: &str) {
        self.line("# ", note);
    }

    /// Writes output as it comes.
    pub fn output(&mut self, _error: bool, bytes: &[u8]) {
        if let Some(last) = bytes.last() {
            self.at_line_start = *last == b'\n';
            self.write(bytes);
        }
    }

    fn line(&mut self, mark: &str, text: &str) {
        let begin = if self.at_line_start { "" } else { "\n" };
        self.at_line_start = true;
        self.write(format!("{begin}{mark}{text}\n").as_bytes());
    }

    fn write(&mut self, bytes: &[u8]) {
        // A transcript that cannot be written ends no test.
        let _ = self.file.write_all(bytes);
        if self.echo {
            let _ = std::io::stderr().write_all(bytes);
        }
    }
}
