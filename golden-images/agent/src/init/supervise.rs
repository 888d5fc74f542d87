//! The life of PID 1: the agent, the services, orphans, logs, and the end.

use super::{identity_mounts, setup};
use crate::config::{Layout, Step, read_services};
use crate::console::say;
use crate::health::state_text;
use crate::identity::Identity;
use crate::time_scale::scaled;
use mayfly_protocol::ServiceState;
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for a `wait=` path; then the next service starts anyway, and says itself what it
/// misses.
const WAIT_LIMIT: Duration = Duration::from_secs(30);

/// How often a `wait=` path is looked at.
const WAIT_STEP: Duration = Duration::from_millis(5);

/// How often the logs are measured.
const LOG_STEP: Duration = Duration::from_secs(30);

/// A log longer than this, in bytes, is cut to nothing; services append, so they go on at its
/// start.
const LOG_LIMIT: u64 = 4 << 20;

/// Runs the guest. Returns only with what failed.
pub fn run() -> String {
    // SIGCHLD stays pending until it is waited for, so that no child is missed between two looks.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    if let Err(error) = signals.thread_block() {
        return format!("block SIGCHLD: {error}");
    }
    let layout = Layout::guest();
    let identity = match prepare(&layout) {
        Ok(identity) => identity,
        Err(failure) => return failure,
    };
    // SAFETY: this process has one thread, so the child may go on with everything it has.
    let agent = match unsafe { fork() } {
        Ok(ForkResult::Child) => {
            let _ = signals.thread_unblock();
            let _ = nix::unistd::setsid();
            let code = crate::cli::guest_main(identity);
            std::process::exit(if code == std::process::ExitCode::SUCCESS { 0 } else { 1 });
        }
        Ok(ForkResult::Parent { child }) => child,
        Err(error) => return format!("fork the agent: {error}"),
    };
    drop(identity);
    let steps = match read_services(&layout.services) {
        Ok(steps) => steps,
        Err(failure) => return failure,
    };
    Supervisor { layout, agent, services: Vec::new(), steps: steps.into(), waiting_since: None }
        .supervise(&signals)
}

fn prepare(layout: &Layout) -> Result<Identity, String> {
    for warning in setup::prepare()? {
        say(&warning);
    }
    for directory in [&layout.identity, &layout.states, &layout.logs] {
        std::fs::create_dir_all(directory)
            .map_err(|error| format!("{}: {error}", directory.display()))?;
    }
    let identity =
        Identity::of_guest(layout).map_err(|error| format!("identity files: {error}"))?;
    identity_mounts::mount_over(layout)?;
    Ok(identity)
}

struct Supervisor {
    layout: Layout,
    agent: Pid,
    services: Vec<(String, Pid)>,
    steps: VecDeque<Step>,
    waiting_since: Option<Instant>,
}

impl Supervisor {
    fn supervise(mut self, signals: &SigSet) -> String {
        let mut logs_at = Instant::now() + LOG_STEP;
        loop {
            let starting = self.start_next();
            if let Some(failure) = self.reap() {
                return failure;
            }
            wait_signal(signals, if starting { WAIT_STEP } else { LOG_STEP });
            if Instant::now() >= logs_at {
                bound_logs(&self.layout.logs);
                logs_at = Instant::now() + LOG_STEP;
            }
        }
    }

    /// Takes the steps that can be taken now; whether there are more to wait for.
    fn start_next(&mut self) -> bool {
        loop {
            match self.steps.front() {
                None => return false,
                Some(Step::Wait(path)) => {
                    let since = *self.waiting_since.get_or_insert_with(Instant::now);
                    if !path.exists() {
                        let limit = scaled(WAIT_LIMIT);
                        if since.elapsed() < limit {
                            return true;
                        }
                        say(&format!(
                            "{} is still not there after {limit:?}, going on",
                            path.display()
                        ));
                    }
                    self.waiting_since = None;
                }
                Some(Step::Ready(_)) => {}
                Some(Step::Start { name, argv }) => {
                    let state = match start(&self.layout, name, argv) {
                        Ok(pid) => {
                            self.services.push((name.clone(), pid));
                            ServiceState::Running(pid.as_raw().unsigned_abs())
                        }
                        Err(error) => {
                            say(&format!("service {name} was not started: {error}"));
                            ServiceState::Failed(error)
                        }
                    };
                    record(&self.layout, name, &state);
                }
            }
            self.steps.pop_front();
        }
    }

    /// Takes every child that has ended; a message when the agent is one of them.
    fn reap(&mut self) -> Option<String> {
        loop {
            let (pid, state) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, ServiceState::Exited(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    (pid, ServiceState::Killed(signal as i32))
                }
                Ok(WaitStatus::StillAlive) | Err(_) => return None,
                Ok(_) => continue,
            };
            if pid == self.agent {
                return Some(format!(
                    "the agent has ended ({state:?}), so this guest is of no use"
                ));
            }
            if let Some(index) = self.services.iter().position(|(_, service)| *service == pid) {
                let (name, _) = self.services.swap_remove(index);
                say(&format!("service {name} has ended ({state:?}); it is not restarted"));
                record(&self.layout, &name, &state);
            }
        }
    }
}

fn start(layout: &Layout, name: &str, argv: &[String]) -> Result<Pid, String> {
    let (program, arguments) = argv.split_first().ok_or("no program")?;
    let path = layout.logs.join(format!("{name}.log"));
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(|error| format!("{}: {error}", path.display()))?;
    let errors = log.try_clone().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .current_dir("/");
    command.env("PATH", crate::exec::DEFAULT_PATH).env("HOME", "/root").env("LANG", "C.UTF-8");
    // SAFETY: setsid is one system call, which is allowed between fork and exec.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            Ok(())
        });
    }
    let child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
    Ok(Pid::from_raw(child.id().cast_signed()))
}

/// Writes a service's state for the agent to read, in one piece.
fn record(layout: &Layout, name: &str, state: &ServiceState) {
    let temporary = layout.states.join(format!(".{name}"));
    let written = std::fs::write(&temporary, state_text(state))
        .and_then(|()| std::fs::rename(&temporary, layout.states.join(name)));
    if let Err(error) = written {
        say(&format!("state of service {name}: {error}"));
    }
}

fn bound_logs(logs: &Path) {
    let Ok(entries) = std::fs::read_dir(logs) else { return };
    let long = |path: &PathBuf| path.metadata().is_ok_and(|metadata| metadata.len() > LOG_LIMIT);
    for path in entries.flatten().map(|entry| entry.path()).filter(long) {
        if let Err(error) = OpenOptions::new().write(true).truncate(true).open(&path) {
            say(&format!("truncate {}: {error}", path.display()));
        }
    }
}

/// sigtimedwait(2): returns at a signal of the set or after `limit`.
fn wait_signal(signals: &SigSet, limit: Duration) {
    let limit = libc::timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    // SAFETY: the set and the time are valid for the call, and no siginfo is asked for.
    unsafe { libc::sigtimedwait(signals.as_ref(), std::ptr::null_mut(), &raw const limit) };
}

/// Writes back the disks and turns the guest off.
pub fn power_off() -> ! {
    nix::unistd::sync();
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    say(&format!("power off: {error}"));
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Says on the console why this guest cannot go on, and turns it off. PID 1 must not simply exit:
/// that is a panic.
pub fn give_up(failure: &str) -> ! {
    say(&format!("fatal: {failure}; turning off"));
    power_off()
}
