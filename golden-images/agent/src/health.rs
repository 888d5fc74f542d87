//! Health of the guest's services: their state as init wrote it, and whether the Docker API
//! answers.

use crate::config::{Step, read_services};
use crate::context::Context;
use crate::time_scale::scaled;
use mayfly_protocol::{GuestError, Health, Reply, ServiceHealth, ServiceState};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

const PING_LIMIT: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(50);
const LOG_TAIL: u64 = 8 * 1024;

/// Returns the state of everything, and one ping of the Docker API where the guest has one.
pub async fn health(context: &Context) -> Reply<Health> {
    let steps = read_services(&context.layout.services).map_err(GuestError::new)?;
    let docker = match docker_socket(&steps) {
        Some(socket) => Some(ping(&socket).await.is_ok()),
        None => None,
    };
    let (memory_total, memory_available) = memory();
    Ok(Health {
        session: context.session.borrow().clone(),
        services: services(context, &steps),
        docker,
        uptime_ms: uptime_ms(),
        memory_total,
        memory_available,
    })
}

/// Waits until the Docker API answers. A service that has ended is a failure at once, with the end
/// of its log.
pub async fn wait_ready(context: &Context, timeout_ms: u64) -> Reply<Health> {
    let deadline = Instant::now() + Duration::from_millis(timeout_ms.min(3_600_000));
    let steps = read_services(&context.layout.services).map_err(GuestError::new)?;
    let Some(socket) = docker_socket(&steps) else { return health(context).await };
    loop {
        let error = match ping(&socket).await {
            Ok(()) => return health(context).await,
            Err(error) => error,
        };
        let services = services(context, &steps);
        let ended = services.iter().find(|service| {
            !matches!(service.state, ServiceState::Running(_) | ServiceState::Waiting)
        });
        if let Some(service) = ended {
            let tail = log_tail(&context.layout.logs, &service.name);
            return Err(GuestError::new(format!(
                "{} has ended ({:?}){tail}",
                service.name, service.state
            )));
        }
        if Instant::now() >= deadline {
            let tail = services
                .last()
                .map(|service| log_tail(&context.layout.logs, &service.name))
                .unwrap_or_default();
            return Err(GuestError::new(format!(
                "the Docker API on {} did not answer within {timeout_ms} ms: {error}{tail}",
                socket.display()
            )));
        }
        sleep(RETRY).await;
    }
}

fn docker_socket(steps: &[Step]) -> Option<PathBuf> {
    steps.iter().find_map(|step| match step {
        Step::Ready(socket) => Some(socket.clone()),
        _ => None,
    })
}

/// One `GET /_ping`, the readiness probe of the Docker Engine API.
async fn ping(socket: &Path) -> io::Result<()> {
    let exchange = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n").await?;
        let mut answer = Vec::new();
        (&mut stream).take(4096).read_to_end(&mut answer).await?;
        let status = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
        if status.starts_with(b"HTTP/1.") && status.get(8..12) == Some(b" 200") {
            Ok(())
        } else {
            Err(io::Error::other(format!("it answered {:?}", String::from_utf8_lossy(status))))
        }
    };
    timeout(scaled(PING_LIMIT), exchange)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn services(context: &Context, steps: &[Step]) -> Vec<ServiceHealth> {
    let names = steps.iter().filter_map(|step| match step {
        Step::Start { name, .. } => Some(name),
        _ => None,
    });
    names
        .map(|name| {
            let text =
                std::fs::read_to_string(context.layout.states.join(name)).unwrap_or_default();
            ServiceHealth { name: name.clone(), state: parse_state(&text) }
        })
        .collect()
}

/// Reads what [`state_text`] wrote.
pub fn parse_state(text: &str) -> ServiceState {
    let (word, rest) = text.trim_end().split_once(' ').unwrap_or((text.trim_end(), ""));
    match (word, rest.parse::<i32>()) {
        ("running", Ok(pid)) => ServiceState::Running(pid.unsigned_abs()),
        ("exited", Ok(code)) => ServiceState::Exited(code),
        ("killed", Ok(signal)) => ServiceState::Killed(signal),
        ("failed", _) => ServiceState::Failed(rest.into()),
        _ => ServiceState::Waiting,
    }
}

/// Formats a service state as one line, for the file that init keeps per service.
pub fn state_text(state: &ServiceState) -> String {
    match state {
        ServiceState::Waiting => "waiting\n".into(),
        ServiceState::Running(pid) => format!("running {pid}\n"),
        ServiceState::Exited(code) => format!("exited {code}\n"),
        ServiceState::Killed(signal) => format!("killed {signal}\n"),
        ServiceState::Failed(why) => format!("failed {}\n", why.replace('\n', " ")),
    }
}

fn log_tail(logs: &Path, service: &str) -> String {
    let path = logs.join(format!("{service}.log"));
    let tail = std::fs::File::open(&path).and_then(|mut log| {
        let length = log.metadata()?.len();
        log.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
        let mut bytes = Vec::new();
        log.take(LOG_TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    match tail {
        Ok(bytes) if bytes.is_empty() => "; its log is empty".into(),
        Ok(bytes) => {
            format!("; the end of its log:\n{}", String::from_utf8_lossy(&bytes).trim_end())
        }
        Err(error) => format!("; {}: {error}", path.display()),
    }
}

fn uptime_ms() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    now.map_or(0, |now| u64::try_from(now.tv_sec() * 1000 + now.tv_nsec() / 1_000_000).unwrap_or(0))
}

/// `MemTotal` and `MemAvailable` of /proc/meminfo in bytes.
fn memory() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    (meminfo(&text, "MemTotal"), meminfo(&text, "MemAvailable"))
}

/// Reads one field of /proc/meminfo (proc_meminfo(5)) in bytes, 0 when it is missing.
pub fn meminfo(text: &str, field: &str) -> u64 {
    text.lines()
        .find_map(|line| {
            line.strip_prefix(field)?
                .strip_prefix(':')?
                .trim()
                .strip_suffix(" kB")?
                .parse::<u64>()
                .ok()
        })
        .map_or(0, |kib| kib.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_survive_their_file() {
        for state in [
            ServiceState::Waiting,
            ServiceState::Running(7),
            ServiceState::Exited(1),
            ServiceState::Killed(9),
            ServiceState::Failed("no such file".into()),
        ] {
            assert_eq!(parse_state(&state_text(&state)), state);
        }
    }

    #[test]
    fn meminfo_fields() {
        let text = "MemTotal:       1000 kB\nMemFree:          20 kB\n";
        assert_eq!(meminfo(text, "MemFree"), 20 * 1024);
        assert_eq!(meminfo(text, "Mem"), 0);
    }
}
