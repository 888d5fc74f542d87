//! Background commands of one session: started, looked at, read, waited for and signalled by
//! different requests.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use mayfly_guest::channel::{
    Channel, ChannelError, ExecControl, ExecEvent, ExecHandle, ExecRequest, ExecStdin, ExitStatus,
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::activity::Activity;
use super::held::Full;
use super::readers::{Readers, Subscription};
use super::ring::Ring;
use super::shares::{Account, Share};

/// Most background commands of a session, running and ended; the oldest ended one is forgotten for
/// a new one.
pub const MAX_EXECS: usize = 64;
/// Bytes kept of each of the two output streams of a command, as long as its tenant may hold so
/// much.
pub const OUTPUT_KEPT: usize = 1 << 20;
/// Bytes kept of each in any case; where the tenant may not hold these, no command is started.
const OUTPUT_LEAST: usize = 16 << 10;
/// Longest tag of a command in bytes.
pub const MAX_TAG: usize = 256;

/// Output stream of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output, or the output of the command's terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// State of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecState {
    /// The command runs.
    Running,
    /// The command ended.
    Exited(ExitStatus),
    /// The command was lost, with the reason: the session is over, or the guest broke the protocol.
    Lost(Arc<str>),
}

/// Error of a background command.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The session has no such command.
    #[error(
        "there is no background command {id} in this session; ended ones are forgotten after {MAX_EXECS} newer ones"
    )]
    Unknown {
        /// Number of the command.
        id: u64,
    },
    /// The session has reached its limit.
    #[error(
        "this session has reached its limit of {MAX_EXECS} background commands: wait for one, or kill one"
    )]
    TooMany,
    /// The command's tag is too long.
    #[error("a tag has at most {MAX_TAG} bytes, not {length}")]
    LongTag {
        /// Length of the tag in bytes.
        length: usize,
    },
    /// The command has no stdin.
    #[error("the command was started without stdin: start it with stdin to write to it")]
    NoStdin,
    /// There is no room to keep what it writes.
    #[error(transparent)]
    Full(#[from] Full),
    /// The exchange with the guest failed.
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

/// What a background command is started with, beside the request for the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StartOptions {
    /// Name by which [`ExecTable::by_tag`] finds it while it runs; several may have the same.
    pub tag: Option<String>,
    /// Keeps none of its output: only its subscriptions get it, and [`Exec::read`] has nothing.
    pub keep_nothing: bool,
}

/// Description of a background command and what it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecView {
    /// Number of the command, unique in the session.
    pub id: u64,
    /// Process id in the guest.
    pub pid: u32,
    /// Program and arguments, as far as they are UTF-8.
    pub argv: Vec<String>,
    /// Its tag, where it has one.
    pub tag: Option<String>,
    /// Whether it runs on a terminal.
    pub tty: bool,
    /// Time at which it was started.
    pub started_at: SystemTime,
    /// State of the command.
    pub state: ExecState,
    /// Bytes of stdout so far.
    pub stdout_bytes: u64,
    /// Bytes of stderr so far.
    pub stderr_bytes: u64,
}

/// A piece of a command's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputPiece {
    /// Offset of the first byte in the whole stream; later than asked for when older bytes are
    /// forgotten already.
    pub offset: u64,
    /// Bytes of the piece.
    pub bytes: Vec<u8>,
    /// Whether nothing follows, now or ever.
    pub end: bool,
}

/// The background commands of one session.
#[derive(Debug)]
pub struct ExecTable {
    /// What its tenant may hold.
    account: Account,
    activity: Arc<Activity>,
    next: AtomicU64,
    entries: Mutex<BTreeMap<u64, Arc<Exec>>>,
}

/// Background command of a session.
#[derive(Debug)]
pub struct Exec {
    id: u64,
    pid: u32,
    argv: Vec<String>,
    tag: Option<String>,
    tty: bool,
    started_at: SystemTime,
    stdin: Option<ExecStdin>,
    control: ExecControl,
    output: Mutex<[Ring; 2]>,
    readers: Arc<Readers>,
    account: Account,
    /// For its arguments and its tag, which are kept as long as it.
    _share: Share,
    /// Counts changes of output and state.
    changes: watch::Sender<u64>,
    state: watch::Sender<ExecState>,
    /// Ends the task that reads from the guest, and with it the command.
    stop: CancellationToken,
    /// Does so when the entry goes.
    _pump: DropGuard,
}

impl ExecTable {
    /// An empty one, whose output counts for `account`. Commands that run hold off the idle timeout
    /// of `activity`.
    pub(super) fn new(account: Account, activity: Arc<Activity>) -> Self {
        Self { account, activity, next: AtomicU64::new(0), entries: Mutex::default() }
    }

    /// Starts a command; returns when it runs. It goes on after the request that started it, until
    /// it ends, its session does, or it is killed. Until then it holds off the idle timeout.
    ///
    /// # Errors
    /// [`ExecError::TooMany`], [`ExecError::LongTag`], [`ExecError::Full`] when the tenant may not
    /// hold its output, [`ExecError::Channel`] when the guest cannot start it.
    pub async fn start(
        &self,
        guest: &Channel,
        request: ExecRequest,
        options: StartOptions,
    ) -> Result<Arc<Exec>, ExecError> {
        self.start_with(guest, request, options, |_| Ok(())).await.map(|(exec, ())| exec)
    }

    /// Starts a command as [`ExecTable::start`] does, with a subscription that gets all of its
    /// output.
    ///
    /// # Errors
    /// As [`ExecTable::start`].
    pub async fn start_subscribed(
        &self,
        guest: &Channel,
        request: ExecRequest,
        options: StartOptions,
    ) -> Result<(Arc<Exec>, Subscription), ExecError> {
        self.start_with(guest, request, options, Exec::subscribe).await
    }

    /// Starts a command, and does `first` before anything of its output is read.
    async fn start_with<T>(
        &self,
        guest: &Channel,
        request: ExecRequest,
        options: StartOptions,
        first: impl FnOnce(&Exec) -> Result<T, Full>,
    ) -> Result<(Arc<Exec>, T), ExecError> {
        let StartOptions { tag, keep_nothing } = options;
        if let Some(length) = tag.as_ref().map(String::len).filter(|length| *length > MAX_TAG) {
            return Err(ExecError::LongTag { length });
        }
        self.make_room()?;
        let argv: Vec<String> = request.argv.iter().map(ToString::to_string).collect();
        let kept = held(&argv) + tag.as_ref().map_or(0, String::len);
        let share = self.account.take(kept).ok_or(Full)?;
        let (least, most) = if keep_nothing { (0, 0) } else { (OUTPUT_LEAST, OUTPUT_KEPT) };
        let ring = || Ring::new(&self.account, least, most).ok_or(Full);
        let output = Mutex::new([ring()?, ring()?]);
        let (wants_stdin, tty) = (request.stdin, request.tty.is_some());
        let handle = guest.exec(request).await?;
        let (stop, readers) = (CancellationToken::new(), Arc::new(Readers::default()));
        let exec = Arc::new(Exec {
            id: self.next.fetch_add(1, Ordering::Relaxed) + 1,
            pid: handle.pid(),
            argv,
            tag,
            tty,
            started_at: SystemTime::now(),
            stdin: wants_stdin.then(|| handle.stdin()),
            control: handle.control(),
            output,
            readers: readers.clone(),
            account: self.account.clone(),
            _share: share,
            changes: watch::Sender::new(0),
            state: watch::Sender::new(ExecState::Running),
            stop: stop.clone(),
            _pump: stop.clone().drop_guard(),
        });
        let done = first(&exec)?;
        // Somebody else may have taken the room meanwhile.
        self.make_room()?;
        self.entries().insert(exec.id, exec.clone());
        let (weak, active) = (Arc::downgrade(&exec), self.activity.open());
        tokio::spawn(async move {
            let _active = active;
            tokio::select! {
                () = stop.cancelled() => {}
                () = pump(handle, weak, readers) => {}
            }
        });
        Ok((exec, done))
    }

    /// Lists all background commands, oldest first.
    pub fn list(&self) -> Vec<Arc<Exec>> {
        self.entries().values().cloned().collect()
    }

    /// Returns the background command with this number.
    ///
    /// # Errors
    /// [`ExecError::Unknown`].
    pub fn get(&self, id: u64) -> Result<Arc<Exec>, ExecError> {
        self.entries().get(&id).cloned().ok_or(ExecError::Unknown { id })
    }

    /// Returns the running command with this process id in the guest.
    pub fn by_pid(&self, pid: u32) -> Option<Arc<Exec>> {
        self.find_running(|exec| exec.pid == pid)
    }

    /// Returns the newest running command with this tag.
    pub fn by_tag(&self, tag: &str) -> Option<Arc<Exec>> {
        self.find_running(|exec| exec.tag.as_deref() == Some(tag))
    }

    fn find_running(&self, is: impl Fn(&Exec) -> bool) -> Option<Arc<Exec>> {
        let running = |exec: &&Arc<Exec>| is(exec) && exec.state() == ExecState::Running;
        self.entries().values().rev().find(running).cloned()
    }

    /// Forgets all; those that run are killed.
    pub(super) fn clear(&self) {
        let forgotten = std::mem::take(&mut *self.entries());
        for exec in forgotten.values() {
            exec.finish(ExecState::Lost("the session is over".into()));
            // Who still reads it may hold it for long.
            exec.stop.cancel();
        }
    }

    fn make_room(&self) -> Result<(), ExecError> {
        let mut entries = self.entries();
        if entries.len() < MAX_EXECS {
            return Ok(());
        }
        let ended =
            entries.values().find(|exec| exec.state() != ExecState::Running).map(|exec| exec.id);
        entries.remove(&ended.ok_or(ExecError::TooMany)?);
        Ok(())
    }

    fn entries(&self) -> parking_lot::MutexGuard<'_, BTreeMap<u64, Arc<Exec>>> {
        self.entries.lock()
    }
}

impl Exec {
    /// Returns the number of the command, unique in the session.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Returns the process id in the guest; also its process group.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns the tag that it was started with.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns whether it runs on a terminal.
    pub fn tty(&self) -> bool {
        self.tty
    }

    /// Returns the state of the command.
    pub fn state(&self) -> ExecState {
        self.state.borrow().clone()
    }

    /// Describes the command and what it did.
    pub fn view(&self) -> ExecView {
        let [stdout_bytes, stderr_bytes] = {
            let output = self.output.lock();
            [output[0].end(), output[1].end()]
        };
        ExecView {
            id: self.id,
            pid: self.pid,
            argv: self.argv.clone(),
            tag: self.tag.clone(),
            tty: self.tty,
            started_at: self.started_at,
            state: self.state(),
            stdout_bytes,
            stderr_bytes,
        }
    }

    /// Reads at most `limit` bytes of output from `offset` on; see [`OutputPiece`]. Does not wait.
    pub fn read(&self, stream: OutputStream, offset: u64, limit: usize) -> OutputPiece {
        // The state first: what ends after this look is no end yet.
        let ended = self.state() != ExecState::Running;
        let output = self.output.lock();
        let ring = &output[stream as usize];
        let (offset, bytes) = ring.read(offset, limit);
        let end = ended && offset + bytes.len() as u64 == ring.end();
        OutputPiece { offset, bytes, end }
    }

    /// Reads as [`Exec::read`] does, but waits until there is output behind `offset`, or the
    /// command has ended. Cancel-safe.
    pub async fn read_next(&self, stream: OutputStream, offset: u64, limit: usize) -> OutputPiece {
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let piece = self.read(stream, offset, limit);
            // The sender lives in self, so the wait cannot fail.
            if !piece.bytes.is_empty()
                || piece.end
                || limit == 0
                || changes.changed().await.is_err()
            {
                return piece;
            }
        }
    }

    /// Waits for its end. Cancel-safe.
    pub async fn wait(&self) -> ExecState {
        let mut state = self.state.subscribe();
        match state.wait_for(|state| *state != ExecState::Running).await {
            Ok(state) => state.clone(),
            // The sender lives in self, so the wait cannot fail.
            Err(_) => self.state(),
        }
    }

    /// Returns a reader of all that it writes from now on, and of its end. Of a command that has
    /// ended it gets the end alone.
    ///
    /// # Errors
    /// [`Full`] when the tenant may not hold what waits for the reader.
    pub fn subscribe(&self) -> Result<Subscription, Full> {
        self.readers.add(&self.account, self.state.subscribe())
    }

    /// Returns a handle to signal it and to resize its terminal.
    pub fn control(&self) -> ExecControl {
        self.control.clone()
    }

    /// Returns a handle to write its stdin.
    ///
    /// # Errors
    /// [`ExecError::NoStdin`].
    pub fn stdin(&self) -> Result<ExecStdin, ExecError> {
        self.stdin.clone().ok_or(ExecError::NoStdin)
    }

    /// Writes to its stdin; waits while the command does not read.
    ///
    /// # Errors
    /// [`ExecError::NoStdin`], [`ExecError::Channel`] when it has ended.
    pub async fn write_stdin(&self, bytes: &[u8]) -> Result<(), ExecError> {
        Ok(self.stdin.as_ref().ok_or(ExecError::NoStdin)?.write_all(bytes).await?)
    }

    /// Closes its stdin.
    ///
    /// # Errors
    /// As [`Exec::write_stdin`].
    pub async fn close_stdin(&self) -> Result<(), ExecError> {
        Ok(self.stdin.as_ref().ok_or(ExecError::NoStdin)?.close().await?)
    }

    /// Sends a signal, by its Linux number, to its process group.
    ///
    /// # Errors
    /// [`ExecError::Channel`] when it has ended.
    pub async fn signal(&self, number: i32) -> Result<(), ExecError> {
        Ok(self.control.signal(number).await?)
    }

    /// Kills its process group.
    ///
    /// # Errors
    /// As [`Exec::signal`].
    pub async fn kill(&self) -> Result<(), ExecError> {
        self.signal(libc::SIGKILL).await
    }

    /// Sets the size of its terminal.
    ///
    /// # Errors
    /// As [`Exec::signal`].
    pub async fn resize(&self, rows: u16, cols: u16) -> Result<(), ExecError> {
        Ok(self.control.resize(mayfly_guest::channel::TtySize { rows, cols }).await?)
    }

    fn push(&self, stream: OutputStream, bytes: &[u8]) {
        self.output.lock()[stream as usize].push(bytes);
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Only the first end counts.
    fn finish(&self, end: ExecState) {
        self.state.send_if_modified(|state| {
            let first = *state == ExecState::Running;
            if first {
                *state = end;
            }
            first
        });
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
        self.readers.end();
    }
}

/// Reads until the command ends or its entry is forgotten. While a reader does not take what is for
/// it, nothing more is read, and soon the command waits.
async fn pump(mut handle: ExecHandle, exec: Weak<Exec>, readers: Arc<Readers>) {
    loop {
        let event = handle.recv().await;
        let (stream, bytes) = {
            // Not held while a reader is waited for: it would keep a forgotten command alive.
            let Some(exec) = exec.upgrade() else { return };
            let output = match event {
                Ok(Some(ExecEvent::Stdout(bytes))) => (OutputStream::Stdout, bytes),
                Ok(Some(ExecEvent::Stderr(bytes))) => (OutputStream::Stderr, bytes),
                Ok(Some(ExecEvent::Exit(status))) => return exec.finish(ExecState::Exited(status)),
                Ok(None) => {
                    let reason = "the command ended without a status";
                    return exec.finish(ExecState::Lost(reason.into()));
                }
                Err(error) => return exec.finish(ExecState::Lost(error.to_string().into())),
            };
            exec.push(output.0, &output.1);
            output
        };
        readers.tell(stream, &bytes).await;
    }
}

/// Bytes that arguments take in memory, empty ones as well.
fn held(argv: &[String]) -> usize {
    // The allocator keeps at least 16 bytes of each.
    argv.iter().map(|argument| size_of::<String>() + argument.len().max(16)).sum()
}
