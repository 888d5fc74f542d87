//! The thread that talks to clients and VMMs: requests, handshakes, the end of connections and
//! processes.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        socket::{AddressFamily, MsgFlags, SockFlag, SockType, accept4, socketpair},
    },
    unistd::{Uid, chown, geteuid},
};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::{
    config::PagerConfig,
    faults::{FaultLoop, NOT_INTACT},
    fill::FillPool,
    handshake::{HandshakeError, Receiver},
    image::Image,
    leaving::Leaving,
    listen::{errno_of, listen_at},
    protocol::{
        AttachRequest, FailureKind, ListenRequest, MAX_REPLY, MAX_REQUEST, Message, Mode,
        RECORDING_PAGE, Reply, Request, parse_request,
    },
    session::{Session, Waiter, sink_to},
    source::SourceResolver,
    stats::HostStats,
    wire,
};

/// How often the page caches in use are checked for pages the pager did not place.
const CHECK_EVERY: Duration = Duration::from_millis(100);
/// Most images listed by `host_stats`, so that the reply stays one message.
const IMAGES_LISTED: usize = 256;

const LISTENER: u64 = u64::MAX;

/// What of a connection has become ready; the low two bits of an epoll token.
#[derive(Clone, Copy)]
enum Part {
    Client = 0,
    Handshake = 1,
    Rendezvous = 2,
    Vmm = 3,
}

fn token(connection: u64, part: Part) -> u64 {
    connection << 2 | part as u64
}

pub(crate) struct Control {
    epoll: Epoll,
    listener: OwnedFd,
    connections: HashMap<u64, Connection>,
    leaving: Leaving,
    next_id: u64,
    pool: Arc<FillPool>,
    faults: Arc<FaultLoop>,
    resolver: Arc<dyn SourceResolver>,
    config: PagerConfig,
    stop: bool,
}

struct Connection {
    socket: Arc<OwnedFd>,
    attached: Option<Attached>,
}

/// The session of a connection, and what is left to do until its VMM is there.
struct Attached {
    session: Arc<Session>,
    /// Where the handshake arrives; its end tells of the VMM's end when the socket was handed to
    /// the VMM.
    handshake: Option<OwnedFd>,
    receiver: Receiver,
    rendezvous: Option<Rendezvous>,
    /// The VMM's process, when it connected by path: Firecracker closes its socket after the
    /// handshake.
    vmm: Option<OwnedFd>,
}

/// A socket path where a VMM is to connect. Removed on drop.
struct Rendezvous {
    listener: OwnedFd,
    path: PathBuf,
    owner: Uid,
}

impl Drop for Rendezvous {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A reply with its descriptors.
type Answered = Result<(Reply, Vec<OwnedFd>), String>;

impl Control {
    pub fn new(
        listener: OwnedFd,
        pool: Arc<FillPool>,
        faults: Arc<FaultLoop>,
        resolver: Arc<dyn SourceResolver>,
        config: PagerConfig,
    ) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        let (connections, leaving) = (HashMap::new(), Leaving::new(Arc::clone(&faults)));
        Ok(Self {
            epoll,
            listener,
            connections,
            leaving,
            next_id: 1,
            pool,
            faults,
            resolver,
            config,
            stop: false,
        })
    }

    /// Serves until the end is asked for or due.
    pub fn run(mut self) -> io::Result<()> {
        let mut ready = [EpollEvent::empty(); 64];
        let mut idle_since = Instant::now();
        while !self.stop {
            let sessions = self.sessions();
            let timeout = if sessions > 0 || !self.leaving.is_empty() {
                Some(CHECK_EVERY)
            } else if self.connections.is_empty() {
                self.config.idle_exit.map(|limit| limit.saturating_sub(idle_since.elapsed()))
            } else {
                None
            };
            let timeout = timeout.map_or(EpollTimeout::NONE, |t| {
                EpollTimeout::try_from(t.max(Duration::from_millis(1))).unwrap_or(EpollTimeout::MAX)
            });
            let count = match self.epoll.wait(&mut ready, timeout) {
                Err(Errno::EINTR) => 0,
                other => other?,
            };
            for event in &ready[..count] {
                self.dispatch(*event);
            }
            if sessions > 0 {
                self.check_images();
            }
            self.leaving.see_off();
            if !self.connections.is_empty() || !self.leaving.is_empty() {
                idle_since = Instant::now();
            } else if self.config.idle_exit.is_some_and(|limit| idle_since.elapsed() >= limit) {
                tracing::info!("no connection for the idle time, leaving");
                break;
            }
        }
        let ids: Vec<u64> = self.connections.keys().copied().collect();
        for id in ids {
            self.close(id);
        }
        Ok(())
    }

    fn sessions(&self) -> usize {
        self.connections.values().filter(|c| c.attached.is_some()).count()
    }

    fn dispatch(&mut self, event: EpollEvent) {
        if event.data() == LISTENER {
            return self.accept();
        }
        let id = event.data() >> 2;
        match event.data() & 3 {
            0 => self.on_client(id),
            1 => self.on_handshake(id),
            2 => self.on_rendezvous(id),
            _ => self.on_vmm_exit(id),
        }
    }

    fn watch(&self, fd: impl AsFd, connection: u64, part: Part) -> nix::Result<()> {
        self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token(connection, part)))
    }

    fn accept(&mut self) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = match accept4(self.listener.as_raw_fd(), flags) {
            // SAFETY: a descriptor just made for this process.
            Ok(raw) => unsafe { OwnedFd::from_raw_fd(raw) },
            Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM) => {
                tracing::error!(
                    "no descriptor left for a new connection; it waits until another closes"
                );
                return std::thread::sleep(Duration::from_millis(10));
            }
            Err(_) => return,
        };
        match wire::peer(socket.as_fd()) {
            Ok(peer) if peer.uid() == 0 || peer.uid() == geteuid().as_raw() => {}
            Ok(peer) => {
                return tracing::warn!(
                    uid = peer.uid(),
                    pid = peer.pid(),
                    "connection of another user refused"
                );
            }
            Err(_) => return,
        }
        let id = self.next_id;
        self.next_id += 1;
        if self.watch(&socket, id, Part::Client).is_ok() {
            self.connections.insert(id, Connection { socket: Arc::new(socket), attached: None });
        }
    }

    fn on_client(&mut self, id: u64) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        let socket = Arc::clone(&connection.socket);
        let mut buf = vec![0; MAX_REQUEST];
        let got = match wire::recv(socket.as_fd(), &mut buf, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN) => return,
            Err(_) => return self.close(id),
            Ok(got) if got.len == 0 => return self.close(id),
            Ok(got) => got,
        };
        let answered = if got.truncated {
            Err(format!("request is longer than {MAX_REQUEST} bytes"))
        } else {
            parse_request(&buf[..got.len]).and_then(|request| self.answer(id, request))
        };
        if !reply(socket.as_fd(), answered) {
            self.close(id);
        }
    }

    fn answer(&mut self, id: u64, request: Request) -> Answered {
        let plain = |reply| Ok((reply, Vec::new()));
        let cache = Arc::clone(&self.pool.cache);
        match request {
            Request::Attach { attach } => self.attach(id, &attach),
            Request::Listen { listen } => self.listen(id, &listen),
            Request::Stats { id: of } => {
                let session = self.session(of.unwrap_or(id))?;
                if !session.image.is_intact() {
                    session.fail(FailureKind::Tampered, NOT_INTACT);
                }
                plain(Reply::Stats { stats: Box::new(session.stats()) })
            }
            Request::Recording { id: of, from } => {
                let session = self.session(of.unwrap_or(id))?;
                let from = usize::try_from(from).unwrap_or(usize::MAX);
                let (chunks, total) = session
                    .recording(from, RECORDING_PAGE)
                    .ok_or("the session does not record: attach it with record = true")?;
                plain(Reply::Recording { chunks, total: total as u64 })
            }
            Request::Ping {} => plain(Reply::Pong {
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                sessions: self.sessions() as u64,
            }),
            Request::HostStats {} => plain(Reply::HostStats { stats: Box::new(self.host_stats()) }),
            Request::Evict { bytes } => {
                let mut leftovers = Vec::new();
                let bytes = cache.evict(bytes, &mut leftovers);
                self.pool.settle(leftovers);
                plain(Reply::Freed { bytes })
            }
            Request::Forget { golden } => match cache.forget(&golden) {
                Ok(bytes) => plain(Reply::Freed { bytes }),
                Err(users) => Err(format!(
                    "golden {golden} is in use by {users} sessions: discard them first"
                )),
            },
            Request::Shutdown { force } => {
                let sessions = self.sessions();
                if sessions > 0 && !force {
                    return Err(format!(
                        "{sessions} sessions are attached: discard them first, or force the end"
                    ));
                }
                self.stop = true;
                plain(Reply::Bye {})
            }
        }
    }

    fn session(&self, id: u64) -> Result<&Arc<Session>, String> {
        let attached = self.connections.get(&id).and_then(|c| c.attached.as_ref());
        attached.map(|a| &a.session).ok_or_else(|| format!("no session {id} is attached"))
    }

    fn host_stats(&self) -> HostStats {
        let cache = &self.pool.cache;
        let images = cache.images();
        HostStats {
            counters: cache.counters.snapshot(),
            resident_bytes: cache.resident(),
            budget_bytes: cache.budget(),
            sessions: self.sessions() as u64,
            image_count: images.len() as u64,
            images: images.iter().take(IMAGES_LISTED).map(|i| i.stats()).collect(),
        }
    }

    /// Makes the session of a connection, without a VMM yet.
    fn new_session(&self, id: u64, request: &AttachRequest) -> Result<Arc<Session>, String> {
        let connection = self.connections.get(&id).ok_or("the connection is gone")?;
        if connection.attached.is_some() {
            return Err("this connection has a session already: open another one".to_owned());
        }
        let golden = &request.golden;
        let opened =
            self.resolver.open(golden).map_err(|e| format!("cannot open golden {golden}: {e}"))?;
        let cache = &self.pool.cache;
        let image = cache.acquire(golden, opened, request.record).map_err(|e| e.to_string())?;
        if self.config.prefetch && !request.record {
            self.pool.prefetch(&image);
        }
        let sink = sink_to(Arc::clone(&connection.socket));
        let (name, counters) = (request.session.clone(), Arc::clone(&cache.counters));
        Ok(Arc::new(Session::new(id, name, image, request.mode, request.record, counters, sink)))
    }

    /// Puts a session and what its VMM will come through in place; on an error nothing of it stays.
    fn install(
        &mut self,
        id: u64,
        session: Arc<Session>,
        handshake: Option<OwnedFd>,
        rendezvous: Option<Rendezvous>,
    ) {
        let attached =
            Attached { session, handshake, receiver: Receiver::default(), rendezvous, vmm: None };
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.attached = Some(attached);
        }
    }

    fn attach(&mut self, id: u64, request: &AttachRequest) -> Answered {
        let session = self.new_session(id, request)?;
        let prepared = (|| -> io::Result<_> {
            let (ours, theirs) =
                socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
            self.watch(&ours, id, Part::Handshake)?;
            Ok((ours, ram_file(&session.image, request.mode)?, theirs))
        })();
        match prepared {
            Ok((ours, ram, theirs)) => {
                let attached = attached_reply(&session, ram.is_some(), true);
                self.install(id, session, Some(ours), None);
                Ok((attached, ram.into_iter().chain([theirs]).collect()))
            }
            Err(error) => {
                self.pool.cache.release(&session.image);
                Err(format!("cannot make the handshake socket: {error}"))
            }
        }
    }

    fn listen(&mut self, id: u64, request: &ListenRequest) -> Answered {
        let session = self.new_session(id, &request.attach)?;
        let owner = request.owner.map_or_else(geteuid, Uid::from_raw);
        let prepared = (|| -> nix::Result<_> {
            let listener = listen_at(&request.path, SockType::Stream)?;
            let rendezvous = Rendezvous { listener, path: request.path.clone(), owner };
            chown(&request.path, Some(owner), None)?;
            self.watch(&rendezvous.listener, id, Part::Rendezvous)?;
            Ok((
                rendezvous,
                ram_file(&session.image, request.attach.mode).map_err(|error| errno_of(&error))?,
            ))
        })();
        match prepared {
            Ok((rendezvous, ram)) => {
                let attached = attached_reply(&session, ram.is_some(), false);
                self.install(id, session, None, Some(rendezvous));
                Ok((attached, ram.into_iter().collect()))
            }
            Err(errno) => {
                self.pool.cache.release(&session.image);
                let path = request.path.display();
                Err(format!(
                    "cannot listen on {path}: {errno}: the path must not exist and its directory must"
                ))
            }
        }
    }

    /// A VMM connects by path.
    fn on_rendezvous(&mut self, id: u64) {
        let Some(attached) = self.connections.get_mut(&id).and_then(|c| c.attached.as_mut()) else {
            return;
        };
        let Some(rendezvous) = &attached.rendezvous else {
            return;
        };
        let Ok(raw) = accept4(rendezvous.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) else {
            return;
        };
        // SAFETY: a descriptor just made for this process.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        let Ok(peer) = wire::peer(socket.as_fd()) else {
            return;
        };
        if peer.uid() != rendezvous.owner.as_raw() && peer.uid() != 0 {
            return tracing::warn!(uid = peer.uid(), "handshake of another user refused");
        }
        // Readable once the process has ended.
        let vmm =
            Pid::from_raw(peer.pid()).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let watch = |fd: BorrowedFd<'_>, part| {
            self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token(id, part)))
        };
        let watched = watch(socket.as_fd(), Part::Handshake)
            .and_then(|()| vmm.as_ref().map_or(Ok(()), |vmm| watch(vmm.as_fd(), Part::Vmm)));
        if let Err(errno) = watched {
            return attached
                .session
                .fail(FailureKind::Pager, &format!("cannot watch the VMM: {errno}"));
        }
        attached.rendezvous = None;
        attached.handshake = Some(socket);
        attached.vmm = vmm;
    }

    fn on_handshake(&mut self, id: u64) {
        let Some(attached) = self.connections.get_mut(&id).and_then(|c| c.attached.as_mut()) else {
            return self.leaving.vmm_ended(id);
        };
        let Some(socket) = &attached.handshake else {
            return;
        };
        let session = Arc::clone(&attached.session);
        if session.is_connected() {
            // Nothing may come after the handshake but the end.
            let mut byte = [0];
            match wire::recv(socket.as_fd(), &mut byte, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EAGAIN) => return,
                Ok(got) if got.len > 0 => {
                    session.fail(FailureKind::Protocol, "the VMM sent more than one handshake");
                }
                _ => {
                    session
                        .fail(FailureKind::VmmGone, "the VMM is gone: its handshake socket closed");
                    self.faults.drain(&session);
                }
            }
            attached.handshake = None;
            return;
        }
        match attached.receiver.receive(socket.as_fd(), session.image.len()) {
            Ok(None) => {}
            Ok(Some(handshake)) => {
                let served =
                    session.connect(handshake).and_then(|uffd| self.faults.watch(&session, uffd));
                if let Err(errno) = served {
                    session.fail(
                        FailureKind::Pager,
                        &format!("cannot watch the VMM's userfaultfd: {errno}"),
                    );
                }
                if attached.vmm.is_some() {
                    attached.handshake = None;
                }
            }
            Err(error) => {
                let kind = match error {
                    HandshakeError::Ended(_) => FailureKind::VmmGone,
                    _ => FailureKind::Handshake,
                };
                session.fail(kind, &error.to_string());
                attached.handshake = None;
            }
        }
    }

    fn on_vmm_exit(&mut self, id: u64) {
        let Some(attached) = self.connections.get_mut(&id).and_then(|c| c.attached.as_mut()) else {
            return self.leaving.vmm_ended(id);
        };
        attached.vmm = None;
        attached.session.fail(FailureKind::VmmGone, "the VMM is gone: its process has ended");
        self.faults.drain(&attached.session);
    }

    /// Fails the sessions of images that hold pages the pager did not place.
    fn check_images(&self) {
        for attached in self.connections.values().filter_map(|c| c.attached.as_ref()) {
            let session = &attached.session;
            if !session.is_failed() && !session.image.is_intact() {
                session.fail(FailureKind::Tampered, NOT_INTACT);
            }
        }
    }

    /// Ends a connection and with it its session.
    fn close(&mut self, id: u64) {
        let Some(connection) = self.connections.remove(&id) else {
            return;
        };
        let _ = self.epoll.delete(&connection.socket);
        if let Some(Attached { session, handshake, vmm, .. }) = connection.attached {
            self.faults.forget(&session);
            self.pool.cache.release(&session.image);
            tracing::debug!(session = %session.name, left = session.image.sessions.load(Ordering::Relaxed), "detached");
            self.leaving.add(id, session, vmm.or(handshake));
        }
    }
}

fn attached_reply(session: &Session, ram_file: bool, handshake: bool) -> Reply {
    let (ram_bytes, chunk_bytes) = (session.image.len(), session.image.chunk_size());
    Reply::Attached { id: session.id, ram_bytes, chunk_bytes, ram_file, handshake }
}

fn ram_file(image: &Image<Waiter>, mode: Mode) -> io::Result<Option<OwnedFd>> {
    match mode {
        Mode::Shared => Ok(Some(image.file.read_only()?.into())),
        Mode::Copy => Ok(None),
    }
}

/// Sends a reply. `false`: the client does not read, or is gone.
fn reply(socket: BorrowedFd<'_>, answered: Answered) -> bool {
    let (message, fds) = match answered {
        Ok((reply, fds)) => (Message::Reply(reply), fds),
        Err(error) => (Message::Error { error }, Vec::new()),
    };
    let Ok(json) = serde_json::to_vec(&message) else {
        return false;
    };
    debug_assert!(json.len() <= MAX_REPLY);
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    wire::send(socket, &json, &fds, MsgFlags::MSG_DONTWAIT).is_ok()
}
