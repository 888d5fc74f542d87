//! Finds the QEMU programs of this host, and what each of them is.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use mayfly_host::facts::{self, Facts};
use serde::{Deserialize, Serialize};

use crate::{Accel, VmmError};

/// Names the program to use, whatever the accelerator.
const VARIABLE: &str = "MAYFLY_QEMU";
const FULL: &str = "qemu-system-x86_64";
/// A build of QEMU that Debian's package has beside the full one, since QEMU 7.2 at the latest: the
/// microvm machine and KVM alone. It is a quarter of the size and needs 12 libraries where the full
/// one needs 49: less to load at each start, and less for a guest to attack.
const MICROVM: &str = "qemu-system-x86_64-microvm";
/// It boots a PVH kernel itself; SeaBIOS would need the option ROMs that are switched off.
pub(super) const FIRMWARE: &str = "qboot.rom";

/// Features that a QEMU program was built with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Build {
    /// Build with everything.
    Full,
    /// The microvm machine and KVM alone.
    Microvm,
}

/// A QEMU program and what it says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuProgram {
    /// Path of the program.
    pub path: PathBuf,
    /// Version of the program, such as `10.0.2 (Debian 1:10.0.2+ds-2)`.
    pub version: String,
    /// Features of the program.
    pub build: Build,
}

impl QemuProgram {
    /// Finds the program to run guests with under `accel`: the one that `MAYFLY_QEMU` names, else
    /// the first one on `PATH`; under KVM the smaller one for microVMs, when it lies beside that
    /// and can confine itself. Each is asked what it is once per host boot and change of it.
    ///
    /// # Errors
    /// [`VmmError::NotInstalled`], [`VmmError::NoEmulation`], [`VmmError::NoSandbox`],
    /// [`VmmError::UnknownVersion`].
    pub fn find(accel: Accel, facts: &Facts) -> Result<Self, VmmError> {
        Self::first(accel, &candidates(accel)?, |path| {
            let file = path.file_name().unwrap_or_default().display();
            let (name, subject) =
                (format!("qemu-{accel}-{file}"), facts::fingerprint(path).unwrap_or_default());
            if let Some(known) = facts.get(&name, &subject) {
                return Ok(known);
            }
            let found = look(path)?;
            facts.put(&name, &subject, &found);
            Ok(found)
        })
    }

    /// The first of the candidates that can confine itself.
    fn first(
        accel: Accel,
        candidates: &[PathBuf],
        look: impl Fn(&Path) -> Result<(String, Option<Build>), VmmError>,
    ) -> Result<Self, VmmError> {
        let mut unconfined = None;
        for path in candidates {
            let display = || path.display().to_string();
            match look(path)? {
                (_, None) => {
                    unconfined =
                        unconfined.or_else(|| Some(VmmError::NoSandbox { program: display() }));
                }
                (_, Some(Build::Microvm)) if accel == Accel::Tcg => {
                    return Err(VmmError::NoEmulation { program: display() });
                }
                (version, Some(build)) => return Ok(Self { path: path.clone(), version, build }),
            }
        }
        Err(unconfined.unwrap_or_else(|| VmmError::NotInstalled { program: FULL.to_owned() }))
    }

    /// Returns the name of the program in the pins of goldens. Device state of one build is not
    /// promised to load in another.
    pub fn name(&self) -> &'static str {
        match self.build {
            Build::Full => "qemu",
            Build::Microvm => "qemu-microvm",
        }
    }
}

/// Finds the QEMU program for `accel`, chosen as by [`QemuProgram::find`], which remembers what it
/// found.
///
/// # Errors
/// As [`QemuProgram::find`].
pub fn find(accel: Accel) -> Result<PathBuf, VmmError> {
    Ok(QemuProgram::first(accel, &candidates(accel)?, look)?.path)
}

/// The programs that may be used, the best first.
fn candidates(accel: Accel) -> Result<Vec<PathBuf>, VmmError> {
    let missing = |program: &OsStr| VmmError::NotInstalled {
        program: program.to_string_lossy().into_owned(),
    };
    if let Some(named) = std::env::var_os(VARIABLE) {
        let path = PathBuf::from(&named);
        return if path.is_file() { Ok(vec![path]) } else { Err(missing(&named)) };
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = on_path(accel, std::env::split_paths(&folders));
    if found.is_empty() { Err(missing(OsStr::new(FULL))) } else { Ok(found) }
}

/// The first of `folders` that has a program decides: a build of one's own in front of the
/// distribution's counts for both.
fn on_path(accel: Accel, folders: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    let names: &[&str] = match accel {
        Accel::Kvm => &[MICROVM, FULL],
        Accel::Tcg => &[FULL],
    };
    let programs = |folder: PathBuf| {
        names.iter().map(|name| folder.join(name)).filter(|path| path.is_file()).collect()
    };
    folders.map(programs).find(|programs: &Vec<_>| !programs.is_empty()).unwrap_or_default()
}

/// The version of a program, and what it was built with; `None` when it was built without seccomp:
/// Debian 12's for microVMs was.
fn look(program: &Path) -> Result<(String, Option<Build>), VmmError> {
    let version = version(program)?;
    let confined = ask(program, &["-sandbox", "on", "-accel", "help"])?;
    if !confined.status.success() && lacks_sandbox(&String::from_utf8_lossy(&confined.stderr)) {
        return Ok((version, None));
    }
    let build = parse_build(&String::from_utf8_lossy(&confined.stdout));
    Ok((version, Some(build.ok_or_else(|| unknown(program, first_line(&confined.stderr)))?)))
}

/// Returns the version a QEMU program reports: device state is only portable between equal builds
/// as far as we promise.
///
/// # Errors
/// [`VmmError::UnknownVersion`] when it cannot be run or says something else.
pub fn version(program: &Path) -> Result<String, VmmError> {
    let output = ask(program, &["--version"])?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
        .ok_or_else(|| unknown(program, first_line(&output.stderr)))
}

/// Whether a program that was started with `-sandbox on` says that it has none.
fn lacks_sandbox(said: &str) -> bool {
    said.contains("-sandbox support is not enabled")
}

fn ask(program: &Path, args: &[&str]) -> Result<Output, VmmError> {
    Command::new(program).args(args).output().map_err(|error| unknown(program, error.to_string()))
}

fn unknown(program: &Path, reason: String) -> VmmError {
    VmmError::UnknownVersion { program: program.display().to_string(), reason }
}

fn first_line(text: &[u8]) -> String {
    String::from_utf8_lossy(text).lines().next().unwrap_or("no output").to_owned()
}

/// Finds the firmware of our machine, in the first of the folders that `program` looks for it in.
///
/// # Errors
/// [`VmmError::NoFirmware`].
pub fn firmware(program: &Path) -> Result<PathBuf, VmmError> {
    let missing =
        |reason: String| VmmError::NoFirmware { program: program.display().to_string(), reason };
    let output =
        Command::new(program).args(["-L", "help"]).output().map_err(|e| missing(e.to_string()))?;
    let folders = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut candidates = folders.lines().map(|folder| Path::new(folder.trim()).join(FIRMWARE));
    candidates
        .find(|path| path.is_file())
        .ok_or_else(|| missing(folders.lines().collect::<Vec<_>>().join(", ")))
}

fn parse_version(output: &str) -> Option<String> {
    let version = output.lines().next()?.strip_prefix("QEMU emulator version ")?.trim();
    version.starts_with(|c: char| c.is_ascii_digit()).then(|| version.to_owned())
}

/// A line of heading, then one for each accelerator.
fn parse_build(output: &str) -> Option<Build> {
    let accelerators: Vec<_> = output.lines().skip(1).map(str::trim).collect();
    match (accelerators.contains(&"tcg"), accelerators.contains(&"kvm")) {
        (true, _) => Some(Build::Full),
        (false, true) => Some(Build::Microvm),
        (false, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(
            parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright")
                .as_deref(),
            Some("7.2.22 (Debian 1:7.2+dfsg-7)")
        );
        assert_eq!(parse_version("busybox v1.36"), None);
        assert_eq!(parse_version(""), None);
    }

    #[test]
    fn a_program_is_what_its_accelerators_make_of_it() {
        let list =
            |names: &str| parse_build(&format!("Accelerators supported in QEMU binary:\n{names}"));
        assert_eq!(list("tcg\nxen\nkvm\n"), Some(Build::Full));
        assert_eq!(list("tcg\n"), Some(Build::Full));
        assert_eq!(list("kvm\n"), Some(Build::Microvm));
        assert_eq!(list("hvf\n"), None);
        assert_eq!(parse_build(""), None);
    }

    #[test]
    fn the_first_folder_with_a_program_decides_and_the_smaller_one_is_for_kvm() {
        let dir = tempfile::tempdir().unwrap();
        let folders = ["empty", "own", "distribution"].map(|name| dir.path().join(name));
        folders.iter().for_each(|folder| std::fs::create_dir(folder).unwrap());
        let [_, own, distribution] = &folders;
        let found = |accel| on_path(accel, folders.iter().cloned());
        assert_eq!(found(Accel::Kvm), Vec::<PathBuf>::new());
        std::fs::write(distribution.join(FULL), "").unwrap();
        assert_eq!(found(Accel::Kvm), [distribution.join(FULL)]);
        std::fs::write(distribution.join(MICROVM), "").unwrap();
        assert_eq!(found(Accel::Kvm), [distribution.join(MICROVM), distribution.join(FULL)]);
        assert_eq!(found(Accel::Tcg), [distribution.join(FULL)]);
        std::fs::write(own.join(FULL), "").unwrap();
        assert_eq!([found(Accel::Kvm), found(Accel::Tcg)], [[own.join(FULL)], [own.join(FULL)]]);
    }

    #[test]
    fn one_that_cannot_confine_itself_gives_way_to_the_next() {
        let [bare, full] = [MICROVM, FULL].map(|name| Path::new("/usr/bin").join(name));
        let look = |path: &Path| Ok(("7.2.22".to_owned(), (path == full).then_some(Build::Full)));
        let found = QemuProgram::first(Accel::Kvm, &[bare.clone(), full.clone()], look).unwrap();
        assert_eq!((&found.path, found.build), (&full, Build::Full));
        let alone = QemuProgram::first(Accel::Kvm, std::slice::from_ref(&bare), look);
        assert!(
            matches!(alone, Err(VmmError::NoSandbox { program }) if program.ends_with(MICROVM))
        );
    }

    #[test]
    fn a_program_without_seccomp_is_known_by_what_it_says() {
        let debian12 = "qemu-system-x86_64-microvm: -sandbox on: -sandbox support is not enabled in this QEMU binary\n";
        assert!(lacks_sandbox(debian12));
        assert!(!lacks_sandbox("qemu-system-x86_64: -accel help: invalid option\n"));
    }

    #[test]
    fn a_program_that_is_no_qemu_is_said_so() {
        let error = version(Path::new("/bin/true")).unwrap_err();
        assert!(error.to_string().contains("/bin/true"), "{error}");
    }
}
