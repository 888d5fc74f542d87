//! Forks a QEMU process that was started as a zygote. The other end is the preload library, `pager/preload/src/zygote/`.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, setsockopt, socketpair, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::command_line::fd;
use super::driver::stream;
use super::machine::QemuVmm;
use crate::qmp::QmpClient;
use crate::vmm::process::stderr_file;
use crate::vmm::{ConsoleTail, Descriptors, ForkSpec, Launched, VmmError, VmmProcess};

/// Our end of the socket on which a zygote is asked for forks.
#[derive(Debug)]
pub(super) struct ForkSocket {
    socket: OwnedFd,
    /// Device and inode of the zygote's writable disk layer.
    overlay: (u64, u64),
    /// A number under which the zygote has it open, once that was looked for.
    overlay_number: OnceLock<i32>,
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> VmmError {
    move |source| VmmError::Io { action: what, source }
}

impl ForkSocket {
    /// A pair: ours, and the one that the zygote inherits.
    pub fn pair(descriptors: &Descriptors) -> Result<(Self, OwnedFd), VmmError> {
        let no_disk = || VmmError::Fork { reason: "a zygote needs a disk".into() };
        let top = descriptors.disk.last().ok_or_else(no_disk)?;
        let file = top.file.try_clone().map(File::from).and_then(|file| file.metadata());
        let metadata = file.map_err(failed("cannot look at the disk overlay"))?;
        let make = || {
            let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
            Ok::<_, nix::Error>((ours, theirs))
        };
        let (socket, theirs) = make().map_err(|e| failed("cannot make a socket to the zygote")(e.into()))?;
        Ok((Self { socket, overlay: (metadata.dev(), metadata.ino()), overlay_number: OnceLock::new() }, theirs))
    }

    /// Asks for one fork and waits for it, at most `limit`. Blocks.
    pub fn fork(&self, zygote: u32, spec: ForkSpec, limit: std::time::Duration) -> Result<Launched, VmmError> {
        let uid = spec.confinement.uid.ok_or_else(|| VmmError::Fork { reason: "a fork needs a user".into() })?;
        let (qmp, qmp_end) = stream()?;
        let (channel, channel_end) = stream()?;
        let (console, console_end) = stream()?;
        let stderr = stderr_file().map_err(failed("cannot make a file for standard error"))?;
        let stderr_end = stderr.try_clone().map_err(failed("cannot make a file for standard error"))?;
        let overlay = self.find_overlay(zygote)?;
        let replace = [
            (2, OwnedFd::from(stderr_end)),
            (fd::QMP, qmp_end),
            (fd::CHANNEL, channel_end),
            (fd::CONSOLE, console_end),
            (overlay, spec.overlay),
        ];
        let numbers: Vec<String> = replace.iter().map(|(number, _)| number.to_string()).collect();
        let cgroups = &spec.confinement.cgroups;
        let owner = std::process::id();
        let text = format!("uid={uid},owner={owner},cgroups={},replace={}", cgroups.len(), numbers.join(":"));
        let descriptors: Vec<_> = [&spec.userfaultfd_device, &spec.handshake]
            .into_iter()
            .chain(cgroups)
            .chain(replace.iter().map(|(_, file)| file))
            .map(AsRawFd::as_raw_fd)
            .collect();
        let pid = self.exchange(&text, &descriptors, limit)?;
        let process = VmmProcess::adopt(pid, stderr)?;
        // The device state was loaded long ago; the stream for it leads nowhere.
        let (device_state, _) = stream()?;
        let vmm = Box::new(QemuVmm::new(process, QmpClient::new(qmp), device_state, None));
        Ok(Launched { vmm, channel, console: ConsoleTail::follow(console) })
    }

    fn exchange(&self, text: &str, descriptors: &[i32], limit: std::time::Duration) -> Result<u32, VmmError> {
        let refused = |reason: String| VmmError::Fork { reason };
        let limit = TimeVal::milliseconds(i64::try_from(limit.as_millis()).unwrap_or(i64::MAX));
        let send = || {
            setsockopt(&self.socket, sockopt::ReceiveTimeout, &limit)?;
            let rights = [ControlMessage::ScmRights(descriptors)];
            let bytes = [IoSlice::new(text.as_bytes())];
            sendmsg::<()>(self.socket.as_raw_fd(), &bytes, &rights, MsgFlags::MSG_NOSIGNAL, None)
        };
        send().map_err(|e| refused(format!("it takes no requests: {e}")))?;
        let mut answer = [0_u8; 256];
        let length = {
            let mut bytes = [IoSliceMut::new(&mut answer)];
            let received = recvmsg::<()>(self.socket.as_fd().as_raw_fd(), &mut bytes, None, MsgFlags::empty());
            received.map_err(|e| refused(format!("it does not answer: {e}")))?.bytes
        };
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        match answer.strip_prefix("pid ").and_then(|pid| pid.parse().ok()) {
            Some(pid) => Ok(pid),
            None if length == 0 => Err(refused("it has ended".into())),
            None => Err(refused(answer.strip_prefix("error ").unwrap_or(&answer).to_owned())),
        }
    }

    /// A number under which the zygote has its writable disk layer open; QEMU duplicates what it inherits.
    fn find_overlay(&self, zygote: u32) -> Result<i32, VmmError> {
        if let Some(number) = self.overlay_number.get() {
            return Ok(*number);
        }
        let folder = format!("/proc/{zygote}/fd");
        let entries = std::fs::read_dir(&folder).map_err(failed("cannot look at the zygote's descriptors"))?;
        let found = entries
            .flatten()
            .find(|entry| std::fs::metadata(entry.path()).is_ok_and(|m| (m.dev(), m.ino()) == self.overlay));
        let number = found.and_then(|entry| entry.file_name().to_str()?.parse().ok());
        let number = number.ok_or_else(|| VmmError::Fork { reason: "it has no writable disk".into() })?;
        Ok(*self.overlay_number.get_or_init(|| number))
    }
}
