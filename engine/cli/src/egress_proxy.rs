//! `mayfly egress-proxy`: the process that an engine starts for the egress of its sessions.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::process::ExitCode;

use mayfly_engine::egress_proxy::LINK;
use mayfly_guest::egress::proxy;
use nix::sys::socket::{SockType, getsockopt, sockopt};

use super::failure::Failure;

/// Serves until the engine is gone.
pub async fn run() -> Result<ExitCode, Failure> {
    let engine = link().ok_or_else(|| {
        Failure::new(
            "an engine starts the egress proxy when a session needs it; alone it is of no use",
        )
    })?;
    proxy::give_up_system_calls().map_err(Failure::ours)?;
    proxy::run(engine).await.map_err(Failure::ours)?;
    Ok(ExitCode::SUCCESS)
}

/// The link to the engine that started this process.
fn link() -> Option<OwnedFd> {
    // SAFETY: looked at only within this function; where nothing is open under this number the
    // kernel says so.
    let given = unsafe { BorrowedFd::borrow_raw(LINK) };
    if getsockopt(&given, sockopt::SockType) != Ok(SockType::SeqPacket) {
        return None;
    }
    // SAFETY: this program opens no socket of this kind, so that it was inherited, and nothing else
    // knows of it.
    Some(unsafe { OwnedFd::from_raw_fd(given.as_raw_fd()) })
}
