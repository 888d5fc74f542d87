//! The virtual machine of an emulated host: stock QEMU under TCG, whose processor has SVM with
//! nested paging.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use command_fds::{CommandFdExt as _, FdMapping};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::error::{Error, IoContext as _};
use crate::image::BootFiles;
use crate::json_lines::{JsonLines, NoAnswer};

const QEMU: &str = "qemu-system-x86_64";
/// A processor with SVM. Nested paging is what `kvm_amd` needs to be of use. EPYC-v4 is in QEMU
/// since 8.1. Without AVX: TCG reads 32 bytes for `vinsertf128` of a register and 16 bytes of
/// memory (seen with QEMU 10.0.2), so that programs which use it at the end of a mapping die of
/// SIGSEGV.
const CPU: &str = "EPYC-v4,+svm,+npt,-avx,-avx2,-fma,-f16c";
/// A panic ends the machine, and with `-no-reboot` QEMU. Mitigations cost time and show nothing
/// under emulation.
const KERNEL_COMMAND_LINE: &str = "root=/dev/vda rw console=ttyS0 panic=-1 mitigations=off";
/// QEMU's name of the root disk.
pub(crate) const ROOT: &str = "root";
/// Descriptors of the machine's own ends.
const QMP_FD: i32 = 3;
const AGENT_FD: i32 = 4;
/// Bound on an answer of QEMU itself.
const QMP_LIMIT: Duration = Duration::from_secs(60);
/// How long QEMU may take to end after it was told to.
const END_LIMIT: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(50);

/// Treatment of the host's page cache by a disk (qemu(1), `cache=`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskCache {
    /// Writes that the guest does not flush may be lost only when the outer machine dies.
    Unsafe,
    /// Past the page cache: what the guest was told is on disk is there when QEMU is killed, and
    /// nothing else.
    None,
}

/// Hardware to boot.
#[derive(Debug, Clone)]
pub struct Hardware {
    /// Kernel and initramfs.
    pub boot: BootFiles,
    /// The root disk: a qcow2 file that is written to.
    pub disk: PathBuf,
    /// Caching of the disk.
    pub cache: DiskCache,
    /// A second disk, raw and only read.
    pub payload: Option<PathBuf>,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Number of processors.
    pub cpus: u32,
    /// Wall clock at the start as seconds since 1970; now, when there is none.
    pub clock: Option<u64>,
    /// Words added to the kernel's command line.
    pub kernel_words: String,
    /// Arguments added to QEMU's command line.
    pub extra: Vec<String>,
}

/// A running machine. Killed when dropped, and by the kernel when the thread that started it ends.
#[derive(Debug)]
pub struct Machine<'a> {
    child: Child,
    qmp: JsonLines<'a>,
    stderr: PathBuf,
}

impl<'a> Machine<'a> {
    /// Starts one. `console` and `journal` are files that get its serial line and what it writes to
    /// the virtio port `mayfly.host.journal`. Returns the connection to its guest agent, too.
    ///
    /// # Errors
    /// QEMU is missing or does not start.
    pub fn start(
        hardware: &Hardware,
        console: &Path,
        journal: &Path,
        cancel: &'a AtomicBool,
    ) -> Result<(Self, JsonLines<'a>), Error> {
        let pair = || UnixStream::pair().context("make a socket for", QEMU.as_ref());
        let ((qmp, qmp_theirs), (agent, agent_theirs)) = (pair()?, pair()?);
        let stderr = console.with_extension("qemu");
        let log = File::create(&stderr).context("create", &stderr)?;
        let mut command = Command::new(QEMU);
        command.args(arguments(hardware, console, journal)).stdin(Stdio::null());
        command.stdout(log.try_clone().context("open", &stderr)?).stderr(log).process_group(0);
        let mapping = |fd: OwnedFd, child_fd: i32| FdMapping { parent_fd: fd, child_fd };
        command
            .fd_mappings(vec![
                mapping(qmp_theirs.into(), QMP_FD),
                mapping(agent_theirs.into(), AGENT_FD),
            ])
            .map_err(|error| Error::Start { detail: error.to_string() })?;
        let parent = nix::unistd::getpid();
        // SAFETY: between fork and exec only prctl(2) and getppid(2) are called, and an io::Error
        // is made of a number, which does not allocate.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                let orphaned = nix::unistd::getppid() != parent;
                if orphaned {
                    Err(std::io::Error::from_raw_os_error(nix::libc::ESRCH))
                } else {
                    Ok(())
                }
            });
        }
        let child = command.spawn().context("start", QEMU.as_ref())?;
        // It holds the machine's ends of the sockets; they would never be closed otherwise.
        drop(command);
        let mut machine = Self { child, qmp: JsonLines::new(qmp, "QEMU", cancel)?, stderr };
        let begun = machine
            .qmp
            .receive(Instant::now() + QMP_LIMIT)
            .and_then(|_greeting| machine.qmp.ask("qmp_capabilities", &json!({}), QMP_LIMIT));
        match begun {
            Ok(_) => Ok((machine, JsonLines::new(agent, "the guest agent", cancel)?)),
            Err(NoAnswer::Error(error)) => Err(error),
            Err(_) => {
                machine.kill();
                Err(Error::Start { detail: machine.said() })
            }
        }
    }

    /// Asks QEMU itself.
    ///
    /// # Errors
    /// It refuses, or has ended.
    pub fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value, Error> {
        match self.qmp.ask(command, arguments, QMP_LIMIT) {
            Ok(answer) => Ok(answer),
            Err(NoAnswer::Error(error)) => Err(error),
            Err(NoAnswer::TimedOut) => {
                Err(Error::NoAnswer { during: command.to_owned(), limit: QMP_LIMIT })
            }
            Err(NoAnswer::Closed) => Err(self.ended(command)),
        }
    }

    /// Returns whether QEMU has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Returns the error that says how QEMU ended. Waits for its end, and kills it when that does
    /// not come.
    pub fn ended(&mut self, during: &str) -> Error {
        self.wait(END_LIMIT);
        let events: Vec<String> = self.qmp.events().iter().map(event).collect();
        self.kill();
        let status = self.child.wait().map(|status| match status.signal() {
            Some(signal) => format!("QEMU was ended by signal {signal}"),
            None => format!("QEMU exited with code {}", status.code().unwrap_or_default()),
        });
        let status = status.unwrap_or_else(|error| error.to_string());
        let events =
            if events.is_empty() { "it announced nothing".to_owned() } else { events.join(", ") };
        let reason = format!("{status}; {events}; {}", self.said());
        Error::Ended { during: during.to_owned(), reason }
    }

    /// Waits for the end of QEMU; `false` when it does not come in time.
    pub fn wait(&mut self, limit: Duration) -> bool {
        let begun = Instant::now();
        while !self.has_ended() {
            if begun.elapsed() > limit {
                return false;
            }
            std::thread::sleep(TICK);
        }
        true
    }

    /// Takes its power away.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Returns the process id of QEMU.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The last words of QEMU, on one line.
    fn said(&self) -> String {
        let text = fs::read_to_string(&self.stderr).unwrap_or_default();
        // TCG lacks some of the model's features, and says so at each start.
        let lines: Vec<_> =
            text.lines().filter(|line| !line.contains("TCG doesn't support")).collect();
        let from = lines.len().saturating_sub(3);
        if lines.is_empty() { "it said nothing".to_owned() } else { lines[from..].join("; ") }
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        self.kill();
    }
}

/// An event of QEMU in short: `SHUTDOWN (guest-reset)`.
fn event(event: &Value) -> String {
    let name = event["event"].as_str().unwrap_or("?");
    let about = ["reason", "action"].iter().find_map(|key| event["data"][key].as_str());
    about.map_or_else(|| name.to_owned(), |about| format!("{name} ({about})"))
}

fn arguments(hardware: &Hardware, console: &Path, journal: &Path) -> Vec<String> {
    // QEMU's option lists end a value with a comma, and take two for one.
    let path = |path: &Path| path.display().to_string().replace(',', ",,");
    let cache = match hardware.cache {
        DiskCache::Unsafe => "unsafe",
        DiskCache::None => "none",
    };
    let clock = hardware.clock.map_or_else(
        || "utc".to_owned(),
        |seconds| {
            let time = humantime::format_rfc3339_seconds(
                SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
            );
            time.to_string().trim_end_matches('Z').to_owned()
        },
    );
    let mut arguments: Vec<String> =
        ["-nodefaults", "-no-user-config", "-no-reboot"].into_iter().map(str::to_owned).collect();
    let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    add("-display", "none".into());
    add("-machine", "q35,sata=off,smbus=off,vmport=off".into());
    add("-accel", "tcg,thread=multi,tb-size=1024".into());
    add("-cpu", CPU.into());
    add("-smp", hardware.cpus.to_string());
    add("-m", hardware.memory_mib.to_string());
    add("-rtc", format!("base={clock}"));
    add("-chardev", format!("socket,id=qmp,fd={QMP_FD}"));
    add("-mon", "chardev=qmp,mode=control".into());
    add("-serial", format!("file:{}", console.display()));
    add("-device", "virtio-rng-pci".into());
    add("-device", "virtio-serial-pci".into());
    add("-chardev", format!("socket,id=agent,fd={AGENT_FD}"));
    add("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0".into());
    add("-chardev", format!("file,id=journal,path={}", path(journal)));
    add("-device", "virtserialport,chardev=journal,name=mayfly.host.journal".into());
    add(
        "-drive",
        format!("file={},format=qcow2,if=none,id={ROOT},cache={cache}", path(&hardware.disk)),
    );
    add("-device", format!("virtio-blk-pci,drive={ROOT}"));
    if let Some(payload) = &hardware.payload {
        add("-drive", format!("file={},format=raw,if=none,id=payload,readonly=on", path(payload)));
        add("-device", "virtio-blk-pci,drive=payload".into());
    }
    // A network card as servers have one. It leads nowhere: no case depends on what is outside.
    add("-netdev", "user,id=net,restrict=on".into());
    add("-device", "virtio-net-pci,netdev=net".into());
    add("-kernel", hardware.boot.kernel.display().to_string());
    add("-initrd", hardware.boot.initrd.display().to_string());
    add("-append", format!("{KERNEL_COMMAND_LINE} {}", hardware.kernel_words));
    arguments.extend(hardware.extra.iter().cloned());
    arguments
}
