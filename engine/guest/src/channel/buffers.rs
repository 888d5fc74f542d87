//! What a guest can make the owner of its channel hold.

use std::fmt;

/// Bytes that are set aside until this is dropped.
pub trait Aside: fmt::Debug + Send + Sync {
    /// Sets `more` bytes aside; false, and nothing has changed, when there are not so many left.
    fn grow(&mut self, more: usize) -> bool;
}

/// Bytes that are set aside, whoever counts them.
pub type SetAside = Box<dyn Aside>;

/// The bytes that the owner of a channel is ready to hold for its guest. The channel sets aside what
/// the guest may send unasked on each stream that is opened.
pub trait Buffers: fmt::Debug + Send + Sync {
    /// Sets `bytes` aside; `None` when there are not so many left. Does not wait.
    fn set_aside(&self, bytes: usize) -> Option<SetAside>;
}
