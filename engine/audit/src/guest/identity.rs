//! What must be different in each session, though all begin from one memory.

use super::super::check::Findings;
use super::super::lab::Lab;
use super::super::options::{AuditError, Planted};
use super::super::report::Attempt;
use super::ask::{Said, sh};

/// Says everything twice. A procfs of its own is what a container has: nothing that is mounted over
/// a file of the first one is in it.
const TELL: &str = "tell() {
    echo machine-id$1 $(cat /etc/machine-id)
    echo hostname$1 $(hostname)
    echo boot-id$1 $(cat /proc/sys/kernel/random/boot_id)
    echo container-boot-id$1 $(cat /run/mayfly-audit/sys/kernel/random/boot_id)
}
mkdir -p /run/mayfly-audit && mount -t proc proc /run/mayfly-audit && tell '' && tell -again && umount /run/mayfly-audit &&
for draw in '' -again; do echo random$draw $(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \\n'); done";

const SUBJECTS: [(&str, &str); 4] = [
    ("machine-id", "the same machine id"),
    ("hostname", "the same host name"),
    ("boot-id", "the same boot id"),
    ("container-boot-id", "the same boot id in a procfs of its own, as each container has one"),
];

pub(super) async fn run(lab: &mut Lab) -> Result<Findings, AuditError> {
    let mut findings = Findings::default();
    let neighbour = lab.neighbour().await?;
    let subject = lab.subject().await?;
    let other = sh(&neighbour.session, TELL).await?;
    if lab.options.plants(Planted::LeakedSecrets) {
        let id = other.answers().get("machine-id").cloned().unwrap_or_default();
        let plant = format!(
            "echo {id} >/run/mayfly-planted && mount --bind /run/mayfly-planted /etc/machine-id"
        );
        sh(&subject.session, &plant).await?;
    }
    let own = sh(&subject.session, TELL).await?;
    let answer = |said: &Said, name: &str| said.answers().get(name).cloned().unwrap_or_default();
    for (name, what) in SUBJECTS {
        let (value, again) = (answer(&own, name), answer(&own, &format!("{name}-again")));
        let others = answer(&other, name);
        findings.push(Attempt::judge(
            format!("find {what} in two sessions"),
            // One that is another at each look would always differ.
            (
                format!("two looks in one session: {value}, {again}"),
                !value.is_empty() && value == again,
            ),
            (format!("{value} and {others}"), value == others),
        ));
    }
    let draws = [
        answer(&own, "random"),
        answer(&own, "random-again"),
        answer(&other, "random"),
        answer(&other, "random-again"),
    ];
    findings.push(Attempt::judge(
        "find the same kernel random numbers in two sessions",
        (
            format!("{} and {} digits were drawn", draws[0].len(), draws[2].len()),
            draws.iter().all(|draw| draw.len() == 64),
        ),
        (
            format!("{} and {}", draws[0], draws[2]),
            draws[..2].iter().any(|draw| draws[2..].contains(draw)),
        ),
    ));
    Ok(findings)
}
