//! Commands in a guest, and what they said.

use std::collections::BTreeMap;
use std::time::Duration;

use mayfly_engine::session::Session;
use mayfly_guest::channel::{ExecRequest, Output};
use mayfly_host::time_scale::scaled;

use crate::options::AuditError;

/// Bound on one command in a guest. It only ends what hangs.
pub(super) const LIMIT: Duration = Duration::from_secs(240);

/// What a command in a guest said. Its bytes are hostile: a report quotes them, nothing else.
#[derive(Debug)]
pub(crate) struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// Returns both streams, for a report.
    pub fn all(&self) -> String {
        [self.out.trim(), self.err.trim()]
            .into_iter()
            .filter(|text| !text.is_empty())
            .collect::<Vec<_>>()
            .join("; ")
    }

    /// Lines of the form `name value`.
    pub fn answers(&self) -> BTreeMap<String, String> {
        let pair = |line: &str| {
            let (name, value) = line.split_once(' ').unwrap_or((line, ""));
            (name.to_owned(), value.trim().to_owned())
        };
        self.out.lines().map(pair).collect()
    }
}

/// Runs a command to its end.
pub(crate) async fn output(
    session: &Session,
    argv: &[&str],
    stdin: Option<&[u8]>,
) -> Result<Output, AuditError> {
    let mut request = ExecRequest::new(argv.iter().copied());
    request.timeout_ms = u64::try_from(scaled(LIMIT).as_millis()).ok();
    request.stdin = stdin.is_some();
    let work = async {
        let handle = session.guest().exec(request).await?;
        match stdin {
            Some(bytes) => handle.output_with_stdin(bytes).await,
            None => handle.output().await,
        }
    };
    Ok(session.guarded(work).await?)
}

/// As [`output`], with its bytes as text.
pub(crate) async fn run(session: &Session, argv: &[&str]) -> Result<Said, AuditError> {
    let output = output(session, argv, None).await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Said {
        code: output.status.shell_code(),
        out: text(&output.stdout),
        err: text(&output.stderr),
    })
}

/// Runs a shell script.
pub(crate) async fn sh(session: &Session, script: &str) -> Result<Said, AuditError> {
    run(session, &["/bin/sh", "-c", script]).await
}

/// Runs a Perl script that must end with code 0: perl is in every Debian (package perl-base), and
/// its `syscall` reaches every system call.
pub(crate) async fn perl(
    session: &Session,
    script: &str,
    args: &[&str],
) -> Result<Said, AuditError> {
    let mut argv = vec!["perl", "-e", script];
    argv.extend(args);
    let said = run(session, &argv).await?;
    match said.code {
        0 => Ok(said),
        _ => Err(AuditError::Guest {
            what: "a Perl script (package perl-base)".into(),
            said: said.all(),
        }),
    }
}
