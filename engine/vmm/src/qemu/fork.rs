//! Forks a QEMU process that was started as a zygote. The other end is the preload library,
//! `engine/vmm/preload/src/zygote/`.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use mayfly_protocol::Printable;
use mayfly_vmm_contract::fork::{ForkDescriptors, ForkRequest, REFUSED};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, setsockopt, socketpair, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::command_line::fd;
use super::driver::stream;
use super::machine::QemuVmm;
use crate::jail::Owner;
use crate::process::stderr_file;
use crate::qmp::QmpClient;
use crate::{ConsoleTail, Descriptors, ForkSpec, Launched, VmmError, VmmProcess};

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
    move |cause| VmmError::Io { action: what, cause }
}

impl ForkSocket {
    /// Creates a pair: ours, and the one that the zygote inherits.
    pub fn pair(descriptors: &Descriptors) -> Result<(Self, OwnedFd), VmmError> {
        let no_disk = || VmmError::Fork { reason: "a zygote needs a disk".into() };
        let top = descriptors.disk.last().ok_or_else(no_disk)?;
        let file = top.file.try_clone().map(File::from).and_then(|file| file.metadata());
        let metadata = file.map_err(failed("cannot look at the disk overlay"))?;
        let make = || {
            let (ours, theirs) =
                socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
            Ok::<_, nix::Error>((ours, theirs))
        };
        let (socket, theirs) =
            make().map_err(|e| failed("cannot make a socket to the zygote")(e.into()))?;
        Ok((
            Self {
                socket,
                overlay: (metadata.dev(), metadata.ino()),
                overlay_number: OnceLock::new(),
            },
            theirs,
        ))
    }

    /// Asks for one fork and waits for it, at most `limit`. Blocks.
    pub fn fork(
        &self,
        zygote: u32,
        spec: &ForkSpec,
        limit: std::time::Duration,
    ) -> Result<Launched, VmmError> {
        let confinement = &spec.confinement;
        let uid = confinement
            .uid
            .ok_or_else(|| VmmError::Fork { reason: "a fork needs a user".into() })?;
        let (qmp, qmp_end) = stream()?;
        let (channel, channel_end) = stream()?;
        let (console, console_end) = stream()?;
        let stderr = stderr_file().map_err(failed("cannot make a file for standard error"))?;
        let stderr_end =
            stderr.try_clone().map_err(failed("cannot make a file for standard error"))?;
        let overlay = self.find_overlay(zygote)?;
        let (gate_end, mut gate) = io::pipe().map_err(failed("cannot make a pipe to the fork"))?;
        let owner = Owner::own().map_err(failed("cannot name this process to the fork"))?;
        let replace = [
            (libc::STDERR_FILENO, stderr_end.as_raw_fd()),
            (fd::QMP, qmp_end.as_raw_fd()),
            (fd::CHANNEL, channel_end.as_raw_fd()),
            (fd::CONSOLE, console_end.as_raw_fd()),
            (overlay, spec.overlay.as_raw_fd()),
        ];
        let cgroups = &confinement.cgroup.files;
        let request = ForkRequest {
            uid,
            file_bytes: confinement.file_bytes,
            threads: confinement.threads.into(),
            cgroups: cgroups.len(),
            replace: replace.iter().map(|(number, _)| *number).collect(),
        };
        let descriptors = ForkDescriptors {
            userfaultfd_device: spec.userfaultfd_device.as_raw_fd(),
            handshake: spec.handshake.as_raw_fd(),
            owner: owner.as_raw_fd(),
            gate: gate_end.as_raw_fd(),
            cgroups: cgroups.iter().map(AsRawFd::as_raw_fd).collect(),
            replace: replace.iter().map(|(_, file)| *file).collect(),
        };
        let pidfd = self.exchange(&request.to_string(), &descriptors.into_vec(), limit)?;
        // The child's own copy must be the last one: when this process dies, the gate ends.
        drop(gate_end);
        let pid = pid_of(&pidfd).map_err(failed("cannot tell the fork's process id"))?;
        let process = VmmProcess::adopt(pid, pidfd, stderr)?;
        // One user exists in the fork's user namespace, its own (user_namespaces(7), "User and
        // group ID mappings").
        for map in ["gid_map", "uid_map"] {
            let written = std::fs::write(format!("/proc/{pid}/{map}"), format!("{uid} {uid} 1"));
            written.map_err(failed("cannot say who the fork is in its user namespace"))?;
        }
        io::Write::write_all(&mut gate, &[1]).map_err(failed("the fork has ended"))?;
        // The device state was loaded long ago; the stream for it leads nowhere.
        let (device_state, _) = stream()?;
        let vmm = Box::new(QemuVmm::new(process, QmpClient::new(qmp), device_state, None));
        Ok(Launched { vmm, channel, console: ConsoleTail::follow(console) })
    }

    /// Sends a request and receives the descriptor of the process that was made for it.
    fn exchange(
        &self,
        text: &str,
        descriptors: &[i32],
        limit: std::time::Duration,
    ) -> Result<OwnedFd, VmmError> {
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
        let (length, process) = {
            let mut bytes = [IoSliceMut::new(&mut answer)];
            let mut space = nix::cmsg_space!([i32; 1]);
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let received =
                recvmsg::<()>(self.socket.as_raw_fd(), &mut bytes, Some(&mut space), flags);
            let received = received.map_err(|e| refused(format!("it does not answer: {e}")))?;
            let mut process = None;
            for message in received.cmsgs().into_iter().flatten() {
                if let ControlMessageOwned::ScmRights(sent) = message {
                    // SAFETY: descriptors that have just been received are this process's own, and
                    // nobody else's.
                    process =
                        sent.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).next_back();
                }
            }
            (received.bytes, process)
        };
        match process {
            Some(process) => Ok(process),
            None if length == 0 => Err(refused("it has ended".into())),
            None => {
                let answer = String::from_utf8_lossy(&answer[..length]);
                Err(refused(Printable(answer.strip_prefix(REFUSED).unwrap_or(&answer)).to_string()))
            }
        }
    }

    /// A number under which the zygote has its writable disk layer open; QEMU duplicates what it
    /// inherits.
    fn find_overlay(&self, zygote: u32) -> Result<i32, VmmError> {
        if let Some(number) = self.overlay_number.get() {
            return Ok(*number);
        }
        let folder = format!("/proc/{zygote}/fd");
        let entries = std::fs::read_dir(&folder)
            .map_err(failed("cannot look at the zygote's descriptors"))?;
        let found = entries.flatten().find(|entry| {
            std::fs::metadata(entry.path()).is_ok_and(|m| (m.dev(), m.ino()) == self.overlay)
        });
        let number = found.and_then(|entry| entry.file_name().to_str()?.parse().ok());
        let number =
            number.ok_or_else(|| VmmError::Fork { reason: "it has no writable disk".into() })?;
        Ok(*self.overlay_number.get_or_init(|| number))
    }
}

/// The id of the process behind a descriptor, as this process sees it (proc_pid_fdinfo(5), `Pid`).
fn pid_of(pidfd: &OwnedFd) -> io::Result<u32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse::<i64>().ok());
    // 0 and -1 stand for a process in another PID namespace, and for one that has ended.
    pid.and_then(|pid| u32::try_from(pid).ok())
        .filter(|pid| *pid > 0)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it has ended already"))
}
