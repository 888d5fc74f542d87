//! Packages to root directory: drives mmdebstrap, confined, and makes sense of its output.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use crate::error::{DiskFullError, Error};
use crate::mmdebstrap::{Counter, Hook, Mmdebstrap, SETUP_HOOK};
use crate::progress::{Progress, Step};
use crate::recipe::{Recipe, User};
use crate::root_dir::RootDir;
use crate::sandbox::Finished;

const EXTRACT_HOOK: &str = include_str!("hooks/extract.sh");
const CUSTOMIZE_HOOK: &str = include_str!("hooks/customize.sh");
/// The hook scripts, for the build key.
pub(crate) const HOOKS: [&str; 3] = [SETUP_HOOK, EXTRACT_HOOK, CUSTOMIZE_HOOK];

/// Packages that every image needs: `depmod` at build time and `modprobe` in the guest.
const REQUIRED_PACKAGES: [&str; 1] = ["kmod"];
/// Marks the output line of a user who could not be made.
const USER_FAILED: &str = "mayfly-user-failed:";
/// Marks the output line of a failed setup command.
const SETUP_FAILED: &str = "mayfly-setup-failed:";

/// A root directory with its packages, before our own files.
#[derive(Debug)]
pub(crate) struct Bootstrapped {
    /// The root directory.
    pub root: PathBuf,
    /// All that the build wrote, with the unpacked kernel package in `kernel`, without its
    /// modules.
    pub made: RootDir,
    /// Kernel release.
    pub release: String,
    /// `name=version` of every package.
    pub packages: Vec<String>,
}

/// Installs the recipe's packages into `work/root` and runs its setup commands there. `work`
/// becomes a folder of the build's root: all that is in it afterwards is what packages and setup
/// commands made of it. `stage` is an empty folder.
pub(crate) fn run(
    recipe: &Recipe,
    work: &Path,
    stage: &Path,
    apt_cache: &Path,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<Bootstrapped, Error> {
    let debian = &recipe.debian;
    let root = work.join("root");
    let mut run = Mmdebstrap::new("essential", work, apt_cache)?
        .hook(Hook::Extract, "hook-extract", EXTRACT_HOOK)?
        .hook(Hook::Customize, "hook-customize", CUSTOMIZE_HOOK)?
        .env("MAYFLY_KERNEL", &debian.kernel);
    if !recipe.users.is_empty() {
        run = run.hook(Hook::Customize, "users", &users_script(&recipe.users))?;
    }
    for (number, command) in recipe.setup.iter().enumerate() {
        let text = setup_script(number + 1, command);
        run = run.hook(Hook::Customize, &format!("setup-{}", number + 1), &text)?;
    }
    // Of those that make users and let them become root.
    let of_users = [
        (!recipe.users.is_empty()).then_some("passwd"),
        recipe.users.iter().any(|user| user.sudo).then_some("sudo"),
    ];
    let packages = debian.packages.iter().map(String::as_str).chain(REQUIRED_PACKAGES);
    let packages = packages.chain(of_users.into_iter().flatten());
    run = run.arg(format!("--include={}", packages.collect::<Vec<_>>().join(",")));
    let run = run.confined(stage)?;

    progress.started(Step::Packages, None);
    let mut counter = Counter::default();
    let finished = run.run(&debian.suite, &root, &sources(recipe), cancel, |line| {
        if let Some(line) = line {
            tracing::debug!(target: "mmdebstrap", "{line}");
            if let Some(what) = counter.line(line) {
                progress.advanced(Step::Packages, counter.done, counter.total(), what);
            }
        }
    })?;
    if !finished.status.success() {
        return Err(failure(recipe, work, &finished));
    }
    progress.finished(Step::Packages);

    let made = RootDir::open(work)?;
    let release = made.read_text("release")?.trim().to_owned();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-+._~".contains(c);
    if release.is_empty() || !release.chars().all(plain) {
        return Err(crate::ModulesError::NoDirectory { package: debian.kernel.clone() }.into());
    }
    let packages = made.read_text("packages")?.lines().map(str::to_owned).collect();
    Ok(Bootstrapped { root, made, release, packages })
}

/// The lines of a sources.list: the suite, and its updates and security suites where they exist.
fn sources(recipe: &Recipe) -> Vec<String> {
    let debian = &recipe.debian;
    let (suite, mirror) = (&debian.suite, &debian.mirror);
    let mut lines = vec![format!("deb {mirror} {suite} main")];
    // unstable and experimental move by themselves; a derived suite ("x-backports") has neither.
    if !matches!(suite.as_str(), "sid" | "unstable" | "experimental") && !suite.contains('-') {
        lines.push(format!("deb {mirror} {suite}-updates main"));
        if !debian.security_mirror.is_empty() {
            lines.push(format!("deb {} {suite}-security main", debian.security_mirror));
        }
    }
    lines
}

/// A customize hook that makes the users. Their names and paths have no characters that a shell
/// takes for others, as the recipe was checked.
fn users_script(users: &[User]) -> String {
    let mut script = "#!/bin/sh\n".to_owned();
    for User { name, uid, home, shell, groups, sudo } in users {
        let uid = uid.map(|uid| format!("--uid {uid} ")).unwrap_or_default();
        let groups = if groups.is_empty() {
            String::new()
        } else {
            format!("--groups {} ", groups.join(","))
        };
        let sudoers = format!("\"$1\"/etc/sudoers.d/{name}");
        let sudo = if *sudo {
            format!(
                " && echo '{name} ALL=(ALL:ALL) NOPASSWD: ALL' >{sudoers} && chmod 440 {sudoers}"
            )
        } else {
            String::new()
        };
        script += &format!(
            "{{ chroot \"$1\" useradd --create-home --user-group {uid}{groups}--home-dir {home} --shell {shell} \
             {name}{sudo}; }} || {{ echo '{USER_FAILED}' {name} >&2; exit 1; }}\n"
        );
    }
    script
}

/// A customize hook that runs one setup command in the root directory. The command travels as
/// single-quoted text.
fn setup_script(number: usize, command: &str) -> String {
    let quoted = command.replace('\'', "'\\''");
    format!(
        "#!/bin/sh\nchroot \"$1\" /bin/sh -e -c '{quoted}' && exit 0\necho '{SETUP_FAILED}' {number} >&2\nexit 1\n"
    )
}

/// Turns the output of a failed run into an error that says what to do.
fn failure(recipe: &Recipe, work: &Path, finished: &Finished) -> Error {
    const NETWORK: [&str; 8] = [
        "Temporary failure resolving",
        "Could not resolve",
        "Could not connect",
        "Failed to fetch",
        "Connection timed out",
        "does not have a Release file",
        "couldn't be downloaded",
        "is not signed",
    ];
    let suite = recipe.debian.suite.clone();
    let tail = &finished.tail;
    let quoted_after = |prefix: &str| {
        tail.iter().find_map(|l| {
            l.split_once(prefix).map(|(_, rest)| rest.trim_matches(['\'', ' ', '"']).to_owned())
        })
    };
    if tail.iter().any(|l| {
        l.contains("No space left on device") || l.contains("don't have enough free space")
    }) {
        return DiskFullError::at(work, crate::error::NEED_MIB).into();
    }
    if let Some(package) = quoted_after("E: Unable to locate package ") {
        return Error::PackageMissing { package, suite };
    }
    if let Some(rest) =
        quoted_after("E: Package ").filter(|r| r.contains("has no installation candidate"))
    {
        let package = rest.split(['\'', ' ']).next().unwrap_or_default().to_owned();
        return Error::PackageMissing { package, suite };
    }
    if let Some(rest) = quoted_after("E: No packages found") {
        return Error::PackageMissing { package: format!("{}{rest}", recipe.debian.kernel), suite };
    }
    if let Some(number) = quoted_after(SETUP_FAILED).and_then(|n| n.parse::<usize>().ok()) {
        let command =
            number.checked_sub(1).and_then(|n| recipe.setup.get(n)).cloned().unwrap_or_default();
        let at = tail.iter().position(|l| l.starts_with(SETUP_FAILED)).unwrap_or(tail.len());
        let detail = tail[at.saturating_sub(3)..at].join("; ");
        return Error::Setup { number, command, detail };
    }
    if let Some(name) = quoted_after(USER_FAILED) {
        let at = tail.iter().position(|l| l.starts_with(USER_FAILED)).unwrap_or(tail.len());
        return Error::User { name, detail: tail[at.saturating_sub(1)..at].join("; ") };
    }
    if let Some(line) = tail.iter().find(|l| NETWORK.iter().any(|n| l.contains(n))) {
        return Error::Mirror { mirror: recipe.debian.mirror.clone(), detail: line.clone() };
    }
    if let Some(line) =
        tail.iter().find(|l| l.contains("unmet dependencies") || l.contains("held broken packages"))
    {
        let detail = tail
            .iter()
            .filter(|l| l.contains("Depends:") || l.contains("Conflicts:"))
            .take(3)
            .cloned();
        let detail = detail.collect::<Vec<_>>().join("; ");
        return Error::PackagesConflict {
            suite,
            detail: if detail.is_empty() { line.clone() } else { detail },
        };
    }
    Error::Tool {
        program: "mmdebstrap",
        status: finished.status.to_string(),
        detail: finished.detail(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Command, ExitStatus};

    use super::*;

    fn failed(lines: &[&str]) -> Error {
        let recipe =
            Recipe::parse("name = \"x\"\nsetup = [\"true\", \"make it\"]\n", Path::new("r.toml"))
                .expect("valid");
        let tail = lines.iter().map(|l| (*l).to_owned()).collect();
        failure(&recipe, Path::new("/tmp"), &Finished { status: ExitStatus::from_raw(256), tail })
    }

    #[test]
    fn failures_of_the_package_manager_are_told_apart() {
        let error = failed(&[
            "Reading package lists...",
            "E: Unable to locate package no-such",
            "E: run failed",
        ]);
        assert!(
            matches!(&error, Error::PackageMissing { package, .. } if package == "no-such"),
            "{error}"
        );
        let error = failed(&["E: Package 'apt-foo' has no installation candidate"]);
        assert!(
            matches!(&error, Error::PackageMissing { package, .. } if package == "apt-foo"),
            "{error}"
        );
        let error = failed(&["dpkg: error: failed to write: No space left on device"]);
        assert!(matches!(error, Error::DiskFull(_)), "{error}");
        let error =
            failed(&["Err:1 http://x trixie", "E: Failed to fetch http://x/y  Could not connect"]);
        assert!(matches!(error, Error::Mirror { .. }), "{error}");
        let error = failed(&["make: no rule", "mayfly-setup-failed: 2", "E: setup failed"]);
        assert!(
            error.to_string().contains("setup command 2 (`make it`) failed: make: no rule"),
            "{error}"
        );
        let error =
            failed(&["useradd: group 'x' does not exist", "mayfly-user-failed: ann", "E: run"]);
        assert!(
            error.to_string().contains("user ann: useradd: group 'x' does not exist"),
            "{error}"
        );
        let error = failed(&["E: something new"]);
        assert!(error.to_string().contains("E: something new"), "{error}");
    }

    #[test]
    fn sources_have_updates_and_security_only_where_they_exist() {
        let recipe = |suite: &str| {
            Recipe::parse(&format!("name=\"x\"\n[debian]\nsuite=\"{suite}\"\n"), Path::new("r"))
                .expect("valid")
        };
        assert_eq!(sources(&recipe("trixie")).len(), 3);
        assert_eq!(sources(&recipe("sid")).len(), 1);
    }

    #[test]
    fn users_are_made_one_after_the_other_and_the_first_failure_ends_it() {
        let text = "name = \"x\"\n[[user]]\nname = \"ann\"\nuid = 1000\nsudo = true\n\
            groups = [\"docker\", \"adm\"]\n[[user]]\nname = \"bad\"\n[[user]]\nname = \"last\"\n";
        let recipe = Recipe::parse(text, Path::new("r.toml")).expect("valid");
        let root = tempfile::tempdir().expect("temp dir");
        std::fs::create_dir_all(root.path().join("etc/sudoers.d")).expect("made");
        // Instead of chroot(8): says what it would do, and fails for one of them.
        let script = users_script(&recipe.users).replace("chroot \"$1\"", "check");
        let check = "check() { echo \"$@\"; case \"$*\" in *bad) return 1 ;; esac; }\n";
        let script = script.replace("#!/bin/sh\n", &format!("#!/bin/sh\n{check}"));
        let path = crate::mmdebstrap::script(root.path(), "users", &script).expect("written");
        let output = Command::new("sh").arg(path).arg(root.path()).output().expect("runs");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "useradd --create-home --user-group --uid 1000 --groups docker,adm --home-dir /home/ann \
             --shell /bin/bash ann\n\
             useradd --create-home --user-group --home-dir /home/bad --shell /bin/bash bad\n"
        );
        assert_eq!(String::from_utf8_lossy(&output.stderr), "mayfly-user-failed: bad\n");
        let sudoers = std::fs::read_to_string(root.path().join("etc/sudoers.d/ann"));
        assert_eq!(sudoers.expect("there"), "ann ALL=(ALL:ALL) NOPASSWD: ALL\n");
        assert!(!output.status.success());
    }

    #[test]
    fn a_setup_command_with_quotes_survives() {
        let dir = tempfile::tempdir().expect("temp dir");
        let script = setup_script(1, "echo 'a b' \"$HOME\"");
        // The shell that runs the hook must hand chroot exactly the command.
        let probe = script.replace("chroot \"$1\" /bin/sh -e -c", "printf %s");
        let path = crate::mmdebstrap::script(dir.path(), "probe", &probe).expect("written");
        let output = Command::new("sh").arg(path).output().expect("runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "echo 'a b' \"$HOME\"");
    }
}
