//! Fork bombs.

use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mayfly_guest::channel::{ExecEvent, ExecRequest};
use mayfly_host::cgroup::{Limits, SessionCgroup, Subject};
use mayfly_host::time_scale::scaled;

use super::meter::Meter;
use super::starts;
use crate::check::Findings;
use crate::lab::Lab;
use crate::options::AuditError;
use crate::report::Attempt;

/// Doubles until the guest has no more, and says how many there are. Bounded, so that a guest is
/// left that can say something.
const BOMB: &str = include_str!("bomb.pl");
/// The bomb on the host: so many processes, which sleep.
const ON_HOST: u64 = 200;

/// Processes on the host whose user is that of a session's VMM.
fn processes_of(vmm: u32) -> u64 {
    let user = |pid: i32| {
        procfs::process::Process::new(pid)
            .and_then(|process| process.status())
            .map(|status| status.ruid)
    };
    let Ok(owner) = user(vmm.cast_signed()) else { return 0 };
    let all = procfs::process::all_processes().into_iter().flatten().flatten();
    all.filter(|process| user(process.pid).is_ok_and(|user| user == owner)).count() as u64
}

pub(super) async fn run(lab: &mut Lab) -> Result<Findings, AuditError> {
    let mut findings = Findings::default();
    let alone = starts::measure(lab).await?;
    let abuser = lab.session(Limits::default()).await?;
    let meter = Meter::of(lab, &abuser);
    let mut bomb = abuser.guest().exec(ExecRequest::new(["perl", "-e", BOMB])).await?;
    // It says when it has gone off, and goes on.
    let said = match bomb.recv().await? {
        Some(ExecEvent::Stdout(bytes)) => String::from_utf8_lossy(&bytes).trim().to_owned(),
        other => format!("{other:?}"),
    };
    let in_guest: u64 = said.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0);
    let beside = starts::measure(lab).await?;
    let (tasks, bound) = (meter.tasks().unwrap_or(u64::MAX), meter.tasks_bound().unwrap_or(0));
    let of_user = processes_of(abuser.vmm_pid());
    drop(bomb);
    abuser.discard().await?;
    let control = (format!("processes in the guest: {said}"), in_guest > bound && bound > 0);
    findings.push(Attempt::judge(
        "have more tasks on the host than the session's bound",
        control.clone(),
        (format!("{tasks} tasks, bound {bound}"), tasks > bound),
    ));
    findings.push(Attempt::judge(
        "put processes into the host's process table",
        control,
        (format!("{of_user} processes of the session's user on the host"), of_user != 1),
    ));
    findings.push(starts::attempt(&alone, &beside));
    let work = on_host(&lab.engine.instance().cgroup_name("audit-bomb"));
    findings.push(work?);
    Ok(findings)
}

/// Starts processes in a cgroup with a session's bounds, and in one with room for all of them.
/// Blocks for some seconds on purpose: an audit that is interrupted meanwhile ends after the
/// processes have been removed, not before.
fn on_host(name: &str) -> Result<Attempt, AuditError> {
    let bound = Limits::default().threads;
    let bounded = bomb(name, &Limits::default())?;
    let free = bomb(name, &Limits { threads: 10_000, ..Limits::default() })?;
    Ok(Attempt::judge(
        format!("start {ON_HOST} processes in a cgroup with a session's bound of {bound} tasks"),
        (format!("with a bound of 10000: {free} tasks"), free > ON_HOST),
        (format!("{bounded} tasks"), bounded > u64::from(bound)),
    ))
}

/// How many tasks a bomb comes to.
fn bomb(name: &str, limits: &Limits) -> Result<u64, AuditError> {
    let cgroup = SessionCgroup::create(
        name,
        limits,
        Subject { guest_memory: 1 << 30, disk_dir: std::env::temp_dir() },
    )?;
    let entrance = cgroup.entrance()?;
    let meter = Meter::at(cgroup.folders());
    let descriptors: Vec<i32> = entrance.files.iter().map(AsRawFd::as_raw_fd).collect();
    let script = format!(
        "i=0; while [ $i -lt {ON_HOST} ]; do sleep 60 & i=$((i+1)); done 2>/dev/null; echo done; read wait; kill $(jobs -p)"
    );
    let mut command = Command::new("bash");
    command
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0);
    // SAFETY: write(2) only, on descriptors that are open until the process has started.
    unsafe {
        command.pre_exec(move || {
            for descriptor in &descriptors {
                if libc::write(*descriptor, c"0".as_ptr().cast(), 1) != 1 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    let mut child = command.spawn().map_err(AuditError::host("start processes in a cgroup"))?;
    let group = nix::unistd::Pid::from_raw(child.id().cast_signed());
    // A shell that cannot fork waits and tries again, for seconds (bash(1) does so without saying
    // it).
    let begun = Instant::now();
    let mut most = 0;
    let mut over = false;
    let output = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut line = String::new();
        output.is_some_and(|output| {
            BufReader::new(output).read_line(&mut line).is_ok() && line.trim() == "done"
        })
    });
    while !over && begun.elapsed() < scaled(Duration::from_secs(8)) {
        over = reader.is_finished();
        most = most.max(meter.tasks().unwrap_or(0));
        std::thread::sleep(Duration::from_millis(20));
    }
    most = most.max(meter.tasks().unwrap_or(0));
    let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
    let _ = child.wait();
    let _ = reader.join();
    // Orphans are reaped by the host's first process, which takes a moment.
    let begun = Instant::now();
    while meter.tasks().is_some_and(|tasks| tasks > 0)
        && begun.elapsed() < scaled(Duration::from_secs(10))
    {
        std::thread::sleep(Duration::from_millis(20));
    }
    cgroup.remove()?;
    Ok(most)
}
