//! Builds boot artifacts, or finds them in the cache.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::artifacts::{BootArtifacts, Record};
use crate::bootstrap::{self, Bootstrapped};
use crate::cache::{Cache, Unusable};
use crate::entry_file::EntryFile;
use crate::error::{Error, IoContext as _};
use crate::kernel::{self, ImageFormat, KernelError};
use crate::key::BuildKey;
use crate::modules::{self, ModuleIndex};
use crate::progress::{Progress, Step};
use crate::recipe::Recipe;
use crate::root_dir::RootDir;
use crate::seal::Seal;
use crate::{agent, cmdline, disk, images, initramfs, rootfs, sandbox};

const DISK_FILE: &str = "base.img";
const VMLINUX_FILE: &str = "vmlinux";
const BZIMAGE_FILE: &str = "bzImage";
const INITRAMFS_FILE: &str = "initramfs.cpio";
/// What the confined part of a build may write, in its work directory. Everything else there is
/// ours.
const BUILD_DIR: &str = "build";
/// Where it makes its root directory, in a mount namespace of its own.
const STAGE_DIR: &str = "stage";

/// Programs of the host that a build runs, and their packages.
const TOOLS: [(&str, &str); 10] = [
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("pivot_root", "util-linux"),
    ("mount", "mount"),
    ("mmdebstrap", "mmdebstrap"),
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
    ("chroot", "coreutils"),
    ("mke2fs", "e2fsprogs"),
];

/// Builds boot artifacts into a cache directory. Any number of builders may share it, in one
/// process or in many.
#[derive(Debug, Clone)]
pub struct Builder {
    cache: Cache,
    agent: PathBuf,
    seal: Arc<dyn Seal>,
}

impl Builder {
    /// Creates a builder that keeps everything below `cache_dir`, puts the static binary `agent` into the
    /// images, and uses only what it finds under its own `seal`.
    pub fn new(
        cache_dir: impl Into<PathBuf>,
        agent: impl Into<PathBuf>,
        seal: Arc<dyn Seal>,
    ) -> Self {
        Self { cache: Cache::new(cache_dir.into()), agent: agent.into(), seal }
    }

    /// Computes the key of `recipe`: equal keys are equal artifacts.
    ///
    /// # Errors
    /// An unreadable input file, or an agent that cannot run in a guest.
    pub fn key(&self, recipe: &Recipe) -> Result<BuildKey, Error> {
        BuildKey::of(recipe, &agent::read(&self.agent)?)
    }

    /// Finds the artifacts of `recipe` if they are built already, and as they were built.
    ///
    /// # Errors
    /// As [`key`](Self::key).
    pub fn find(&self, recipe: &Recipe) -> Result<Option<BootArtifacts>, Error> {
        Ok(self.cache.find_whole(self.key(recipe)?, &*self.seal).ok())
    }

    /// Builds the artifacts of `recipe`, or returns those of an earlier build with the same key.
    /// Those that are not as they were built are built again.
    ///
    /// Blocks until done; setting `cancel` ends it within a moment. On any error, and on the death
    /// of this process, every child process is gone and the cache has no incomplete entry. The
    /// child processes are bound to the calling thread, which must not end before this function
    /// returns.
    ///
    /// # Errors
    /// [`Error`] says what failed and what to do.
    pub fn build(
        &self,
        recipe: &Recipe,
        progress: &dyn Progress,
        cancel: &AtomicBool,
    ) -> Result<BootArtifacts, Error> {
        let agent = agent::read(&self.agent)?;
        let key = BuildKey::of(recipe, &agent)?;
        if let Ok(found) = self.cache.find_whole(key, &*self.seal) {
            return Ok(found);
        }
        check_host()?;
        let _one_builder = self.cache.lock(&format!("{key}.lock"), cancel)?;
        match self.cache.find_whole(key, &*self.seal) {
            Ok(found) => return Ok(found),
            Err(Unusable::Missing) => {}
            Err(Unusable::Changed(why)) => {
                tracing::warn!(
                    "not using boot artifacts of an earlier build: {why}; building them again"
                );
            }
        }
        let work = self.cache.work_dir(cancel)?;
        let (seal, work_dir) = (&*self.seal, work.path());
        let build = Build { recipe, agent: &agent, key, work: work_dir, seal, progress, cancel };
        let record = build.run(&self.cache)?;
        // Everything that is not an artifact goes before the entry becomes visible.
        remove_all_but(work.path(), &[DISK_FILE, VMLINUX_FILE, BZIMAGE_FILE, INITRAMFS_FILE])?;
        self.cache.publish(key, work, record, seal)
    }

    /// Removes every finished build whose key (64 hex digits) `keep` refuses; returns how many
    /// bytes that freed.
    ///
    /// The caller must keep the builds that golden images refer to: their base disks are used in
    /// place. A build that another builder works on stays.
    ///
    /// # Errors
    /// [`Error`] when a directory cannot be read or removed; what was removed until then is gone
    /// completely.
    pub fn prune(&self, keep: impl Fn(&str) -> bool, cancel: &AtomicBool) -> Result<u64, Error> {
        self.cache.prune(&keep, cancel)
    }
}

fn check_host() -> Result<(), Error> {
    if let Some((tool, package)) = TOOLS.into_iter().find(|(tool, _)| !sandbox::is_installed(tool))
    {
        return Err(Error::ToolMissing { tool, package });
    }
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err(Error::NotRoot) }
}

fn remove_all_but(dir: &Path, keep: &[&str]) -> Result<(), Error> {
    for entry in fs::read_dir(dir).context("read", dir)? {
        let entry = entry.context("read", dir)?;
        let path = entry.path();
        if keep.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        let is_dir = entry.file_type().context("look at", &path)?.is_dir();
        let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.context("remove", &path)?;
    }
    Ok(())
}

/// One build under way.
struct Build<'a> {
    recipe: &'a Recipe,
    agent: &'a [u8],
    key: BuildKey,
    work: &'a Path,
    seal: &'a dyn Seal,
    progress: &'a dyn Progress,
    cancel: &'a AtomicBool,
}

impl Build<'_> {
    fn check_cancel(&self) -> Result<(), Error> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }

    fn run(&self, cache: &Cache) -> Result<Record, Error> {
        let debian = &self.recipe.debian;
        let stage = self.work.join(STAGE_DIR);
        let apt =
            cache.apt(&debian.suite, &format!("{} {}", debian.mirror, debian.security_mirror))?;
        let bootstrapped = {
            let name = apt.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let _apt = cache.lock(&format!("apt-{name}.lock"), self.cancel)?;
            let build = self.work.join(BUILD_DIR);
            for dir in [&build, &stage] {
                fs::create_dir(dir).context("create", dir)?;
            }
            bootstrap::run(self.recipe, &build, &stage, &apt, self.progress, self.cancel)?
        };
        self.check_cancel()?;
        self.progress.started(Step::Configure, None);
        let root = rootfs::check(&bootstrapped.root)?;
        rootfs::populate_dev(&root)?;
        rootfs::configure(self.recipe, self.agent, &root)?;
        let mut warm_commands = images::stage(self.recipe, &root)?;
        let shell = |command: &String| {
            vec!["/bin/sh".to_owned(), "-e".to_owned(), "-c".to_owned(), command.clone()]
        };
        warm_commands.extend(self.recipe.warm_up.iter().map(shell));
        self.progress.finished(Step::Configure);

        self.check_cancel()?;
        self.progress.started(Step::Kernel, None);
        let (kernel_file, kernel_format) = self.write_kernel(&bootstrapped)?;
        self.write_initramfs(&bootstrapped, &root)?;
        self.progress.finished(Step::Kernel);

        self.check_cancel()?;
        let image = self.work.join(DISK_FILE);
        disk::write(
            &bootstrapped.root,
            &stage,
            &image,
            self.recipe.vm.disk_mib,
            self.key,
            self.progress,
            self.cancel,
        )?;
        let file = |name: &str| EntryFile::seal(self.work, name, self.seal);
        Ok(Record {
            key: self.key.to_string(),
            base_disk: file(DISK_FILE)?,
            kernel: file(kernel_file)?,
            kernel_format,
            kernel_release: bootstrapped.release,
            initramfs: file(INITRAMFS_FILE)?,
            cmdline: cmdline::BASE.to_owned(),
            vcpus: self.recipe.vm.vcpus,
            memory_mib: self.recipe.vm.memory_mib,
            docker: self.recipe.docker.enabled,
            packages: bootstrapped.packages,
            warm_commands,
            note: None,
        })
    }

    /// Writes the kernel as an ELF that a VMM can enter directly; as it is packaged when that
    /// cannot be had.
    fn write_kernel(&self, from: &Bootstrapped) -> Result<(&'static str, ImageFormat), Error> {
        let none = || KernelError::NoImage { package: self.recipe.debian.kernel.clone() };
        let packaged = format!("/kernel/boot/vmlinuz-{}", from.release);
        let bzimage = from.made.read_all(&packaged)?.ok_or_else(none)?;
        let (name, format, bytes) = match kernel::extract_vmlinux(&bzimage) {
            Ok(elf) if kernel::has_pvh_entry(&elf) => (VMLINUX_FILE, ImageFormat::Vmlinux, elf),
            other => {
                let reason = other
                    .err()
                    .map_or_else(|| "it has no PVH entry point".to_owned(), |e| e.to_string());
                tracing::warn!(%reason, "booting the packaged kernel image, which takes longer");
                (BZIMAGE_FILE, ImageFormat::BzImage, bzimage)
            }
        };
        let path = self.work.join(name);
        fs::write(&path, &bytes).context("write", &path)?;
        Ok((name, format))
    }

    fn write_initramfs(&self, from: &Bootstrapped, root: &RootDir) -> Result<(), Error> {
        let dir = format!("/usr/lib/modules/{}", from.release);
        let text = |name: &str| root.read_text(&format!("{dir}/{name}"));
        let index = ModuleIndex::parse(
            &text("modules.dep")?,
            &text("modules.builtin")?,
            &text("modules.softdep")?,
        );
        let optional: &[&str] =
            if self.recipe.docker.enabled { &modules::DOCKER_MODULES } else { &[] };
        let mut files = Vec::new();
        for path in index.load_order(&from.release, &modules::BOOT_MODULES, optional)? {
            let missing = || modules::ModulesError::Missing {
                release: from.release.clone(),
                module: path.clone(),
            };
            let bytes = root.read_all(&format!("{dir}/{path}"))?.ok_or_else(missing)?;
            let base = path.rsplit('/').next().unwrap_or(&path);
            let name = base
                .split_once(".ko")
                .map_or_else(|| base.to_owned(), |(stem, _)| format!("{stem}.ko"));
            files.push(initramfs::Module { name, bytes: modules::decompress(&path, bytes)? });
        }
        let path = self.work.join(INITRAMFS_FILE);
        let file = File::create_new(&path).context("create", &path)?;
        initramfs::write(BufWriter::new(file), self.agent, &files).context("write", &path)
    }
}
