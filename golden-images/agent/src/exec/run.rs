//! Streams one command: input, output, signals, timeout, exit.

use super::end_of_input::EndOfInput;
use super::group::Group;
use super::pipe::{Pipe, ProcessEnd};
use super::spawn::{NotStarted, Spawned, resize, spawn};
use crate::context::Context;
use crate::egress;
use crate::wire::{Event, Wire};
use mayfly_protocol::{
    ByteString, ExecInput, ExecOutput, ExecRequest, ExitStatus, FrameError, GuestError,
    STDIN_WINDOW, decode_frame,
};
use nix::libc;
use std::future::pending;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// How long the output of a command is still waited for after its exit, when some descendant keeps
/// it open.
const GRACE: Duration = Duration::from_millis(200);

/// Output that may wait for the engine before the command is no longer read.
const BACKLOG: usize = 64 * 1024;

const READ: usize = 16 * 1024;

/// Serves one exec stream.
pub async fn run(
    mut wire: Wire,
    request: ExecRequest,
    context: &Rc<Context>,
) -> Result<(), FrameError> {
    let proxy = context.egress.borrow().as_deref().map(egress::variables).unwrap_or_default();
    let (tty, timeout) = (request.tty.is_some(), request.timeout_ms);
    let spawned = tokio::select! {
        spawned = spawn(request, proxy) => spawned,
        // The engine has given up.
        () = wire.ended() => return Ok(()),
    };
    match spawned {
        Ok(spawned) => {
            let mut exec = match Exec::new(spawned, tty, Rc::clone(context)) {
                Ok(exec) => exec,
                Err(error) => {
                    wire.send(&ExecOutput::Failed(error))?;
                    return wire.close().await;
                }
            };
            wire.send(&ExecOutput::Started { pid: exec.group.child.id() })?;
            let last = match exec.stream(&mut wire, timeout).await? {
                Some(status) => ExecOutput::Exit(status),
                // The engine has closed the stream: `group` kills the command.
                None => return Ok(()),
            };
            wire.send(&last)?;
        }
        Err(NotStarted { kind, error }) => wire.send(&ExecOutput::NotStarted { kind, error })?,
    }
    wire.close().await
}

/// Runs a command of our own and returns its stdout.
pub async fn output<const N: usize>(argv: [&str; N]) -> Result<Vec<u8>, GuestError> {
    let request = ExecRequest::new(argv.map(ByteString::from));
    let what = argv.join(" ");
    let failed = |error: std::io::Error| GuestError::io(&what, &error);
    let spawned = spawn(request, Vec::new()).await?;
    // It is attended at its end only: dropped before, it is killed.
    let end = ProcessEnd::of(spawned.child.id()).map_err(failed)?;
    let mut output = Vec::new();
    let mut buffer = vec![0; READ];
    loop {
        match spawned.stdout.read(&mut buffer).await.map_err(failed)? {
            0 => break,
            count => output.extend_from_slice(&buffer[..count]),
        }
    }
    end.wait().await.map_err(failed)?;
    let status = spawned.child.attend().wait().map_err(failed)?;
    if status.success() { Ok(output) } else { Err(GuestError::new(format!("{what}: {status}"))) }
}

/// One of the output streams.
struct Output {
    pipe: Option<Pipe>,
    buffer: Vec<u8>,
    /// Bytes that were in the pipe when the command ended and must still be read.
    owed: usize,
}

impl Output {
    fn new(pipe: Option<Pipe>) -> Self {
        let buffer = if pipe.is_some() { vec![0; READ] } else { Vec::new() };
        Self { pipe, buffer, owed: 0 }
    }

    /// Reads, or waits for ever when the stream has ended.
    async fn read(&mut self) -> usize {
        match &self.pipe {
            Some(pipe) => pipe.read(&mut self.buffer).await.unwrap_or(0),
            None => pending().await,
        }
    }

    /// Accounts for a read; the bytes to hand on.
    fn took(&mut self, count: usize) -> Option<Vec<u8>> {
        if count == 0 {
            self.pipe = None;
        }
        self.owed = if self.pipe.is_some() { self.owed.saturating_sub(count) } else { 0 };
        (count > 0).then(|| self.buffer[..count].to_vec())
    }

    fn command_ended(&mut self) {
        self.owed = self.pipe.as_ref().map_or(0, Pipe::readable_now);
    }
}

struct Exec {
    group: Group,
    end: ProcessEnd,
    stdin: Option<Pipe>,
    stdout: Output,
    stderr: Output,
    /// Stdin that the command has not taken yet.
    input: Vec<u8>,
    input_ends: bool,
    /// The end of input of a terminal, while it is to be typed.
    end_of_input: Option<EndOfInput>,
    tty: bool,
    context: Rc<Context>,
    /// See [`Spawned::terminal`].
    _terminal: Option<OwnedFd>,
}

impl Drop for Exec {
    fn drop(&mut self) {
        // Who else has them goes on. A terminal is hung up at the end of its session.
        let outputs = [&mut self.stdout, &mut self.stderr];
        for pipe in outputs.into_iter().filter_map(|output| output.pipe.take()) {
            if !self.tty {
                self.context.left.read(pipe.into_inner());
            }
        }
    }
}

impl Exec {
    fn new(spawned: Spawned, tty: bool, context: Rc<Context>) -> Result<Self, GuestError> {
        let group = Group::new(spawned.child.attend(), Rc::clone(&context));
        let end = ProcessEnd::of(group.child.id())
            .map_err(|error| GuestError::io("watch the command", &error))?;
        Ok(Self {
            group,
            end,
            stdin: spawned.stdin,
            stdout: Output::new(Some(spawned.stdout)),
            stderr: Output::new(spawned.stderr),
            input: Vec::new(),
            input_ends: false,
            end_of_input: None,
            tty,
            context,
            _terminal: spawned.terminal,
        })
    }

    /// Streams until the command has ended and its output was read, or `None` when the engine has
    /// closed the stream.
    async fn stream(
        &mut self,
        wire: &mut Wire,
        timeout_ms: Option<u64>,
    ) -> Result<Option<ExitStatus>, FrameError> {
        let deadline = timeout_ms
            .map(|limit| Instant::now() + Duration::from_millis(limit.min(u64::from(u32::MAX))));
        let mut timed_out = false;
        let mut status = None;
        let mut grace = None;
        loop {
            let open = self.stdout.pipe.is_some() || self.stderr.pipe.is_some();
            let owed = self.stdout.owed + self.stderr.owed;
            let graceless = grace.is_some_and(|until| Instant::now() >= until) && owed == 0;
            if let Some(status) = status
                && (!open || graceless)
            {
                wire.drain().await?;
                return Ok(Some(if timed_out { ExitStatus::TimedOut } else { status }));
            }
            let may_read = wire.backlog() < BACKLOG;
            tokio::select! {
                event = wire.event() => match event? {
                    Event::Input(Some(frame)) => self.input(wire, decode_frame(&frame)?)?,
                    Event::Input(None) => return Ok(None),
                    Event::Drained => {}
                },
                count = self.stdout.read(), if may_read => {
                    if let Some(bytes) = self.stdout.took(count) {
                        wire.send(&ExecOutput::Stdout(bytes))?;
                    }
                }
                count = self.stderr.read(), if may_read => {
                    if let Some(bytes) = self.stderr.took(count) {
                        wire.send(&ExecOutput::Stderr(bytes))?;
                    }
                }
                written = write_input(self.stdin.as_ref(), &self.input), if !self.input.is_empty() => {
                    // A command that has closed its stdin gets no more of it, which is its
                    // business.
                    let count = written.unwrap_or_else(|_| { self.stdin = None; self.input.len() });
                    self.input.drain(..count);
                    wire.send(&ExecOutput::StdinConsumed(u32::try_from(count).unwrap_or(u32::MAX)))?;
                    self.end_input();
                }
                () = sleep_or_never(self.end_of_input.as_ref().map(EndOfInput::next)) => {
                    if let (Some(end), Some(terminal)) = (&mut self.end_of_input, &self.stdin) {
                        end.look(terminal.get_ref().as_fd());
                    }
                }
                ended = self.end.wait(), if status.is_none() => {
                    ended?;
                    let exit = self.group.child.wait()?;
                    status = Some(match (exit.code(), exit.signal()) {
                        (Some(code), _) => ExitStatus::Code(code),
                        (None, signal) => ExitStatus::Signal(signal.unwrap_or(0)),
                    });
                    self.group.ended = true;
                    self.stdin = None;
                    self.end_of_input = None;
                    self.stdout.command_ended();
                    self.stderr.command_ended();
                    grace = Some(Instant::now() + GRACE);
                }
                () = sleep_or_never(deadline), if status.is_none() && !timed_out => {
                    timed_out = true;
                    let _ = self.group.signal(libc::SIGKILL);
                }
                () = sleep_or_never(grace), if owed == 0 && may_read => {}
            }
        }
    }

    fn input(&mut self, wire: &mut Wire, frame: ExecInput) -> Result<(), FrameError> {
        match frame {
            ExecInput::Stdin(bytes) if self.input.len() + bytes.len() > STDIN_WINDOW => {
                let length = self.input.len() + bytes.len();
                return Err(FrameError::TooLong { length, limit: STDIN_WINDOW });
            }
            ExecInput::Stdin(bytes) if self.stdin.is_some() && !self.input_ends => {
                self.input.extend_from_slice(&bytes);
            }
            ExecInput::Stdin(bytes) => {
                wire.send(&ExecOutput::StdinConsumed(
                    u32::try_from(bytes.len()).unwrap_or(u32::MAX),
                ))?;
            }
            ExecInput::StdinEof => {
                self.input_ends = true;
                self.end_input();
            }
            ExecInput::Resize(size) => {
                if let (true, Some(master)) = (self.tty, &self.stdout.pipe) {
                    let _ = resize(master.get_ref(), size);
                }
            }
            ExecInput::Signal(number) => {
                if !self.group.ended {
                    let _ = self.group.signal(number);
                }
            }
        }
        Ok(())
    }

    /// Closes the command's stdin once it has taken everything.
    fn end_input(&mut self) {
        if !self.input_ends || !self.input.is_empty() {
            return;
        }
        if self.tty && self.stdin.is_some() {
            self.end_of_input.get_or_insert_with(EndOfInput::new);
        } else {
            self.stdin = None;
        }
    }
}

async fn write_input(stdin: Option<&Pipe>, input: &[u8]) -> std::io::Result<usize> {
    match stdin {
        Some(stdin) => stdin.write(input).await,
        None => Err(std::io::ErrorKind::BrokenPipe.into()),
    }
}

async fn sleep_or_never(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => pending().await,
    }
}
