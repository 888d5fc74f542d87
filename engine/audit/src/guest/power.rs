//! Resets, crashes and shutdowns: they must end the own session and nothing else.

use std::time::Duration;

use mayfly_engine::session::SessionState;
use mayfly_host::cgroup::Limits;
use mayfly_host::time_scale::scaled;

use super::super::check::Findings;
use super::super::lab::Lab;
use super::super::options::AuditError;
use super::super::report::Attempt;
use super::ask::{output, sh};
use super::ports::{PROGRAM, install};
use super::program::Order;

/// How long a machine may take to end. What has not ended by then has not been ended.
const PATIENCE: Duration = Duration::from_secs(4);

/// How a guest tries to end more than itself.
enum Blow {
    Shell(&'static str),
    Port(Order),
}

/// What is tried, how, and whether it is known to end the session.
const BLOWS: &[(&str, Blow, bool)] = &[
    (
        "sysrq: reboot at once",
        Blow::Shell("echo 1 >/proc/sys/kernel/sysrq; echo b >/proc/sysrq-trigger"),
        true,
    ),
    (
        "sysrq: crash",
        Blow::Shell("echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger"),
        true,
    ),
    // reboot(2): the magic numbers, LINUX_REBOOT_CMD_POWER_OFF and _RESTART.
    (
        "reboot(2): power off",
        Blow::Shell("perl -e 'syscall(169, 0xfee1dead, 672274793, 0x4321fedc, 0)'"),
        true,
    ),
    (
        "reboot(2): restart",
        Blow::Shell("perl -e 'syscall(169, 0xfee1dead, 672274793, 0x1234567, 0)'"),
        true,
    ),
    (
        "kexec_file_load(2), then reboot into it",
        Blow::Shell(
            "k=$(ls /boot/vmlinuz* /vmlinuz 2>/dev/null | head -n 1); perl -e 'use Fcntl; my $line = \"\\0\"; \
             sysopen(my $k, $ARGV[0] || \"/bin/true\", O_RDONLY) or die; syscall(320, fileno($k), -1, 1, $line, 4) == 0 \
             or die \"$!\\n\"; syscall(169, 0xfee1dead, 672274793, 0x45584543, 0)' $k",
        ),
        false,
    ),
    ("keyboard controller: reset (port 0x64)", Blow::Port(Order::Write(0x64, 0xfe)), false),
    ("chipset: reset (port 0xcf9)", Blow::Port(Order::Write(0xcf9, 0x06)), false),
    ("debug exit (port 0x501)", Blow::Port(Order::Write(0x501, 0x01)), false),
    ("debug exit (port 0xf4)", Blow::Port(Order::Write(0xf4, 0x01)), false),
    (
        "ACPI: sleep control of PC machines (port 0x604)",
        Blow::Port(Order::Write(0x604, 0x34)),
        false,
    ),
    ("ACPI: sleep control of Bochs (port 0xb004)", Blow::Port(Order::Write(0xb004, 0x34)), false),
];

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

pub(super) async fn run(lab: &mut Lab) -> Result<Findings, AuditError> {
    let mut findings = Findings::default();
    let neighbour = lab.neighbour().await?;
    let host = boot_id();
    let mut session = None;
    for (what, blow, ends) in BLOWS {
        let victim = match session.take() {
            Some(unharmed) => unharmed,
            None => lab.session(Limits::default()).await?,
        };
        if matches!(blow, Blow::Port(_)) {
            install(&victim).await?;
        }
        let strike = async {
            match blow {
                Blow::Shell(script) => sh(&victim, script).await.map(|said| said.all()),
                Blow::Port(order) => {
                    let output = output(&victim, &[PROGRAM], Some(&order.bytes())).await;
                    output.map(|output| format!("exit code {}", output.status.shell_code()))
                }
            }
        };
        let struck = tokio::time::timeout(scaled(PATIENCE) * 2, strike).await;
        let fate = if *ends || !matches!(struck, Ok(Ok(_))) {
            tokio::time::timeout(scaled(PATIENCE), victim.state().failed()).await.ok()
        } else {
            // It may follow at once.
            tokio::time::timeout(Duration::from_millis(300), victim.state().failed()).await.ok()
        };
        let alive =
            sh(&neighbour.session, "echo alive").await.is_ok_and(|said| said.out.trim() == "alive");
        let same = boot_id() == host;
        let own = match (&fate, &struck) {
            (Some(reason), _) => format!("the session that did it ended: {reason}"),
            (None, Ok(Ok(said))) => format!("no effect: {said}"),
            (None, Ok(Err(error))) => format!("no effect: {error}"),
            (None, Err(_)) => "the guest hangs".into(),
        };
        findings.push(Attempt::judge(
            *what,
            (own, fate.is_some() || !*ends),
            (format!("neighbour answers: {alive}; host still up: {same}"), !alive || !same),
        ));
        if fate.is_none() && struck.is_ok() && victim.state().get() == SessionState::Running {
            session = Some(victim);
        } else {
            victim.discard().await?;
        }
    }
    if let Some(session) = session {
        session.discard().await?;
    }
    Ok(findings)
}
