//! Views from the host at one VMM of each kind and the egress proxy, and at an ordinary process.

use super::super::check::Findings;
use super::super::lab::{Kind, Lab, Victim};
use super::super::options::{AuditError, Planted};
use super::super::report::Attempt;
use super::super::unconfined::Unconfined;

/// What a look finds: what was seen, and whether it is wrong.
pub(super) type Seen = (String, bool);

/// A look at a process: its name, and what it finds at a process id. An error means that it could
/// not look.
pub(super) struct Look {
    pub what: &'static str,
    pub at: Box<dyn Fn(u32) -> std::io::Result<Seen> + Send + Sync>,
}

impl Look {
    pub fn new(
        what: &'static str,
        at: impl Fn(u32) -> std::io::Result<Seen> + Send + Sync + 'static,
    ) -> Self {
        Self { what, at: Box::new(at) }
    }
}

/// The processes to look at: VMMs, which are a restored session, a fork and its zygote, and the egress
/// proxy.
pub(super) async fn subjects(
    lab: &mut Lab,
) -> Result<Vec<(&'static str, u32, Option<Victim>)>, AuditError> {
    let mut subjects = Vec::new();
    for kind in lab.kinds().await? {
        let victim = lab.victim(kind).await?;
        subjects.push((kind.name(), victim.pid(), Some(victim)));
        if kind == Kind::Forked
            && !lab.options.plants(Planted::UnconfinedVmm)
            && let Some(zygote) = lab.zygote().await?
        {
            subjects.push(("zygote", zygote.vmm_pid(), None));
        }
    }
    if !lab.options.plants(Planted::UnconfinedVmm) {
        subjects.push(("egress proxy", lab.egress_proxy().await?, None));
    }
    Ok(subjects)
}

pub(super) async fn done(
    subjects: Vec<(&'static str, u32, Option<Victim>)>,
) -> Result<(), AuditError> {
    for (_, _, victim) in subjects {
        if let Some(Victim::Vmm(session)) = victim {
            session.discard().await?;
        }
    }
    Ok(())
}

/// Makes all looks at all processes.
pub(super) async fn run(lab: &mut Lab, looks: &[Look]) -> Result<Findings, AuditError> {
    let mut findings = Findings::default();
    let ordinary = Unconfined::start()?;
    let subjects = subjects(lab).await?;
    for look in looks {
        let (control, works) = match (look.at)(ordinary.pid()) {
            Ok(seen) => seen,
            Err(error) => (error.to_string(), false),
        };
        for (name, pid, _) in &subjects {
            let what = format!("{name}: {}", look.what);
            findings.push(match (look.at)(*pid) {
                Ok(seen) => Attempt::judge(what, (control.clone(), works), seen),
                Err(error) => Attempt::not_proven(what, error.to_string()),
            });
        }
    }
    done(subjects).await?;
    Ok(findings)
}
