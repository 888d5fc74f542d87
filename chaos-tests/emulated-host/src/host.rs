//! A running emulated host: its machine, the way to run commands in it, and the points it can go
//! back to.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::error::{Error, IoContext as _};
use crate::guest_agent::{Exit, Followed, GuestAgent};
use crate::image::BootFiles;
use crate::json_lines::NoAnswer;
use crate::machine::{DiskCache, Hardware, Machine, ROOT};
use crate::output::{Output, Transcript};
use crate::progress;
use crate::stuck::{self, Watch};

/// Bounds, before they are scaled.
const BOOT_LIMIT: Duration = Duration::from_secs(300);
const AGENT_LIMIT: Duration = Duration::from_secs(60);
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(120);
/// How often a running command is looked at.
const TICK: Duration = Duration::from_millis(200);
/// How often its processors are looked at meanwhile.
const LOOK: Duration = Duration::from_secs(5);
/// Where commands and their output are in the host.
const COMMANDS: &str = "/run/emulated-host";

/// Settings that stay the same from boot to boot.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Kernel and initramfs.
    pub boot: BootFiles,
    /// The disk image that all begins with. It is only read.
    pub image: PathBuf,
    /// The disk with the programs under test.
    pub payload: Option<PathBuf>,
    /// Folder for disks and logs of this run.
    pub work: PathBuf,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Number of processors.
    pub cpus: u32,
    /// Caching of the root disk.
    pub cache: DiskCache,
    /// All bounds are multiplied by this.
    pub scale: f64,
    /// Arguments added to QEMU's command line.
    pub extra: Vec<String>,
}

/// An emulated host, running or not.
#[derive(Debug)]
pub struct Host<'a> {
    settings: Settings,
    cancel: &'a AtomicBool,
    running: Option<Running<'a>>,
    /// The disk that the next boot begins with: the image, or a checkpoint.
    base: PathBuf,
    /// The disk that is written to.
    disk: Option<PathBuf>,
    boots: u32,
    disks: u32,
    commands: u32,
}

#[derive(Debug)]
struct Running<'a> {
    machine: Machine<'a>,
    agent: GuestAgent<'a>,
}

impl<'a> Host<'a> {
    /// Creates a host that is off.
    pub fn new(settings: Settings, cancel: &'a AtomicBool) -> Self {
        let base = settings.image.clone();
        Self { settings, cancel, running: None, base, disk: None, boots: 0, disks: 0, commands: 0 }
    }

    /// Scales a bound for this host.
    pub fn scaled(&self, limit: Duration) -> Duration {
        limit.mul_f64(self.settings.scale)
    }

    /// Returns the factor that bounds are multiplied by.
    pub fn scale(&self) -> f64 {
        self.settings.scale
    }

    /// Sets how its disk is cached from the next boot on.
    pub fn set_cache(&mut self, cache: DiskCache) {
        self.settings.cache = cache;
    }

    /// Returns the disk that a boot begins with: the image, or the last checkpoint.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Makes another disk the one that a boot begins with: a copy of an earlier
    /// [`base`](Self::base) of this image.
    pub fn set_base(&mut self, disk: PathBuf) {
        self.base = disk;
    }

    /// Returns whether the host runs.
    pub fn is_running(&mut self) -> bool {
        self.running.as_mut().is_some_and(|running| !running.machine.has_ended())
    }

    /// Returns how often the host was booted.
    pub fn boots(&self) -> u32 {
        self.boots
    }

    /// Returns the process id of its QEMU.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.machine.pid())
    }

    /// Returns the console of the current or last boot.
    pub fn console(&self) -> PathBuf {
        self.settings.work.join(format!("console-{}.log", self.boots))
    }

    /// Returns the journal of the current or last boot.
    pub fn journal(&self) -> PathBuf {
        self.journal_of(self.boots)
    }

    /// Returns the journal of a boot, counted from 1.
    pub fn journal_of(&self, boot: u32) -> PathBuf {
        self.settings.work.join(format!("journal-{boot}.log"))
    }

    /// Boots it from its image or last checkpoint, with what was written since thrown away; `clock`
    /// is its wall clock in seconds since 1970, instead of ours.
    ///
    /// # Errors
    /// It does not come up.
    pub fn boot(&mut self, clock: Option<u64>) -> Result<(), Error> {
        self.boot_with(clock, "")
    }

    /// Boots as [`boot`](Self::boot) does, with `words` added to the kernel's command line.
    ///
    /// # Errors
    /// It does not come up.
    pub fn boot_with(&mut self, clock: Option<u64>, words: &str) -> Result<(), Error> {
        self.power_off();
        if let Some(disk) = self.disk.take() {
            fs::remove_file(&disk).context("remove", &disk)?;
        }
        let disk = self.new_disk()?;
        self.disk = Some(disk);
        self.start(clock, words)
    }

    /// Boots it with its disk as it is, as after a loss of power.
    ///
    /// # Errors
    /// It does not come up.
    pub fn boot_again(&mut self, clock: Option<u64>) -> Result<(), Error> {
        self.power_off();
        if self.disk.is_none() {
            return self.boot(clock);
        }
        self.start(clock, "")
    }

    /// Takes its power away.
    pub fn power_off(&mut self) {
        self.running = None;
    }

    /// Shuts it down in order.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn shut_down(&mut self) -> Result<(), Error> {
        let limit = self.scaled(SHUTDOWN_LIMIT);
        let Some(mut running) = self.running.take() else { return Ok(()) };
        let told = running.agent.tell("guest-shutdown", &json!({ "mode": "powerdown" }));
        told.map_err(|reason| no_answer(reason, &mut running.machine, "guest-shutdown", limit))?;
        let ended = running.machine.wait(limit);
        if ended {
            Ok(())
        } else {
            Err(Error::TimedOut { during: "its shutdown".to_owned(), limit })
        }
    }

    /// Makes what is on the disk now the point that [`boot`](Self::boot) goes back to. File systems
    /// are frozen meanwhile, so that they are whole.
    ///
    /// # Errors
    /// It does not run, or refuses.
    pub fn checkpoint(&mut self) -> Result<(), Error> {
        self.agent("guest-fsfreeze-freeze", &json!({}))?;
        let name = self.disk_name();
        let arguments = json!({
            "device": ROOT, "snapshot-file": name.display().to_string(), "format": "qcow2", "mode": "absolute-paths"
        });
        let made = match &mut self.running {
            Some(running) => running.machine.ask("blockdev-snapshot-sync", &arguments).map(|_| ()),
            None => Ok(()),
        };
        self.agent("guest-fsfreeze-thaw", &json!({}))?;
        made?;
        if let Some(written) = self.disk.replace(name) {
            self.base = written;
        }
        Ok(())
    }

    /// Runs a script with bash, as root, as a login shell in a scope of its own below `user.slice`,
    /// where a person's shell is. What it starts may outlive it, as long as the case does. `during`
    /// is what errors call it.
    ///
    /// # Errors
    /// The host has ended, the emulator has brought one of its processors to a standstill, or the
    /// script takes longer than `limit` (scaled); then it was killed.
    pub fn run(
        &mut self,
        script: &str,
        during: &str,
        limit: Duration,
        transcript: &mut Transcript,
    ) -> Result<Output, Error> {
        let mut watch = Watch::default();
        let outcome = self.follow(script, during, limit, transcript, &mut watch);
        let outcome = match outcome {
            // Its only processor may be the one that stands still: then the agent does not answer.
            Err(Error::NoAnswer { .. }) => self.stands_still(&mut watch, during).and(outcome),
            other => other,
        };
        if let Err(error @ Error::Stuck { .. }) = &outcome {
            transcript.note(&error.to_string());
        }
        outcome
    }

    /// Returns whether an error looks like the emulator's doing: a processor that stands still, or
    /// one that is reset without a word of its kernel. A panic of that would be on the console.
    pub fn is_emulators_fault(&self, error: &Error) -> bool {
        let silent = || {
            let console = fs::read(self.console()).unwrap_or_default();
            let console = String::from_utf8_lossy(&console);
            !["Kernel panic", "Oops", "BUG:", "reboot: "].iter().any(|word| console.contains(word))
        };
        match error {
            Error::Stuck { .. } => true,
            Error::Ended { reason, .. } => reason.contains("guest-reset") && silent(),
            _ => false,
        }
    }

    /// Looks at the processors until it is sure whether one stands still.
    fn stands_still(&mut self, watch: &mut Watch, during: &str) -> Result<(), Error> {
        for _ in 0..stuck::LOOKS {
            std::thread::sleep(LOOK);
            self.look(watch, during)?;
        }
        Ok(())
    }

    fn follow(
        &mut self,
        script: &str,
        during: &str,
        limit: Duration,
        transcript: &mut Transcript,
        watch: &mut Watch,
    ) -> Result<Output, Error> {
        self.commands += 1;
        let unit = format!("emulated-host-{}.scope", self.commands);
        let file = format!("{COMMANDS}/{}", self.commands);
        let limit = self.scaled(limit);
        transcript.command(script);
        self.with(during, |agent| agent.write(&format!("{file}.sh"), script.as_bytes()))?;
        let line = format!(
            "exec systemd-run --quiet --scope --slice=user.slice --unit={unit} bash --login {file}.sh \
             >{file}.out 2>{file}.err </dev/null"
        );
        let pid = self.with(during, |agent| {
            // Files are there before they are followed.
            agent.write(&format!("{file}.out"), b"")?;
            agent.write(&format!("{file}.err"), b"")?;
            agent.start("/bin/sh", &["-c", &line])
        })?;
        let begun = Instant::now();
        let (out, err) = (format!("{file}.out"), format!("{file}.err"));
        let mut streams = self.with(during, |agent| {
            Ok([(agent.open(&out)?, Vec::new()), (agent.open(&err)?, Vec::new())])
        })?;
        let mut exit = None;
        let mut looked = Instant::now();
        loop {
            // What was written before the end was seen is all there is.
            let ended = exit.is_some();
            let mut quiet = true;
            for (index, (file, bytes)) in streams.iter_mut().enumerate() {
                let more = self.with(during, |agent| agent.more(file))?;
                quiet &= more.is_empty();
                transcript.output(index == 1, &more);
                bytes.extend(more);
            }
            if ended && quiet {
                break;
            }
            if exit.is_none() {
                exit = self.with(during, |agent| agent.exit(pid))?;
            }
            if looked.elapsed() > LOOK {
                looked = Instant::now();
                self.look(watch, during)?;
            }
            if exit.is_none() && begun.elapsed() > limit {
                self.with(during, |agent| {
                    agent.start("/bin/systemctl", &["kill", "--signal=KILL", &unit])
                })?;
                transcript.note(&format!("killed after {limit:?}"));
                return Err(Error::TimedOut { during: during.to_owned(), limit });
            }
            if exit.is_none() {
                std::thread::sleep(TICK);
            }
        }
        let [out, err] = streams.map(|(file, bytes)| self.finish(file, &bytes, during));
        let output = Output {
            exit: exit.unwrap_or(Exit::Code(-1)),
            stdout: out?,
            stderr: err?,
            took: begun.elapsed(),
        };
        transcript.note(&format!("{} after {:.1} s", output.ending(), output.took.as_secs_f64()));
        Ok(output)
    }

    /// Takes a look at the processors; an error when one has been found to stand still.
    fn look(&mut self, watch: &mut Watch, during: &str) -> Result<(), Error> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let answer = running
            .machine
            .ask("human-monitor-command", &json!({ "command-line": "info registers -a" }))?;
        match watch.look(&stuck::parse(answer.as_str().unwrap_or_default())) {
            Some((processor, rip)) => {
                Err(Error::Stuck { during: during.to_owned(), processor, rip })
            }
            None => Ok(()),
        }
    }

    fn finish(&mut self, file: Followed, bytes: &[u8], during: &str) -> Result<String, Error> {
        self.with(during, |agent| agent.close(file))?;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    fn agent(
        &mut self,
        command: &str,
        arguments: &serde_json::Value,
    ) -> Result<serde_json::Value, Error> {
        self.with(command, |agent| agent.ask(command, arguments))
    }

    /// Does something with the agent; a lack of an answer becomes an error that says whether the
    /// host still runs.
    fn with<T>(
        &mut self,
        during: &str,
        work: impl FnOnce(&mut GuestAgent<'a>) -> Result<T, NoAnswer>,
    ) -> Result<T, Error> {
        let limit = self.scaled(AGENT_LIMIT);
        let Some(running) = &mut self.running else {
            return Err(Error::Ended { during: during.to_owned(), reason: "it is off".to_owned() });
        };
        work(&mut running.agent)
            .map_err(|reason| no_answer(reason, &mut running.machine, during, limit))
    }

    fn start(&mut self, clock: Option<u64>, words: &str) -> Result<(), Error> {
        self.boots += 1;
        let disk = self.disk.clone().unwrap_or_default();
        progress::say(&format!("boot {} of kernel {}", self.boots, self.settings.boot.release));
        let hardware = Hardware {
            boot: self.settings.boot.clone(),
            disk,
            cache: self.settings.cache,
            payload: self.settings.payload.clone(),
            memory_mib: self.settings.memory_mib,
            cpus: self.settings.cpus,
            clock,
            kernel_words: words.to_owned(),
            extra: self.settings.extra.clone(),
        };
        let (console, journal) = (self.console(), self.journal());
        let (mut machine, lines) = Machine::start(&hardware, &console, &journal, self.cancel)?;
        let mut agent = GuestAgent::new(lines, self.scaled(AGENT_LIMIT));
        let (begun, limit) = (Instant::now(), self.scaled(BOOT_LIMIT));
        let mut said = Instant::now();
        let up = agent.wait(limit, || {
            if said.elapsed() > Duration::from_secs(15) {
                said = Instant::now();
                progress::say(&format!("booting ({} s)", begun.elapsed().as_secs()));
            }
            !machine.has_ended()
        });
        let up = up.map_err(|reason| no_answer(reason, &mut machine, "its boot", limit));
        self.running = Some(Running { machine, agent });
        if let Err(Error::NoAnswer { .. }) = up {
            self.stands_still(&mut Watch::default(), "its boot")?;
        }
        up?;
        let pid = self.with("its boot", |agent| agent.start("/bin/mkdir", &["-p", COMMANDS]))?;
        while self.with("its boot", |agent| agent.exit(pid))?.is_none() {
            std::thread::sleep(TICK);
        }
        progress::say(&format!("up after {} s", begun.elapsed().as_secs()));
        Ok(())
    }

    fn disk_name(&mut self) -> PathBuf {
        self.disks += 1;
        self.settings.work.join(format!("disk-{}.qcow2", self.disks))
    }

    fn new_disk(&mut self) -> Result<PathBuf, Error> {
        let disk = self.disk_name();
        let format = if self.base == self.settings.image { "raw" } else { "qcow2" };
        overlay(&self.base, format, &disk)?;
        Ok(disk)
    }
}

/// Makes a disk over another, which must not be written to any more.
fn overlay(base: &Path, format: &str, disk: &Path) -> Result<(), Error> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-F", format, "-b"]).args([base, disk]);
    let made = command.output().context("start", "qemu-img".as_ref())?;
    if made.status.success() {
        return Ok(());
    }
    Err(Error::Disk {
        path: disk.to_owned(),
        detail: String::from_utf8_lossy(&made.stderr).trim().to_owned(),
    })
}

fn no_answer(reason: NoAnswer, machine: &mut Machine, during: &str, limit: Duration) -> Error {
    match reason {
        NoAnswer::Error(error) => error,
        NoAnswer::TimedOut if !machine.has_ended() => {
            Error::NoAnswer { during: during.to_owned(), limit }
        }
        NoAnswer::TimedOut | NoAnswer::Closed => machine.ended(during),
    }
}
