//! Attacks: calls made first by an ordinary process, which must be able to, then by VMMs, which
//! must not.

use std::sync::Arc;

use nix::errno::Errno;

use super::super::check::Findings;
use super::super::inject::{Call, InjectError, Outcome, Tracee};
use super::super::lab::{Kind, Lab, Victim};
use super::super::options::AuditError;
use super::super::report::Attempt;
use super::super::unconfined::Unconfined;

type Steps = Arc<dyn Fn(&mut Tracee) -> Result<Outcome, InjectError> + Send + Sync>;

/// What is tried.
#[derive(Clone)]
pub(super) struct Attack {
    what: String,
    steps: Steps,
    /// What the control does instead.
    control: Option<Steps>,
    /// The attack succeeds only if this is also true of what the call returned.
    success: fn(i64) -> bool,
    /// Failures of the control that mean that this host lacks what would be attacked.
    absent: Vec<Errno>,
}

impl Attack {
    /// Creates an attack of one call that must not succeed.
    pub fn call(what: impl Into<String>, call: Call) -> Self {
        Self::steps(what, move |tracee| tracee.call(&call))
    }

    /// Creates an attack of several calls, the last of which must not succeed.
    pub fn steps(
        what: impl Into<String>,
        steps: impl Fn(&mut Tracee) -> Result<Outcome, InjectError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            what: what.into(),
            steps: Arc::new(steps),
            control: None,
            success: |_| true,
            absent: Vec::new(),
        }
    }

    /// Sets a control other than the attack's own calls.
    pub fn control(
        mut self,
        steps: impl Fn(&mut Tracee) -> Result<Outcome, InjectError> + Send + Sync + 'static,
    ) -> Self {
        self.control = Some(Arc::new(steps));
        self
    }

    /// Sets which values count as a success.
    pub fn success_is(mut self, success: fn(i64) -> bool) -> Self {
        self.success = success;
        self
    }

    /// Sets the failures of the control that mean this host lacks what is attacked.
    pub fn absent(mut self, errors: impl IntoIterator<Item = Errno>) -> Self {
        self.absent.extend(errors);
        self
    }

    fn succeeded(&self, outcome: &Outcome) -> bool {
        match outcome {
            Outcome::Returned(value) => (self.success)(*value),
            other => other.succeeded(),
        }
    }
}

/// Closes a descriptor that a call returned, so that attacks do not add up; the outcome stays the
/// call's.
pub(super) fn closing(tracee: &mut Tracee, outcome: Outcome) -> Result<Outcome, InjectError> {
    if let Outcome::Returned(descriptor @ 0..) = outcome {
        tracee.call(&Call::new(libc::SYS_close).arg(descriptor))?;
    }
    Ok(outcome)
}

/// Makes the calls in process `pid`, from one thread of ours as ptrace(2) demands.
async fn inject(pid: u32, steps: Steps) -> Result<Outcome, InjectError> {
    let work = move || steps(&mut Tracee::seize(pid)?);
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// Makes all attacks, on each kind of VMM there is.
pub(super) async fn run(lab: &mut Lab, attacks: &[Attack]) -> Result<Findings, AuditError> {
    let mut controls = Vec::new();
    let mut helper = Unconfined::start()?;
    for attack in attacks {
        let outcome =
            inject(helper.pid(), attack.control.clone().unwrap_or_else(|| attack.steps.clone()))
                .await;
        // A process that was changed in earnest, such as its root, is no ordinary one any more.
        helper = Unconfined::start()?;
        controls.push(outcome);
    }
    drop(helper);
    let mut findings = Findings::default();
    for kind in lab.kinds().await? {
        let mut victim = None;
        for (attack, control) in attacks.iter().zip(&controls) {
            let what = format!("{}: {}", kind.name(), attack.what);
            let control = match control {
                Ok(Outcome::Failed(errno)) if attack.absent.contains(errno) => {
                    findings.push(Attempt::not_applicable(
                        what,
                        format!("this host has none: the control gives {errno:?}"),
                    ));
                    continue;
                }
                Ok(outcome) => (outcome.to_string(), attack.succeeded(outcome)),
                Err(error) => (error.to_string(), false),
            };
            findings.push(strike(lab, kind, &mut victim, attack, what, control).await?);
        }
        let alive = finish(victim).await?;
        findings.notes.extend(
            alive.map(|said| {
                format!("{}: after the attacks that it survived, {said}.", kind.name())
            }),
        );
    }
    Ok(findings)
}

async fn strike(
    lab: &mut Lab,
    kind: Kind,
    victim: &mut Option<Victim>,
    attack: &Attack,
    what: String,
    control: (String, bool),
) -> Result<Attempt, AuditError> {
    let current = match victim.take() {
        Some(current) => current,
        None => lab.victim(kind).await?,
    };
    let outcome = inject(current.pid(), attack.steps.clone()).await;
    let attempt = match &outcome {
        Ok(Outcome::Killed) => Attempt::judge(
            what,
            control,
            (format!("killed over it: {}", current.last_words().await), false),
        ),
        Ok(outcome) => {
            Attempt::judge(what, control, (outcome.to_string(), attack.succeeded(outcome)))
        }
        Err(error) => Attempt::not_proven(what, error.to_string()),
    };
    match (outcome, current) {
        (Ok(Outcome::Returned(_) | Outcome::Failed(_)), current) => *victim = Some(current),
        (_, Victim::Vmm(session)) => session.discard().await?,
        (_, Victim::Unconfined(_)) => {}
    }
    Ok(attempt)
}

/// Sees whether the guest of a victim still answers: the attacks should have left it as it was.
async fn finish(victim: Option<Victim>) -> Result<Option<String>, AuditError> {
    let Some(Victim::Vmm(session)) = victim else { return Ok(None) };
    let said = super::super::guest::ask::sh(&session, "echo alive").await;
    session.discard().await?;
    Ok(Some(match said {
        Ok(said) => format!("its guest says {:?}", said.out.trim()),
        Err(error) => format!("its guest does not answer: {error}"),
    }))
}
