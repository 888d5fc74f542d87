//! Progress of a build: which step runs and how far it is.

/// The steps of a build, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Downloading, unpacking and configuring the packages; counted in package operations.
    Packages,
    /// Placing our files, services and preloaded images in the root directory.
    Configure,
    /// Extracting the kernel and writing the initramfs.
    Kernel,
    /// Writing the ext4 disk image; the total is in bytes.
    Disk,
}

impl Step {
    /// Returns a short name for a progress line.
    pub fn name(self) -> &'static str {
        match self {
            Step::Packages => "packages",
            Step::Configure => "configure",
            Step::Kernel => "kernel",
            Step::Disk => "disk image",
        }
    }
}

/// Receiver of the progress of a build. Called from the building thread; must not block for long.
pub trait Progress {
    /// Reports that `step` began. `total` is the amount of work when it is known already.
    fn started(&self, step: Step, total: Option<u64>);
    /// Reports that `done` units of `step` are complete; `total` may become known late or grow.
    fn advanced(&self, step: Step, done: u64, total: Option<u64>, what: &str);
    /// Reports that `step` is complete.
    fn finished(&self, step: Step);
}

/// Discards all progress.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn started(&self, _: Step, _: Option<u64>) {}
    fn advanced(&self, _: Step, _: u64, _: Option<u64>, _: &str) {}
    fn finished(&self, _: Step) {}
}
