//! Forks a QEMU process that was started as a zygote. The other end is the preload library,
//! `engine/vmm/preload/src/zygote/`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use mayfly_host::descriptors::{self, Received};
use mayfly_protocol::Printable;
use mayfly_vmm_contract::fork::{Answer, Done, ForkDescriptors, ForkRequest, MAX_ANSWER, Request};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, setsockopt, socketpair,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::command_line::fd;
use super::driver::stream;
use super::keeper::Keeper;
use super::machine::QemuVmm;
use crate::jail::Owner;
use crate::jail::ZygoteNamespace;
use crate::process::stderr_file;
use crate::qmp::QmpClient;
use crate::{ConsoleTail, Descriptors, DiskLayer, ForkSpec, Launched, VmmError, VmmProcess};

/// Our end of the socket on which a zygote is asked for forks.
#[derive(Debug)]
pub(super) struct ForkSocket {
    socket: OwnedFd,
    /// Number of the last request.
    asked: AtomicU64,
    /// Set at the first answer that did not come in time, or was none: whatever comes later belongs
    /// to no request.
    lost: AtomicBool,
    /// Device and inode of each of the zygote's disk layers, the writable one last.
    disk: Vec<(u64, u64)>,
    /// A number under which the zygote has each open, once that was looked for.
    disk_numbers: OnceLock<Vec<i32>>,
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> VmmError {
    move |cause| VmmError::Io { action: what, cause }
}

impl ForkSocket {
    /// Creates a pair: ours, and the one that the zygote inherits.
    pub fn pair(descriptors: &Descriptors) -> Result<(Self, OwnedFd), VmmError> {
        if descriptors.disk.is_empty() {
            return Err(VmmError::Fork { reason: "a zygote needs a disk".into() });
        }
        let identity = |layer: &DiskLayer| {
            let metadata = layer.file.try_clone().map(File::from)?.metadata()?;
            Ok((metadata.dev(), metadata.ino()))
        };
        let disk = descriptors.disk.iter().map(identity).collect::<io::Result<_>>();
        let disk = disk.map_err(failed("cannot look at the zygote's disk"))?;
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
                asked: AtomicU64::new(0),
                lost: AtomicBool::new(false),
                disk,
                disk_numbers: OnceLock::new(),
            },
            theirs,
        ))
    }

    /// Asks for one fork and waits for it, at most `limit`. Blocks.
    pub fn fork(
        &self,
        (zygote, namespace): (u32, Option<Arc<ZygoteNamespace>>),
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
        let (stderr, stderr_end) =
            stderr_file().map_err(failed("cannot make a file for standard error"))?;
        let layers = self.find_disk(zygote)?;
        if layers.len() != spec.disk.len() {
            return Err(VmmError::Fork { reason: "its disk has other layers".into() });
        }
        let (mut gate, gate_end) =
            UnixStream::pair().map_err(failed("cannot make a socket to the fork"))?;
        let owner = Owner::own().map_err(failed("cannot name this process to the fork"))?;
        let streams = [
            (libc::STDERR_FILENO, stderr_end.as_raw_fd()),
            (fd::QMP, qmp_end.as_raw_fd()),
            (fd::CHANNEL, channel_end.as_raw_fd()),
            (fd::CONSOLE, console_end.as_raw_fd()),
        ];
        let disk = layers.iter().copied().zip(spec.disk.iter().map(AsRawFd::as_raw_fd));
        let replace: Vec<_> = streams.into_iter().chain(disk).collect();
        let cgroups = &confinement.cgroup.files;
        let request = ForkRequest {
            number: self.next(),
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
        let done = self.exchange(&Request::Fork(request), &descriptors.into_vec(), limit)?;
        let (Done::Forked, Some(pidfd)) = done else {
            return Err(self.lost("its answer is one to another request".into()));
        };
        // The child's own copy must be the last one: when this process dies, the gate ends.
        drop(gate_end);
        // Whatever else it named is not touched.
        let process = VmmProcess::adopt(pidfd, stderr, namespace)
            .map_err(|error| self.lost(error.to_string()))?;
        let pid = process.pid();
        // One user exists in the fork's user namespace, its own (user_namespaces(7), "User and
        // group ID mappings").
        for map in ["gid_map", "uid_map"] {
            let written = std::fs::write(format!("/proc/{pid}/{map}"), format!("{uid} {uid} 1"));
            written.map_err(failed("cannot say who the fork is in its user namespace"))?;
        }
        io::Write::write_all(&mut gate, &[1]).map_err(failed("the fork has ended"))?;
        // The device state was loaded long ago; the stream for it leads nowhere.
        let (device_state, _) = stream()?;
        let (qmp, keeper) = (QmpClient::new(qmp), Some(Keeper::from(gate)));
        let vmm = Box::new(QemuVmm::new(process, qmp, device_state, keeper, None));
        Ok(Launched { vmm, channel, console: ConsoleTail::follow(console) })
    }

    /// Asks it to unmap the guest memory that it has only read, and waits, at most `limit`. Returns
    /// the number of pages. Blocks.
    pub fn unmap_clean(&self, limit: std::time::Duration) -> Result<u64, VmmError> {
        match self.exchange(&Request::Unmap { number: self.next() }, &[], limit)? {
            (Done::Unmapped { pages }, None) => Ok(pages),
            _ => Err(self.lost("its answer is one to another request".into())),
        }
    }

    /// Returns the number of the next request.
    fn next(&self) -> u64 {
        self.asked.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Takes note that the zygote can be asked no more.
    fn lost(&self, reason: String) -> VmmError {
        self.lost.store(true, Ordering::Relaxed);
        VmmError::ZygoteLost { reason }
    }

    /// Sends a request and receives what was done, with the descriptor that came beside.
    fn exchange(
        &self,
        request: &Request,
        given: &[i32],
        limit: std::time::Duration,
    ) -> Result<(Done, Option<OwnedFd>), VmmError> {
        if self.lost.load(Ordering::Relaxed) {
            return Err(self.lost("it failed before".into()));
        }
        let limit = TimeVal::milliseconds(i64::try_from(limit.as_millis()).unwrap_or(i64::MAX));
        let text = request.to_string();
        let send = || {
            setsockopt(&self.socket, sockopt::ReceiveTimeout, &limit)?;
            let rights = [ControlMessage::ScmRights(given)];
            let rights = if given.is_empty() { &[][..] } else { &rights[..] };
            let bytes = [IoSlice::new(text.as_bytes())];
            sendmsg::<()>(self.socket.as_raw_fd(), &bytes, rights, MsgFlags::MSG_NOSIGNAL, None)
        };
        send().map_err(|e| self.lost(format!("it takes no requests: {e}")))?;
        let mut answer = [0_u8; MAX_ANSWER];
        let received = descriptors::receive(&self.socket, &mut answer, true);
        let Received { length, descriptors: mut named, .. } =
            received.map_err(|e| match e.kind() {
                io::ErrorKind::WouldBlock => self.lost("it does not answer in time".into()),
                _ => self.lost(format!("it does not answer: {e}")),
            })?;
        if length == 0 {
            return Err(self.lost("it has ended".into()));
        }
        let answer = Answer::parse(&answer[..length])
            .filter(|answer| answer.number == request.number())
            .ok_or_else(|| self.lost("its answer belongs to no request".into()))?;
        match (answer.outcome, named.pop(), named.is_empty()) {
            (Ok(Done::Forked), Some(process), true) => Ok((Done::Forked, Some(process))),
            (Ok(done @ Done::Unmapped { .. }), None, _) => Ok((done, None)),
            (Ok(Done::Forked), ..) => Err(self.lost("its answer does not name one process".into())),
            (Ok(Done::Unmapped { .. }), ..) => {
                Err(self.lost("its answer names a process that is no fork".into()))
            }
            (Err(_), Some(_), _) => Err(self.lost("it refuses, and names a process".into())),
            (Err(reason), None, _) => {
                Err(VmmError::Fork { reason: Printable(&reason).to_string() })
            }
        }
    }

    /// Numbers under which the zygote has its disk layers open; QEMU duplicates what it inherits.
    fn find_disk(&self, zygote: u32) -> Result<&[i32], VmmError> {
        if let Some(numbers) = self.disk_numbers.get() {
            return Ok(numbers);
        }
        let folder = format!("/proc/{zygote}/fd");
        let entries = std::fs::read_dir(&folder)
            .map_err(failed("cannot look at the zygote's descriptors"))?;
        let open: HashMap<(u64, u64), i32> = entries
            .flatten()
            .filter_map(|entry| {
                let found = std::fs::metadata(entry.path()).ok()?;
                Some(((found.dev(), found.ino()), entry.file_name().to_str()?.parse().ok()?))
            })
            .collect();
        let numbers: Option<Vec<i32>> =
            self.disk.iter().map(|layer| open.get(layer).copied()).collect();
        let numbers = numbers
            .ok_or_else(|| VmmError::Fork { reason: "it has not all of its disk open".into() })?;
        Ok(self.disk_numbers.get_or_init(|| numbers))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::errno::Errno;
    use nix::sys::socket::{recv, send};

    use super::*;
    use crate::ProcessError;

    const LIMIT: Duration = Duration::from_secs(30);

    /// Our end, and that of a zygote.
    fn pair() -> (ForkSocket, OwnedFd) {
        let (socket, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .unwrap();
        let socket = ForkSocket {
            socket,
            asked: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            disk: Vec::new(),
            disk_numbers: OnceLock::new(),
        };
        (socket, theirs)
    }

    fn request(number: u64) -> Request {
        let replace = vec![2];
        Request::Fork(ForkRequest {
            number,
            uid: 7,
            file_bytes: 1,
            threads: 1,
            cgroups: 0,
            replace,
        })
    }

    fn receive(zygote: &OwnedFd) -> Request {
        let mut text = [0; mayfly_vmm_contract::fork::MAX_TEXT];
        let length = recv(zygote.as_raw_fd(), &mut text, MsgFlags::empty()).unwrap();
        Request::parse(&text[..length]).unwrap()
    }

    /// Answers with a process, as the preload library does.
    fn answer(zygote: &OwnedFd, number: u64, process: Option<&OwnedFd>) {
        answer_with(zygote, number, Done::Forked, process);
    }

    fn answer_with(zygote: &OwnedFd, number: u64, done: Done, process: Option<&OwnedFd>) {
        let text = Answer { number, outcome: Ok(done) }.to_string();
        let process: Vec<i32> = process.iter().map(|process| process.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&process)];
        let rights = if process.is_empty() { &[][..] } else { &rights[..] };
        let bytes = [IoSlice::new(text.as_bytes())];
        sendmsg::<()>(zygote.as_raw_fd(), &bytes, rights, MsgFlags::empty(), None).unwrap();
    }

    fn own() -> OwnedFd {
        mayfly_host::pidfd::open(std::process::id()).unwrap()
    }

    #[test]
    fn the_answer_to_a_request_is_believed() {
        let (ours, zygote) = pair();
        let process = own();
        answer(&zygote, 3, Some(&process));
        ours.exchange(&request(3), &[2], LIMIT).unwrap();
        assert_eq!(receive(&zygote), request(3));
        let refused = Answer { number: 4, outcome: Err("too many threads".into()) };
        send(zygote.as_raw_fd(), refused.to_string().as_bytes(), MsgFlags::empty()).unwrap();
        let error = ours.exchange(&request(4), &[2], LIMIT).unwrap_err();
        assert!(matches!(error, VmmError::Fork { reason } if reason == "too many threads"));
        answer(&zygote, 5, Some(&process));
        ours.exchange(&request(5), &[2], LIMIT).unwrap();
    }

    #[test]
    fn a_zygote_that_missed_its_time_is_asked_no_more() {
        let (ours, zygote) = pair();
        let error = ours.exchange(&request(1), &[2], Duration::from_millis(10)).unwrap_err();
        assert!(matches!(error, VmmError::ZygoteLost { reason } if reason.contains("in time")));
        // The answer comes after all, and with it one to the next request.
        answer(&zygote, 1, Some(&own()));
        answer(&zygote, 2, Some(&own()));
        let error = ours.exchange(&request(2), &[2], LIMIT).unwrap_err();
        assert!(matches!(error, VmmError::ZygoteLost { .. }));
        assert_eq!(receive(&zygote).number(), 1);
        let more = recv(zygote.as_raw_fd(), &mut [0; 8], MsgFlags::MSG_DONTWAIT);
        assert_eq!(more, Err(Errno::EAGAIN), "a second request was sent");
    }

    #[test]
    fn an_answer_that_belongs_to_no_request_loses_the_zygote() {
        for (number, process) in [(1, Some(own())), (3, Some(own())), (2, None)] {
            let (ours, zygote) = pair();
            answer(&zygote, number, process.as_ref());
            let error = ours.exchange(&request(2), &[2], LIMIT).unwrap_err();
            assert!(matches!(error, VmmError::ZygoteLost { .. }), "{error}");
        }
    }

    #[test]
    fn an_answer_to_another_kind_of_request_loses_the_zygote() {
        const UNMAPPED: Done = Done::Unmapped { pages: 7 };
        let own = own();
        for (done, beside, believed) in [
            (UNMAPPED, None, true),
            (UNMAPPED, Some(&own), false),
            (Done::Forked, Some(&own), false),
            (Done::Forked, None, false),
        ] {
            let (ours, zygote) = pair();
            answer_with(&zygote, 1, done, beside);
            match ours.unmap_clean(LIMIT) {
                Ok(pages) => assert!(believed && pages == 7, "{done:?}"),
                Err(error) => {
                    assert!(!believed && matches!(error, VmmError::ZygoteLost { .. }), "{error}");
                }
            }
        }
    }

    /// What a zygote could answer with: its owner, which it was given, and forks of before.
    #[tokio::test]
    async fn only_a_child_that_nobody_has_is_taken_for_a_fork() {
        let stderr = || File::create("/dev/null").unwrap();
        let adopt = |pidfd| VmmProcess::adopt(pidfd, stderr(), None);
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let named = || mayfly_host::pidfd::open(child.id()).unwrap();

        let mut fork = adopt(named()).unwrap();
        assert_eq!(fork.pid(), child.id());
        assert!(matches!(adopt(named()), Err(ProcessError::NotOurs { .. })));
        assert!(matches!(adopt(own()), Err(ProcessError::NotOurs { .. })));
        let stranger = mayfly_host::pidfd::open(1).unwrap();
        assert!(matches!(adopt(stranger), Err(ProcessError::NotOurs { .. })));
        // None of them was killed, this process among them.
        assert_eq!(child.try_wait().unwrap(), None);

        fork.kill().await.unwrap();
        assert!(child.try_wait().is_err(), "it was reaped by another");
    }
}
