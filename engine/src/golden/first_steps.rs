//! First steps: what nearly every session does first. They are taken ahead, where sessions profit
//! of it: in the template before its snapshot, in the restore that records the working set, and in
//! zygotes.
//!
//! None of them need succeed: what counts is that the guest has done it once. But each must end: what
//! one that was killed has left behind would be in every session.

use std::fmt;
use std::time::Duration;

use mayfly_guest::channel::{Channel, ChannelError, ExecRequest, ExitStatus};
use mayfly_guest::docker;
use mayfly_host::time_scale::scaled;
use mayfly_protocol::TtySize;
use mayfly_snapshotter::Manifest;
use tokio::time::Instant;

use super::load::label;

/// What most clients send: a command of a login shell.
const LOGIN: [&str; 3] = ["bash", "-lc", "echo ready"];
/// File that is written, read and removed.
const FILE: &str = "/tmp/.mayfly-first-step";
/// Runs true(1) of the newest image, if there is one, and nothing that the image would run by itself.
const RUN_CONTAINER: &str = "image=$(docker image ls -q | head -n 1); test -z \"$image\" || \
    docker run --rm --pull never --name mayfly-first-step --entrypoint true \"$image\" || \
    docker rm --force --volumes mayfly-first-step";
/// How much longer than its own limit a command is waited for.
const GRACE: Duration = Duration::from_secs(10);

/// Bounds on the steps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepLimits {
    /// Time of one command.
    pub command: Duration,
    /// Time after which no further step is begun.
    pub all: Duration,
}

impl StepLimits {
    /// Those of a zygote or a recording. Generous: zygotes take them on idle time.
    pub fn usual() -> Self {
        let seconds = |seconds| scaled(Duration::from_secs(seconds));
        Self { command: seconds(300), all: seconds(60) }
    }
}

/// A first step that did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum FirstStepError {
    /// The guest is gone or talks nonsense.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// It takes too long, and was killed.
    #[error("the first step {step} did not end within {limit:?}")]
    TimedOut {
        /// The step.
        step: String,
        /// The limit that it reached.
        limit: Duration,
    },
}

/// How much of the first steps is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// What writes to the memory that every session writes to: a Docker ping, a login shell.
    Start,
    /// What takes some tens of milliseconds: the agent, shells, a terminal, files, a Docker ping.
    Quick,
    /// All, Docker's client, a container and the recipe's own commands among them.
    All,
}

/// A first step.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    DockerPing,
    /// A collection of dockerd's and containerd's garbage. Go's runtime makes one two minutes after
    /// the last (`forcegcperiod` in runtime/proc.go). Under TCG the first one in a session costs
    /// four times as much as the second, in all sessions of a burst at the same moment.
    DockerGarbage,
    Files,
    /// The guest's clock compared with the host's.
    Clock,
    /// An interactive login shell on a terminal, of this user or of root.
    Terminal(Option<String>),
    Command(Vec<String>),
    /// A command of a user.
    CommandOf(String, Vec<String>),
}

/// First steps of the sessions of one golden, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstSteps {
    steps: Vec<Step>,
    /// The number of those of [`Extent::Start`] and of [`Extent::Quick`]; they come first.
    start: usize,
    quick: usize,
}

impl FirstSteps {
    /// The steps of a golden with Docker or without, whose commands are `user`'s unless they name
    /// another, and whose recipe has these commands as `warm_up`.
    pub(super) fn new(docker: bool, user: Option<&str>, warm_up: &[String]) -> Self {
        let words = |argv: &[&str]| argv.iter().map(|&word| word.into()).collect();
        let command = |argv: &[&str]| Step::Command(words(argv));
        let users = |argv: &[&str]| match user {
            Some(user) => Step::CommandOf(user.to_owned(), words(argv)),
            None => Step::Command(words(argv)),
        };
        let mut steps = Vec::new();
        steps.extend(docker.then_some(Step::DockerPing));
        steps.push(users(&LOGIN));
        let start = steps.len();
        // Root's own, beside the user's.
        steps.extend(user.map(|_| command(&LOGIN)));
        steps.extend([
            users(&["/bin/true"]),
            users(&["sh", "-c", "echo ready"]),
            Step::Terminal(user.map(str::to_owned)),
            Step::Files,
            Step::Clock,
        ]);
        let quick = steps.len();
        if user.is_some() {
            // Fails where there is no sudo(8), or it wants a password.
            steps.push(users(&["sudo", "-n", "true"]));
        }
        if docker {
            steps.push(command(&["docker", "ps"]));
            steps.push(command(&["sh", "-c", RUN_CONTAINER]));
        }
        steps.extend(warm_up.iter().map(|line| command(&["sh", "-e", "-c", line])));
        // The last: what the others have left is gone then.
        steps.extend(docker.then_some(Step::DockerGarbage));
        Self { steps, start, quick }
    }

    /// Returns the first steps of the golden of `manifest`.
    pub fn of(manifest: &Manifest) -> Self {
        let list = manifest.labels.get(label::WARM_UP).map(String::as_str).unwrap_or_default();
        // Of another's making it may be anything: then there are none of the recipe's.
        let warm_up: Vec<String> = serde_json::from_str(list).unwrap_or_default();
        let user = manifest.labels.get(label::DEFAULT_USER).map(String::as_str);
        Self::new(manifest.labels.contains_key(label::DOCKER), user, &warm_up)
    }

    /// Takes the steps; as many as there is time for.
    ///
    /// # Errors
    /// [`FirstStepError`]: the guest must not be used then. A step that fails in the guest is no
    /// error.
    pub(crate) async fn take(
        &self,
        guest: &Channel,
        extent: Extent,
        limits: StepLimits,
    ) -> Result<(), FirstStepError> {
        let begun = Instant::now();
        let steps = match extent {
            Extent::Start => &self.steps[..self.start],
            Extent::Quick => &self.steps[..self.quick],
            Extent::All => &self.steps[..],
        };
        for (taken, step) in steps.iter().enumerate() {
            if begun.elapsed() > limits.all {
                tracing::info!(taken, of = steps.len(), next = %step, "the first steps take too long");
                return Ok(());
            }
            match step.take(guest, limits.command).await {
                Ok(ExitStatus::TimedOut) => {
                    let (step, limit) = (step.to_string(), limits.command);
                    return Err(FirstStepError::TimedOut { step, limit });
                }
                Ok(_) => {}
                // Not every guest has all that they need.
                Err(error @ (ChannelError::Guest(_) | ChannelError::NotStarted { .. })) => {
                    tracing::debug!(%step, %error, "a first step failed");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DockerPing => f.write_str("a ping of Docker"),
            Self::DockerGarbage => f.write_str("a garbage collection of Docker"),
            Self::Files => f.write_str("a file written, read and removed"),
            Self::Clock => f.write_str("the clock compared"),
            Self::Terminal(None) => f.write_str("a login shell on a terminal"),
            Self::Terminal(Some(user)) => write!(f, "a login shell of {user} on a terminal"),
            Self::Command(argv) => write!(f, "`{}`", argv.join(" ")),
            Self::CommandOf(user, argv) => write!(f, "`{}` of {user}", argv.join(" ")),
        }
    }
}

impl FirstSteps {
    /// Returns the steps in words, in order.
    pub fn in_words(&self) -> Vec<String> {
        self.steps.iter().map(Step::to_string).collect()
    }
}

impl Step {
    async fn take(&self, guest: &Channel, limit: Duration) -> Result<ExitStatus, ChannelError> {
        // Commands end by themselves before that, and leave nothing; a daemon may never answer.
        let limited = tokio::time::timeout(limit + scaled(GRACE), self.taken(guest, limit)).await;
        limited.unwrap_or(Ok(ExitStatus::TimedOut))
    }

    async fn taken(&self, guest: &Channel, limit: Duration) -> Result<ExitStatus, ChannelError> {
        match self {
            Self::DockerPing => docker::ping(guest).await.map(|()| ExitStatus::Code(0)),
            Self::DockerGarbage => {
                docker::collect_garbage(guest).await.map(|()| ExitStatus::Code(0))
            }
            Self::Files => {
                guest.write_file(FILE, 0o600, b"x").await?;
                guest.read_file(FILE).await?;
                guest.stat(FILE).await?;
                guest.list("/root").await?;
                guest.remove(FILE, false, false).await.map(|()| ExitStatus::Code(0))
            }
            Self::Clock => {
                let clock = guest.clock();
                clock.offset().await?;
                // Too little to change it, but the way is the same.
                clock.adjust(1).await.map(|_| ExitStatus::Code(0))
            }
            Self::Terminal(user) => {
                let mut request = bounded(["bash", "-il"], limit);
                request.user.clone_from(user);
                request.tty = Some(TtySize { rows: 24, cols: 80 });
                request.stdin = true;
                // No trace of it is to be in a session.
                request.env = vec![("HISTFILE".into(), "/dev/null".into())];
                let output = guest.exec(request).await?.output_with_stdin(b"exit\n").await?;
                Ok(output.status)
            }
            Self::Command(argv) => run(guest, argv, None, limit).await,
            Self::CommandOf(user, argv) => run(guest, argv, Some(user), limit).await,
        }
    }
}

async fn run(
    guest: &Channel,
    argv: &[String],
    user: Option<&String>,
    limit: Duration,
) -> Result<ExitStatus, ChannelError> {
    let mut request = bounded(argv.iter().map(String::as_str), limit);
    request.user = user.cloned();
    Ok(guest.exec(request).await?.output().await?.status)
}

fn bounded<'a>(argv: impl IntoIterator<Item = &'a str>, limit: Duration) -> ExecRequest {
    let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    ExecRequest { timeout_ms: Some(limit), ..ExecRequest::new(argv) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_steps_come_first_and_the_recipes_own_after_dockers() {
        let steps = FirstSteps::new(true, None, &["make warm".to_owned()]);
        let words = steps.in_words();
        assert_eq!(words.first().unwrap(), "a ping of Docker");
        let last = &words[words.len() - 2..];
        assert_eq!(last, ["`sh -e -c make warm`", "a garbage collection of Docker"]);
        assert!(steps.start < steps.quick && steps.quick < words.len());
        assert!(words[steps.quick..].iter().any(|step| step.contains("docker run")));
        assert!(!words[..steps.quick].iter().any(|step| step.contains("docker")));

        let without = FirstSteps::new(false, None, &[]);
        assert!(!without.in_words().iter().any(|step| step.to_lowercase().contains("docker")));
        assert_eq!(without.quick, without.steps.len());
    }

    #[test]
    fn shells_are_those_of_the_default_user_and_root_has_one_besides() {
        let steps = FirstSteps::new(false, Some("ann"), &["make warm".to_owned()]);
        let words = steps.in_words();
        assert_eq!(words[..steps.start], ["`bash -lc echo ready` of ann"]);
        assert!(words[..steps.quick].contains(&"`bash -lc echo ready`".to_owned()));
        assert!(words[steps.quick..].contains(&"`sudo -n true` of ann".to_owned()));
        assert_eq!(words.last().unwrap(), "`sh -e -c make warm`");
    }
}
