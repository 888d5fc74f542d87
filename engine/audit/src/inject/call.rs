//! A system call to inject, and what became of it.

use std::ffi::CString;
use std::fmt;

use nix::errno::Errno;

/// Most arguments of a system call on x86-64 (syscall(2)).
pub(super) const MOST_ARGS: usize = 6;

/// Argument of a system call.
#[derive(Debug, Clone)]
pub enum Arg {
    /// Number that is passed as it is.
    Number(i64),
    /// Copied into the process; its address is passed. The call may overwrite it, see
    /// [`super::Tracee::call_reading`].
    Bytes(Vec<u8>),
}

impl From<i64> for Arg {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<i32> for Arg {
    fn from(number: i32) -> Self {
        Self::Number(i64::from(number))
    }
}

/// A length.
impl From<usize> for Arg {
    fn from(length: usize) -> Self {
        Self::Number(length.cast_signed() as i64)
    }
}

impl From<Vec<u8>> for Arg {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

/// A path or another string; one with a zero byte ends there.
impl From<&str> for Arg {
    fn from(text: &str) -> Self {
        let text = text.split('\0').next().unwrap_or_default();
        Self::Bytes(CString::new(text).unwrap_or_default().into_bytes_with_nul())
    }
}

/// A system call.
#[derive(Debug, Clone)]
pub struct Call {
    pub(super) number: i64,
    pub(super) args: Vec<Arg>,
}

impl Call {
    /// Returns the system call `number` without arguments so far.
    pub fn new(number: i64) -> Self {
        Self { number, args: Vec::with_capacity(MOST_ARGS) }
    }

    /// Adds an argument. The seventh and later ones are not passed.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<Arg>) -> Self {
        self.args.push(arg.into());
        self
    }
}

/// Outcome of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Success with this value.
    Returned(i64),
    /// Failure with this error.
    Failed(Errno),
    /// Creation of a process, which was killed.
    Forked,
    /// The process runs another program now.
    Replaced,
    /// The process was killed over it, as seccomp(2) does with `SECCOMP_RET_KILL_PROCESS`.
    Killed,
}

impl Outcome {
    /// Returns whether the kernel did what it was asked for.
    pub fn succeeded(&self) -> bool {
        matches!(self, Self::Returned(_) | Self::Forked | Self::Replaced)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // An address.
            Self::Returned(value) if *value >= 1 << 32 => write!(f, "succeeded ({value:#x})"),
            Self::Returned(value) => write!(f, "succeeded ({value})"),
            Self::Failed(errno) => write!(f, "{errno:?}"),
            Self::Forked => f.write_str("succeeded (a new process, killed)"),
            Self::Replaced => f.write_str("succeeded (another program)"),
            Self::Killed => f.write_str("the process was killed over it"),
        }
    }
}
