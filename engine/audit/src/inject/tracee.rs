//! A stopped thread that makes system calls for us.
//!
//! The stops are found out by looking at `/proc/TID/stat`, not with wait(2): the process may be a
//! child of this one whose end somebody else waits for, and a wait would take that from them.

use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::time::{Duration, Instant};

use mayfly_host::time_scale::scaled;
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::call::{Arg, Call, MOST_ARGS, Outcome};

/// Bound on one system call. Generous: it catches what blocks for ever.
const LIMIT: Duration = Duration::from_secs(10);
/// How often a thread is looked at that does not stop at once.
const TICK: Duration = Duration::from_micros(100);
/// The instruction `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// Below the stack pointer, past the red zone of the x86-64 ABI (128 bytes) with room to spare.
const BELOW_STACK: u64 = 512;
/// Room for the arguments of one call, in bytes.
const ROOM: usize = 16 << 10;

/// Reason why a call could not be made; says nothing about how it would have come out.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// ptrace(2) or an access to the memory of the process failed.
    #[error("cannot {action} process {pid}: {cause}")]
    Trace {
        /// Operation that was attempted.
        action: &'static str,
        /// Process id.
        pid: i32,
        /// Cause of the failure.
        cause: Errno,
    },
    /// The process has no `syscall` instruction that could be found.
    #[error("process {pid} has no system call instruction in its program or libraries")]
    NoInstruction {
        /// Process id.
        pid: i32,
    },
    /// The arguments need too much memory.
    #[error("the arguments of a system call need {0} bytes, more than {ROOM}")]
    TooLong(usize),
    /// The process does not stop, or the call does not end.
    #[error("process {pid} did not {what} within {} s", scaled(LIMIT).as_secs())]
    TimedOut {
        /// Process id.
        pid: i32,
        /// Event that was waited for.
        what: &'static str,
    },
    /// The process ended before the call.
    #[error("process {pid} has ended")]
    Gone {
        /// Process id.
        pid: i32,
    },
}

/// A thread under our control, from [`Tracee::seize`] until dropped. ptrace(2) binds it to the
/// thread of ours that seized it.
#[derive(Debug)]
pub struct Tracee {
    pid: Pid,
    /// As they were when it stopped.
    registers: libc::user_regs_struct,
    instruction: u64,
    /// Signals that arrived meanwhile; it gets them when it goes on.
    pending: Option<Signal>,
    gone: bool,
    not_send: PhantomData<*const ()>,
}

/// What a thread is doing.
enum Stop {
    /// It is stopped for this signal, or in the event of this number (ptrace(2), `PTRACE_EVENT_*`;
    /// 0 for none).
    At(Signal, i32),
    Gone,
}

impl Tracee {
    /// Stops the first thread of process `pid`, wherever it is.
    ///
    /// # Errors
    /// [`InjectError`], for instance without `CAP_SYS_PTRACE`.
    pub fn seize(pid: u32) -> Result<Self, InjectError> {
        let pid = Pid::from_raw(pid.cast_signed());
        let options = Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEEXEC;
        ptrace::seize(pid, options).map_err(|errno| match state_of(pid) {
            None | Some('Z' | 'X') => InjectError::Gone { pid: pid.as_raw() },
            _ => failed("trace", pid)(errno),
        })?;
        let registers =
            ptrace::interrupt(pid).map_err(failed("stop", pid)).and_then(|()| stop(pid));
        let found =
            registers.and_then(|registers| Ok((registers, find_instruction(pid, &registers)?)));
        match found {
            Ok((registers, instruction)) => Ok(Self {
                pid,
                registers,
                instruction,
                pending: None,
                gone: false,
                not_send: PhantomData,
            }),
            Err(error) => {
                let _ = ptrace::detach(pid, None);
                Err(error)
            }
        }
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw().cast_unsigned()
    }

    /// Has the thread make `call`.
    ///
    /// # Errors
    /// [`InjectError`] when it could not be made or did not end.
    pub fn call(&mut self, call: &Call) -> Result<Outcome, InjectError> {
        self.call_reading(call).map(|(outcome, _)| outcome)
    }

    /// Has the thread make `call`; also returns what each [`Arg::Bytes`] holds afterwards, in
    /// order.
    ///
    /// # Errors
    /// As for [`Tracee::call`].
    pub fn call_reading(&mut self, call: &Call) -> Result<(Outcome, Vec<Vec<u8>>), InjectError> {
        if self.gone {
            return Err(InjectError::Gone { pid: self.pid.as_raw() });
        }
        let need: usize = call
            .args
            .iter()
            .map(|arg| if let Arg::Bytes(bytes) = arg { bytes.len() + 16 } else { 0 })
            .sum();
        if need > ROOM {
            return Err(InjectError::TooLong(need));
        }
        let mut free = (self.registers.rsp - BELOW_STACK - need as u64) & !15;
        let scratch = free;
        let kept = self.read(scratch, need)?;
        let mut places = Vec::new();
        let mut values = [0_u64; MOST_ARGS];
        for (value, arg) in values.iter_mut().zip(&call.args) {
            *value = match arg {
                Arg::Number(number) => number.cast_unsigned(),
                Arg::Bytes(bytes) => {
                    self.write(free, bytes)?;
                    places.push((free, bytes.len()));
                    let here = free;
                    free = (free + bytes.len() as u64 + 15) & !15;
                    here
                }
            };
        }
        let [rdi, rsi, rdx, r10, r8, r9] = values;
        let rax = call.number.cast_unsigned();
        // In no system call that could be restarted (`orig_rax`), and about to make ours.
        let prepared = libc::user_regs_struct {
            rax,
            orig_rax: u64::MAX,
            rip: self.instruction,
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            ..self.registers
        };
        ptrace::setregs(self.pid, prepared).map_err(failed("set the registers of", self.pid))?;
        let outcome = self.step()?;
        let mut bytes = Vec::new();
        if matches!(outcome, Outcome::Returned(_) | Outcome::Failed(_) | Outcome::Forked) {
            for (place, length) in places {
                bytes.push(self.read(place, length)?);
            }
            self.write(scratch, &kept)?;
            ptrace::setregs(self.pid, self.registers)
                .map_err(failed("set the registers of", self.pid))?;
        } else {
            self.gone = true;
        }
        Ok((outcome, bytes))
    }

    /// Lets the thread run for the one instruction.
    fn step(&mut self) -> Result<Outcome, InjectError> {
        let mut forked = false;
        loop {
            match ptrace::step(self.pid, None) {
                Ok(()) => {}
                Err(Errno::ESRCH) => return Ok(Outcome::Killed),
                Err(errno) => return Err(failed("continue", self.pid)(errno)),
            }
            match wait(self.pid, "end a system call")? {
                Stop::Gone => return Ok(Outcome::Killed),
                Stop::At(_, libc::PTRACE_EVENT_EXEC) => {
                    // Before the other program's first instruction.
                    let _ = kill(self.pid, Signal::SIGKILL);
                    return Ok(Outcome::Replaced);
                }
                Stop::At(
                    _,
                    libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE,
                ) => {
                    let child = ptrace::getevent(self.pid).map_err(failed("look at", self.pid))?;
                    #[expect(clippy::cast_possible_truncation, reason = "a process id is an int")]
                    let child = Pid::from_raw(child as i32);
                    end(child);
                    forked = true;
                }
                Stop::At(Signal::SIGTRAP, 0) => {
                    let now = ptrace::getregs(self.pid)
                        .map_err(failed("read the registers of", self.pid))?;
                    if now.rip == self.instruction {
                        continue;
                    }
                    let value = now.rax.cast_signed();
                    return Ok(match i32::try_from(value) {
                        _ if forked => Outcome::Forked,
                        // syscall(2): these are errors.
                        Ok(errno @ -4095..0) => Outcome::Failed(Errno::from_raw(-errno)),
                        _ => Outcome::Returned(value),
                    });
                }
                Stop::At(_, libc::PTRACE_EVENT_STOP) => {}
                Stop::At(signal, _) => self.pending = Some(signal),
            }
        }
    }

    /// Reads memory of the process.
    ///
    /// # Errors
    /// [`InjectError::Trace`] when nothing is there.
    pub fn read(&self, address: u64, length: usize) -> Result<Vec<u8>, InjectError> {
        read(self.pid, address, length)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), InjectError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let base = usize::try_from(address)
            .map_err(|_| failed("write the memory of", self.pid)(Errno::EFAULT))?;
        let remote = [RemoteIoVec { base, len: bytes.len() }];
        match process_vm_writev(self.pid, &[IoSlice::new(bytes)], &remote) {
            Ok(count) if count == bytes.len() => Ok(()),
            Ok(_) => Err(failed("write the memory of", self.pid)(Errno::EFAULT)),
            Err(errno) => Err(failed("write the memory of", self.pid)(errno)),
        }
    }
}

impl Drop for Tracee {
    /// A system call in which it was interrupted is restarted by the kernel, for the registers say
    /// that it is in one.
    fn drop(&mut self) {
        let _ = ptrace::detach(self.pid, self.pending);
    }
}

fn failed(action: &'static str, pid: Pid) -> impl Fn(Errno) -> InjectError {
    move |cause| match cause {
        Errno::ESRCH => InjectError::Gone { pid: pid.as_raw() },
        cause => InjectError::Trace { action, pid: pid.as_raw(), cause },
    }
}

fn read(pid: Pid, address: u64, length: usize) -> Result<Vec<u8>, InjectError> {
    let mut bytes = vec![0; length];
    if length == 0 {
        return Ok(bytes);
    }
    let base =
        usize::try_from(address).map_err(|_| failed("read the memory of", pid)(Errno::EFAULT))?;
    let remote = [RemoteIoVec { base, len: length }];
    let count = process_vm_readv(pid, &mut [IoSliceMut::new(&mut bytes)], &remote);
    match count {
        Ok(count) if count == length => Ok(bytes),
        Ok(_) => Err(failed("read the memory of", pid)(Errno::EFAULT)),
        Err(errno) => Err(failed("read the memory of", pid)(errno)),
    }
}

/// Where the process has a `syscall` instruction: the one it is in, or one in its program and
/// libraries.
fn find_instruction(pid: Pid, registers: &libc::user_regs_struct) -> Result<u64, InjectError> {
    let before = registers.rip.wrapping_sub(2);
    if read(pid, before, 2).is_ok_and(|bytes| bytes == SYSCALL) {
        return Ok(before);
    }
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    for line in maps.lines().filter(|line| line.contains("r-xp") && line.contains('/')) {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let Some((begin, end)) = range else { continue };
        let (Ok(begin), Ok(end)) = (u64::from_str_radix(begin, 16), u64::from_str_radix(end, 16))
        else {
            continue;
        };
        let Ok(length) = usize::try_from(end - begin) else { continue };
        let Ok(code) = read(pid, begin, length) else { continue };
        if let Some(at) = code.windows(2).position(|pair| pair == SYSCALL) {
            return Ok(begin + at as u64);
        }
    }
    Err(InjectError::NoInstruction { pid: pid.as_raw() })
}

/// proc_pid_stat(5): the state is the first field after the name, which is in parentheses.
fn state_of(pid: Pid) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Waits for the stop that PTRACE_INTERRUPT asks for: in any other, such as within execve(2), the
/// kernel has still to write to the registers.
fn stop(pid: Pid) -> Result<libc::user_regs_struct, InjectError> {
    loop {
        match wait(pid, "stop")? {
            Stop::Gone => return Err(InjectError::Gone { pid: pid.as_raw() }),
            Stop::At(_, libc::PTRACE_EVENT_STOP) => {
                return ptrace::getregs(pid).map_err(failed("read the registers of", pid));
            }
            Stop::At(signal, event) => {
                let passed_on = (event == 0).then_some(signal);
                ptrace::cont(pid, passed_on).map_err(failed("continue", pid))?;
                // Any other stop takes the interrupt's place.
                ptrace::interrupt(pid).map_err(failed("stop", pid))?;
            }
        }
    }
}

/// Waits until the thread stops or ends.
fn wait(pid: Pid, what: &'static str) -> Result<Stop, InjectError> {
    let begun = Instant::now();
    loop {
        match state_of(pid) {
            Some('t') => {
                let info = match ptrace::getsiginfo(pid) {
                    Ok(info) => info,
                    // It is on its way into the stop, or was killed just now.
                    Err(Errno::ESRCH | Errno::EINVAL) => continue,
                    Err(errno) => return Err(failed("look at", pid)(errno)),
                };
                let signal = Signal::try_from(info.si_signo).unwrap_or(Signal::SIGTRAP);
                // For an event, `si_code` is the signal with the event's number above it
                // (ptrace(2)).
                let event = if info.si_code > 0xff { info.si_code >> 8 } else { 0 };
                return Ok(Stop::At(signal, event));
            }
            None | Some('Z' | 'X') => return Ok(Stop::Gone),
            _ if begun.elapsed() > scaled(LIMIT) => {
                return Err(InjectError::TimedOut { pid: pid.as_raw(), what });
            }
            _ => std::thread::sleep(TICK),
        }
    }
}

/// Kills a process that a call made. It is traced like its parent, so it has not run yet.
fn end(child: Pid) {
    let _ = kill(child, Signal::SIGKILL);
    while let Ok(WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(..)) =
        waitpid(child, Some(WaitPidFlag::__WALL))
    {}
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    struct Sleeper(Child);

    impl Sleeper {
        fn start() -> Self {
            Self(Command::new("sleep").arg("60").spawn().unwrap())
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn another_process_makes_our_calls_and_then_goes_on() {
        let mut sleeper = Sleeper::start();
        let pid = sleeper.0.id();
        for _ in 0..3 {
            let mut tracee = Tracee::seize(pid).unwrap();
            assert_eq!(
                tracee.call(&Call::new(libc::SYS_getpid)).unwrap(),
                Outcome::Returned(i64::from(pid))
            );
            let missing = Call::new(libc::SYS_openat)
                .arg(libc::AT_FDCWD)
                .arg("/no/such/file")
                .arg(libc::O_RDONLY);
            assert_eq!(tracee.call(&missing).unwrap(), Outcome::Failed(Errno::ENOENT));
            let (outcome, bytes) =
                tracee.call_reading(&Call::new(libc::SYS_uname).arg(vec![0; 390])).unwrap();
            assert_eq!((outcome, &bytes[0][..6]), (Outcome::Returned(0), &b"Linux\0"[..]));
            assert_eq!(tracee.call(&Call::new(libc::SYS_fork)).unwrap(), Outcome::Forked);
        }
        let begun = Instant::now();
        while state_of(Pid::from_raw(pid.cast_signed())) != Some('S')
            && begun.elapsed() < scaled(LIMIT)
        {
            std::thread::sleep(TICK);
        }
        assert_eq!(state_of(Pid::from_raw(pid.cast_signed())), Some('S'), "it sleeps on");
        assert!(sleeper.0.try_wait().unwrap().is_none());
    }

    #[test]
    fn a_call_that_ends_the_process_is_told_from_one_that_fails() {
        let mut sleeper = Sleeper::start();
        let kill_me =
            Call::new(libc::SYS_kill).arg(sleeper.0.id().cast_signed()).arg(libc::SIGKILL);
        assert_eq!(Tracee::seize(sleeper.0.id()).unwrap().call(&kill_me).unwrap(), Outcome::Killed);
        assert!(!sleeper.0.wait().unwrap().success());
        assert!(matches!(Tracee::seize(sleeper.0.id()), Err(InjectError::Gone { .. })));
    }
}
