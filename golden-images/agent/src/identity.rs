//! The identity of a session: what a restored guest must get before it is like no other.
//!
//! The files are bind-mounted over their usual places at boot (see [`crate::init`]) and held open,
//! so that applying an identity is a few system calls on memory.

use crate::config::Layout;
use crate::time_scale::scaled;
use mayfly_protocol::{ApplyError, Hello};
use memmap2::{MmapMut, MmapOptions};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Each hook is killed after this long, so that no session waits for ever for its identity.
const HOOK_LIMIT: Duration = Duration::from_secs(5);

/// `struct rand_pool_info` of <linux/random.h> with room for 64 bytes.
#[repr(C)]
struct RandPoolInfo {
    entropy_count: libc::c_int,
    buf_size: libc::c_int,
    buf: [u8; 64],
}

nix::ioctl_write_ptr_bad!(rnd_add_entropy, 0x4008_5203, RandPoolInfo); // RNDADDENTROPY, random(4)
nix::ioctl_none_bad!(rnd_reseed_crng, 0x5207); // RNDRESEEDCRNG, <linux/random.h>

enum Target {
    /// The kernel of this guest, through an open /dev/urandom.
    Kernel(File),
    /// Files, for tests on a host whose own identity must not change.
    Files { entropy: File, clock: File },
}

/// The open files and the hooks of the identity.
pub struct Identity {
    target: Target,
    machine_id: MappedFile,
    boot_id: MappedFile,
    hostname: MappedFile,
    hosts: MappedFile,
    hooks: Vec<PathBuf>,
}

impl Identity {
    /// Makes the identity files of this guest.
    pub fn of_guest(layout: &Layout) -> io::Result<Self> {
        let urandom = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open("/dev/urandom")?;
        Self::with(layout, Target::Kernel(urandom))
    }

    /// Makes identity files that nothing reads, in `layout.identity`; the host's own identity stays
    /// as it is.
    pub fn in_directory(layout: &Layout) -> io::Result<Self> {
        std::fs::create_dir_all(&layout.identity)?;
        let entropy = create(&layout.identity.join("entropy"))?;
        let clock = create(&layout.identity.join("clock"))?;
        Self::with(layout, Target::Files { entropy, clock })
    }

    fn with(layout: &Layout, target: Target) -> io::Result<Self> {
        std::fs::create_dir_all(&layout.identity)?;
        let file = |name: &str| MappedFile::create(&layout.identity.join(name));
        Ok(Self {
            target,
            machine_id: file("machine-id")?,
            boot_id: file("boot_id")?,
            hostname: file("hostname")?,
            hosts: file("hosts")?,
            hooks: find_hooks(&layout.hooks),
        })
    }

    /// Returns whether this is a guest's own identity, not a test's.
    pub fn is_guest(&self) -> bool {
        matches!(self.target, Target::Kernel(_))
    }

    /// Looks for hooks again; done when the agent parks, so that a session without hooks pays
    /// nothing for them.
    pub fn refresh_hooks(&mut self, layout: &Layout) {
        self.hooks = find_hooks(&layout.hooks);
    }

    /// Applies all of `hello`; what failed is returned, and nothing else is skipped for it.
    pub fn apply(&mut self, hello: &Hello) -> Vec<ApplyError> {
        let mut errors = Vec::new();
        let mut step = |name: &str, result: io::Result<()>| {
            if let Err(error) = result {
                errors.push(ApplyError {
                    step: name.into(),
                    errno: error.raw_os_error().unwrap_or(0),
                    message: error.to_string(),
                });
            }
        };
        step("entropy", self.add_entropy(hello));
        step("clock", self.set_clock(hello.wall_clock_ns));
        step("hostname", self.set_hostname(&hello.hostname));
        step("machine-id", self.machine_id.write(&machine_id_text(&hello.machine_id)));
        step("boot-id", self.boot_id.write(&boot_id_text(&hello.boot_id)));
        step("hosts", self.hosts.write(hosts_text(&hello.hostname).as_bytes()));
        for hook in &self.hooks {
            let name = hook.file_name().unwrap_or_default().to_string_lossy();
            step(&format!("hook {name}"), run_hook(hook, hello));
        }
        errors
    }

    fn add_entropy(&self, hello: &Hello) -> io::Result<()> {
        match &self.target {
            Target::Files { entropy, .. } => entropy.write_all_at(hello.entropy.as_bytes(), 0),
            Target::Kernel(urandom) => {
                let mut pool = RandPoolInfo { entropy_count: 64 * 8, buf_size: 64, buf: [0; 64] };
                pool.buf.copy_from_slice(hello.entropy.as_bytes());
                // SAFETY: `pool` is a rand_pool_info whose buf_size is the size of its buf; the
                // kernel only reads it.
                unsafe { rnd_add_entropy(urandom.as_raw_fd(), &raw const pool) }?;
                // SAFETY: this ioctl takes no argument.
                unsafe { rnd_reseed_crng(urandom.as_raw_fd()) }?;
                Ok(())
            }
        }
    }

    fn set_clock(&self, wall_clock_ns: u64) -> io::Result<()> {
        match &self.target {
            Target::Files { clock, .. } => overwrite(clock, &format!("{wall_clock_ns}\n")),
            Target::Kernel(_) => Ok(clock_settime(
                ClockId::CLOCK_REALTIME,
                TimeSpec::from_duration(Duration::from_nanos(wall_clock_ns)),
            )?),
        }
    }

    fn set_hostname(&mut self, hostname: &str) -> io::Result<()> {
        if self.is_guest() {
            nix::unistd::sethostname(hostname)?;
        }
        self.hostname.write(&[hostname.as_bytes(), b"\n"].concat())
    }
}

/// A small file that is written by storing into its page: in the common case, the same length as
/// before, that takes no system call, and so none of the code of one has to be translated by an
/// emulator.
struct MappedFile {
    file: File,
    page: MmapMut,
    len: usize,
}

impl MappedFile {
    /// Bytes a file may have.
    const CAPACITY: usize = 4096;

    fn create(path: &Path) -> io::Result<Self> {
        let file = create(path)?;
        file.set_len(Self::CAPACITY as u64)?;
        // SAFETY: the file is ours alone and never gets shorter than a byte that is stored to (see
        // `write`).
        let mut page = unsafe { MmapOptions::new().len(Self::CAPACITY).map_mut(&file) }?;
        // Brings the page in while nobody waits for it.
        page.fill(0);
        file.set_len(0)?;
        Ok(Self { file, page, len: 0 })
    }

    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        let place = self.page.get_mut(..text.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        if text.len() != self.len {
            // Before the store: beyond the end of the file there may be no page.
            self.file.set_len(text.len() as u64)?;
            self.len = text.len();
        }
        place.copy_from_slice(text);
        Ok(())
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o644).open(path)
}

fn overwrite(file: &File, text: &str) -> io::Result<()> {
    file.write_all_at(text.as_bytes(), 0)?;
    file.set_len(text.len() as u64)
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// machine-id(5): 32 lower-case hexadecimal digits and a newline.
fn machine_id_text(id: &[u8; 16]) -> [u8; 33] {
    let mut text = [b'\n'; 33];
    for (pair, byte) in text.chunks_exact_mut(2).zip(id) {
        pair.copy_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    }
    text
}

/// random(4), `boot_id`: a UUID in its 8-4-4-4-12 form and a newline.
fn boot_id_text(id: &[u8; 16]) -> [u8; 37] {
    let digits = machine_id_text(id);
    let mut text = [b'-'; 37];
    for (to, from) in [(0, 0..8), (9, 8..12), (14, 12..16), (19, 16..20), (24, 20..33)] {
        text[to..to + from.len()].copy_from_slice(&digits[from]);
    }
    text
}

/// Renders hosts(5) with this host's own name at 127.0.1.1, as Debian does it.
pub fn hosts_text(hostname: &str) -> String {
    ["127.0.0.1\tlocalhost\n127.0.1.1\t", hostname, "\n::1\tlocalhost ip6-localhost ip6-loopback\n"]
        .concat()
}

fn find_hooks(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut hooks: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.metadata()
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
        .collect();
    hooks.sort();
    hooks
}

fn run_hook(hook: &Path, hello: &Hello) -> io::Result<()> {
    let mut command = Command::new(hook);
    // SAFETY: `lower` makes one system call, which is allowed between fork and exec.
    unsafe { command.pre_exec(crate::exec::limits::lower) };
    let mut child = command
        .env_clear()
        .env("PATH", crate::exec::DEFAULT_PATH)
        .env("MAYFLY_SESSION", &hello.session)
        .env("MAYFLY_HOSTNAME", &hello.hostname)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let limit = scaled(HOOK_LIMIT);
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return if status.success() {
                Ok(())
            } else {
                Err(io::Error::other(status.to_string()))
            };
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::other(format!("still running after {limit:?}, killed")));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_protocol::{Entropy, PROTOCOL_VERSION};

    #[test]
    fn an_identity_replaces_a_longer_one_and_hooks_see_it() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::under(directory.path());
        std::fs::create_dir(&layout.hooks).unwrap();
        let seen = directory.path().join("seen");
        let hook = |name: &str, body: String| {
            let path = layout.hooks.join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        hook("10-see", format!("echo $MAYFLY_SESSION >> {}", seen.display()));
        hook("20-fail", "exit 3".into());
        std::fs::write(layout.hooks.join("README"), "not executable").unwrap();
        let mut identity = Identity::in_directory(&layout).unwrap();
        let mut hello = Hello {
            protocol: PROTOCOL_VERSION,
            session: "first".into(),
            hostname: "a-rather-long-name".into(),
            machine_id: [0xab; 16],
            boot_id: [0x12; 16],
            wall_clock_ns: 5,
            entropy: Entropy::new([7; 64]),
        };
        identity.apply(&hello);
        hello.hostname = "short".into();
        let errors = identity.apply(&hello);
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].step, "hook 20-fail");
        let read = |name: &str| std::fs::read_to_string(layout.identity.join(name)).unwrap();
        assert_eq!(read("hostname"), "short\n");
        assert_eq!(read("machine-id"), "ab".repeat(16) + "\n");
        assert_eq!(read("boot_id"), "12121212-1212-1212-1212-121212121212\n");
        assert_eq!(read("clock"), "5\n");
        assert!(read("hosts").contains("127.0.1.1\tshort\n"));
        assert_eq!(std::fs::read(layout.identity.join("entropy")).unwrap(), [7; 64]);
        assert_eq!(std::fs::read_to_string(seen).unwrap(), "first\nfirst\n");
    }
}
