//! Progress of long work, as the engine reports it; the CLI draws bars from it.

/// Unit that a step counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Things: packages, commands, chunks.
    Items,
}

/// Receiver of progress. Steps follow each other; a new one ends the one before.
pub trait Progress: Send + Sync {
    /// Begins a step. `total` is `None` when it cannot be known.
    fn begin(&self, step: &str, total: Option<u64>, unit: Unit);
    /// Sets the total of the step, which became known or changed; `None` leaves it as it is.
    fn total(&self, total: Option<u64>);
    /// Reports how much of the step is done, of its total.
    fn advance(&self, done: u64);
    /// Reports what is going on right now, in a line.
    fn detail(&self, line: &str);
    /// Ends the last step: all steps are done.
    fn end(&self);
}

/// Progress that reports nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &str, _: Option<u64>, _: Unit) {}
    fn total(&self, _: Option<u64>) {}
    fn advance(&self, _: u64) {}
    fn detail(&self, _: &str) {}
    fn end(&self) {}
}
