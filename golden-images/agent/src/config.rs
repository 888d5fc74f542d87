//! Paths of the agent's files, and the line format of `/etc/mayfly/services`.

use std::path::{Path, PathBuf};

/// Paths of one agent.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Services to start, see [`parse_services`].
    pub services: PathBuf,
    /// Executables to run after each new identity.
    pub hooks: PathBuf,
    /// Files that are bind-mounted over the identity files of the root.
    pub identity: PathBuf,
    /// Folder with one file per service, its state.
    pub states: PathBuf,
    /// Folder with one log per service.
    pub logs: PathBuf,
}

impl Layout {
    /// Creates the layout of a guest.
    pub fn guest() -> Self {
        Self {
            services: "/etc/mayfly/services".into(),
            hooks: "/etc/mayfly/hooks.d".into(),
            identity: "/run/mayfly/identity".into(),
            states: "/run/mayfly/services".into(),
            logs: "/run/mayfly/log".into(),
        }
    }

    /// Returns a layout with everything under one directory, for tests on a host.
    pub fn under(root: &Path) -> Self {
        Self {
            services: root.join("services"),
            hooks: root.join("hooks.d"),
            identity: root.join("identity"),
            states: root.join("states"),
            logs: root.join("log"),
        }
    }
}

/// Line of `/etc/mayfly/services`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// `NAME=PROGRAM ARG...`: starts a service. Words are split at blanks, there is no quoting.
    Start {
        /// Name, for its log and its state.
        name: String,
        /// Absolute program and arguments.
        argv: Vec<String>,
    },
    /// `wait=PATH`: goes on when this path exists, or after 30 s.
    Wait(PathBuf),
    /// `ready=docker:PATH`: the guest is ready when the Docker API answers on this Unix socket.
    Ready(PathBuf),
}

/// Parses the services file: one step per line, in the order of start; empty lines and `#` comments
/// are passed over.
pub fn parse_services(text: &str) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let bad = |why: &str| format!("/etc/mayfly/services line {}: {why}: {line}", index + 1);
        let (key, value) =
            line.split_once('=').ok_or_else(|| bad("expected NAME=PROGRAM ARG..."))?;
        let (key, value) = (key.trim(), value.trim());
        steps.push(match key {
            "wait" if value.starts_with('/') => Step::Wait(value.into()),
            "wait" => return Err(bad("expected wait=/ABSOLUTE/PATH")),
            "ready" => match value.strip_prefix("docker:") {
                Some(path) if path.starts_with('/') => Step::Ready(path.into()),
                _ => return Err(bad("expected ready=docker:/ABSOLUTE/PATH")),
            },
            name if name.is_empty()
                || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') =>
            {
                return Err(bad("a service name is made of A-Z a-z 0-9 -"));
            }
            name => {
                let argv: Vec<String> = value.split_whitespace().map(str::to_owned).collect();
                if !argv.first().is_some_and(|program| program.starts_with('/')) {
                    return Err(bad("expected an absolute program"));
                }
                if steps
                    .iter()
                    .any(|step| matches!(step, Step::Start { name: other, .. } if other == name))
                {
                    return Err(bad("this service is there already"));
                }
                Step::Start { name: name.into(), argv }
            }
        });
    }
    Ok(steps)
}

/// Reads and parses a services file; a missing one means no services.
pub fn read_services(path: &Path) -> Result<Vec<Step>, String> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse_services(&text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_in_order() {
        let steps = parse_services(
            "# services\ncontainerd=/usr/bin/containerd\nwait=/run/containerd/containerd.sock\n\n\
             dockerd=/usr/bin/dockerd  --host=unix:///run/docker.sock\nready=docker:/run/docker.sock\n",
        )
        .unwrap();
        assert_eq!(steps.len(), 4);
        assert_eq!(
            steps[2],
            Step::Start {
                name: "dockerd".into(),
                argv: vec!["/usr/bin/dockerd".into(), "--host=unix:///run/docker.sock".into()]
            }
        );
        assert_eq!(steps[3], Step::Ready("/run/docker.sock".into()));
    }

    #[test]
    fn a_mistake_is_named_with_its_line() {
        for bad in
            ["x", "x=", "x=relative", "a b=/x", "=/x", "wait=x", "ready=http:/x", "../x=/bin/x"]
        {
            let error = parse_services(&format!("# one\n{bad}\n")).unwrap_err();
            assert!(error.contains("line 2"), "{bad}: {error}");
        }
        parse_services("a=/x\na=/y\n").unwrap_err();
    }
}
