//! The process group of a command.

use super::child::Child;
use crate::context::Context;
use nix::errno::Errno;
use nix::libc;
use nix::unistd::Pid;
use std::rc::Rc;

/// The process group of a command; dropping it before the command has ended kills all of it.
pub struct Group {
    /// Leader of the group.
    pub child: Child,
    /// Whether the leader was waited for.
    pub ended: bool,
    context: Rc<Context>,
}

impl Group {
    /// Creates the handle of the group that `child` leads.
    pub fn new(child: Child, context: Rc<Context>) -> Self {
        Self { child, ended: false, context }
    }

    fn id(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Signals the group, as killpg(3) does.
    pub fn signal(&self, number: i32) -> Result<(), Errno> {
        // SAFETY: killpg takes two integers. nix's wrapper refuses real-time signals.
        Errno::result(unsafe { libc::killpg(self.id().as_raw(), number) }).map(drop)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.signal(libc::SIGKILL);
            if !matches!(self.child.try_wait(), Ok(Some(_))) {
                self.context.lose(self.id());
            }
        }
    }
}
