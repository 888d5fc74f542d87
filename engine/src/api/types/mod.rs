//! JSON of the requests about one session: commands, files, figures. What is said about sessions themselves is in
//! [`crate::service::model`].

mod background;
mod blob;
mod exec;
mod files;
mod session;

pub use background::{Background, BackgroundList, Output, Stream};
pub use blob::{Blob, Content};
pub(crate) use exec::check_signal;
pub use exec::{Exec, ExecMessage, ExecOutcome, ExecResult, SignalBody, Terminal};
pub use files::{Change, ChangeKind, Entry, FileStat, Kind, Listing, Written};
pub use session::{AttachEvent, Extend, GoldenList, GuestFigures, PagerFigures, SessionList, SessionStats, VmmFigures};
