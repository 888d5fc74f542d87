//! The second disk of a host: the programs under test, and the boot artifacts of the default golden
//! image.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use mayfly_golden_images::{
    ArtifactFile, BootArtifacts, Builder, Progress, Recipe, Sandbox, Seal, Step, artifact_dir,
};
use mayfly_snapshotter::{FileRef, SealKey};

use crate::error::{Error, IoContext as _};
use crate::progress;

/// Space beside the files, and for the file system's own.
const SPARE_BYTES: u64 = 256 << 20;
/// The recipe whose artifacts are brought along.
const RECIPE: &str = "default";

/// Programs that are tested.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Cargo's folder of the release build: `mayfly`, `libmayfly_preload.so` and `mayfly-bench`.
    pub release: PathBuf,
    /// The static guest agent.
    pub agent: PathBuf,
    /// Test programs, each with the name that it gets.
    pub tests: Vec<(String, PathBuf)>,
    /// Folders and files that are copied as they are, each with the name that it gets.
    pub files: Vec<(String, PathBuf)>,
    /// Cache of boot artifacts, as [`Builder::new`] takes it.
    pub images: PathBuf,
}

impl Programs {
    /// The files of the product itself.
    pub(crate) fn installed(&self) -> [PathBuf; 3] {
        [self.release.join("mayfly"), self.release.join("libmayfly_preload.so"), self.agent.clone()]
    }
}

/// Disk that was written, and what a golden of the host is bound to.
#[derive(Debug)]
pub struct Payload {
    /// The disk.
    pub disk: PathBuf,
    /// Digest (blake3) of the base disk and the key of the seals. A golden that was made with other
    /// ones cannot be used with this disk.
    pub binding: blake3::Hash,
}

/// Writes the disk to `work/payload.img`: `bin/`, `bin/tests/`, `rootfs/<key>/` with the
/// `seal.key` that it is sealed with, and the files.
///
/// # Errors
/// A program was not built, the artifacts cannot be, or the disk cannot be written.
pub fn write(programs: &Programs, work: &Path, cancel: &AtomicBool) -> Result<Payload, Error> {
    let artifacts = boot_artifacts(programs, cancel)?;
    progress::say("writing the disk with the programs under test");
    let staging = work.join("payload");
    let tests = staging.join("bin/tests");
    fs::create_dir_all(&tests).context("create", &tests)?;
    for name in ["mayfly", "libmayfly_preload.so", "mayfly-bench"] {
        strip(&programs.release.join(name), &staging.join("bin").join(name))?;
    }
    // The key of the boot artifacts is that of this very file.
    copy(&programs.agent, &staging.join("bin/mayfly-agent"))?;
    for (name, program) in &programs.tests {
        strip(program, &tests.join(name))?;
    }
    for (name, file) in &programs.files {
        copy(file, &staging.join(name))?;
    }
    let key = artifacts.key.to_string();
    let rootfs = staging.join("rootfs");
    fs::create_dir_all(&rootfs).context("create", &rootfs)?;
    copy(&artifact_dir(&programs.images, &key), &rootfs.join(&key))?;

    let seal = seal_key(programs);
    let mut binding = blake3::Hasher::new();
    binding.update(artifacts.base_disk.blake3.as_bytes());
    binding.update(&fs::read(&seal).context("read", &seal)?);
    copy(&seal, &staging.join("seal.key"))?;

    let disk = work.join("payload.img");
    let size = allocated(&staging)?.next_multiple_of(1 << 20) + SPARE_BYTES;
    File::create_new(&disk).and_then(|file| file.set_len(size)).context("create", &disk)?;
    let made = Sandbox::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-L", "payload"])
        .args(["-E", "root_owner=0:0,nodiscard", "-d"])
        .args([&staging, &disk])
        .run(cancel, |_| ())?;
    if !made.status.success() {
        return Err(Error::Disk { path: disk, detail: made.detail() });
    }
    fs::remove_dir_all(&staging).context("remove", &staging)?;
    Ok(Payload { disk, binding: binding.finalize() })
}

/// The artifacts that a build of the default golden begins with, so that the host needs neither a
/// mirror nor mmdebstrap.
fn boot_artifacts(programs: &Programs, cancel: &AtomicBool) -> Result<BootArtifacts, Error> {
    let recipe = Recipe::load(RECIPE).map_err(mayfly_golden_images::Error::from)?;
    let key = seal_key(programs);
    let key = SealKey::load_or_create(&key).map_err(io::Error::other).context("use", &key)?;
    let builder = Builder::new(&programs.images, &programs.agent, Arc::new(PayloadSeal(key)));
    Ok(builder.build(&recipe, &Lines, cancel)?)
}

/// The key of emulated hosts. They take the artifacts for their own.
fn seal_key(programs: &Programs) -> PathBuf {
    programs.images.join("seal.key")
}

#[derive(Debug)]
struct PayloadSeal(SealKey);

impl Seal for PayloadSeal {
    fn note(&self, text: &str) -> blake3::Hash {
        blake3::Hash::from_bytes(*self.0.note(text).as_bytes())
    }

    fn hash(&self, path: &Path) -> io::Result<blake3::Hash> {
        let reference = FileRef::of(path).map_err(io::Error::other)?;
        Ok(blake3::Hash::from_bytes(*reference.blake3.as_bytes()))
    }

    fn check(&self, file: &ArtifactFile) -> Result<(), String> {
        match self.hash(&file.path) {
            Ok(found) if found == file.blake3 => Ok(()),
            Ok(_) => Err(format!("{} was changed", file.path.display())),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A line for each step of a build.
struct Lines;

impl Progress for Lines {
    fn started(&self, step: Step, _: Option<u64>) {
        progress::say(&format!("boot artifacts of the default golden: {}", step.name()));
    }

    fn advanced(&self, _: Step, _: u64, _: Option<u64>, _: &str) {}

    fn finished(&self, _: Step) {}
}

/// A copy without debug information, which is most of a program.
fn strip(from: &Path, to: &Path) -> Result<(), Error> {
    if !from.is_file() {
        return Err(Error::NotBuilt { path: from.to_owned() });
    }
    tool(Command::new("strip").args(["--strip-debug", "-o"]).args([to, from]), to)
}

/// A copy of a file or folder in which holes stay holes.
fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    if !from.exists() {
        return Err(Error::NotBuilt { path: from.to_owned() });
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).context("create", parent)?;
    }
    tool(
        Command::new("cp")
            .args(["-R", "-L", "--preserve=mode", "--sparse=always", "--reflink=auto"])
            .args([from, to]),
        to,
    )
}

fn tool(command: &mut Command, made: &Path) -> Result<(), Error> {
    let program = command.get_program().to_owned();
    let output = command.output().context("start", program.as_ref())?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Disk {
        path: made.to_owned(),
        detail: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Bytes that the files below `dir` take on disk.
fn allocated(dir: &Path) -> Result<u64, Error> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir).context("read", dir)? {
        let entry = entry.context("read", dir)?;
        let meta = entry.metadata().context("look at", &entry.path())?;
        bytes += if meta.is_dir() { allocated(&entry.path())? } else { meta.blocks() * 512 };
    }
    Ok(bytes)
}
