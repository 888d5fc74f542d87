//! Work of our own in a process of its own: what it needs of memory and threads is gone with it, so
//! none of it is left in the parked phase, and a dropped request ends it at any point.

use super::group::Group;
use super::pipe::{Pipe, ProcessEnd};
use super::spawn::spawn;
use crate::context::Context;
use mayfly_protocol::{ByteString, ExecRequest, GuestError, Reply};
use std::io::{self, Write};
use std::process::ExitCode;
use std::rc::Rc;

/// Longest report in bytes; the rest is read and dropped.
const REPORT: usize = 64 * 1024;

/// A running role of this program. Dropping it kills it.
pub struct Helper {
    group: Group,
    end: ProcessEnd,
    what: &'static str,
    /// Stdin of the helper, if asked for; dropped to close it.
    pub stdin: Option<Pipe>,
    /// Stdout of the helper.
    pub stdout: Pipe,
    report: Option<Pipe>,
}

impl Helper {
    /// Starts `mayfly-agent ROLE ARGUMENT...`.
    pub async fn start(
        role: &'static str,
        arguments: impl IntoIterator<Item = ByteString>,
        stdin: bool,
        context: &Rc<Context>,
    ) -> Result<Self, GuestError> {
        let mut argv = vec!["/proc/self/exe".into(), role.into()];
        argv.extend(arguments);
        // In our own directory, which relative paths start from.
        let request = ExecRequest { argv, stdin, cwd: ".".into(), ..ExecRequest::default() };
        let spawned = spawn(request, Vec::new()).await?;
        let group = Group::new(spawned.child.attend(), Rc::clone(context));
        let end = ProcessEnd::of(group.child.id())
            .map_err(|error| GuestError::io(format_args!("watch {role}"), &error))?;
        Ok(Self {
            group,
            end,
            what: role,
            stdin: spawned.stdin,
            stdout: spawned.stdout,
            report: spawned.stderr,
        })
    }

    /// Closes its stdin, waits for its end and takes its report. Its stdout must have been read, or
    /// stay empty.
    pub async fn finish(mut self) -> Reply<u64> {
        self.stdin = None;
        let failed = |error: io::Error| GuestError::io(self.what, &error);
        let mut report = Vec::new();
        if let Some(pipe) = &self.report {
            let mut buffer = [0; 4096];
            loop {
                match pipe.read(&mut buffer).await.map_err(failed)? {
                    0 => break,
                    count => {
                        report.extend_from_slice(&buffer[..count]);
                        report.truncate(REPORT);
                    }
                }
            }
        }
        self.end.wait().await.map_err(failed)?;
        let status = self.group.child.wait().map_err(failed)?;
        self.group.ended = true;
        postcard::from_bytes::<Reply<u64>>(&report).unwrap_or_else(|_| {
            let text = String::from_utf8_lossy(&report);
            Err(GuestError::new(
                format!("{} was lost ({status}) {}", self.what, text.trim()).trim_end(),
            ))
        })
    }
}

/// Ends a role with its result, which goes to stderr; the other end of [`Helper::finish`].
pub fn report(result: &Reply<u64>) -> ExitCode {
    let written = postcard::to_stdvec(result).map(|report| io::stderr().write_all(&report));
    match (result, written) {
        (Ok(_), Ok(Ok(()))) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
