//! The thread that talks to clients: requests, and the end of connections. It has nothing to do
//! with VMMs, which could make it wait.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        socket::{
            AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, accept4, shutdown, socketpair,
        },
    },
    unistd::{Uid, geteuid},
};

use crate::{
    answers::NOT_INTACT,
    config::PagerConfig,
    fill::FillPool,
    image::Image,
    mailbox::Order,
    protocol::{
        AttachRequest, FailureKind, ListenRequest, MAX_REPLY, MAX_REQUEST, Message, Mode,
        RECORDING_PAGE, Reply, Request, parse_request,
    },
    session::{Session, Waiter, sink_to},
    source::SourceResolver,
    stats::HostStats,
    threads::Threads,
    vmm::Vmm,
    wire,
};

/// How often the page caches in use are checked for pages the pager did not place.
const CHECK_EVERY: Duration = Duration::from_millis(100);
/// Most images listed by `host_stats`, so that the reply stays one message.
const IMAGES_LISTED: usize = 256;

const LISTENER: u64 = u64::MAX;

pub(crate) struct Control {
    epoll: Epoll,
    listener: OwnedFd,
    connections: HashMap<u64, Connection>,
    next_id: u64,
    pool: Arc<FillPool>,
    threads: Arc<Threads>,
    resolver: Arc<dyn SourceResolver>,
    config: PagerConfig,
    stop: bool,
}

struct Connection {
    socket: Arc<OwnedFd>,
    session: Option<Arc<Session>>,
}

/// A reply with its descriptors.
type Answered = Result<(Reply, Vec<OwnedFd>), String>;

impl Control {
    pub fn new(
        listener: OwnedFd,
        pool: Arc<FillPool>,
        threads: Arc<Threads>,
        resolver: Arc<dyn SourceResolver>,
        config: PagerConfig,
    ) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        Ok(Self {
            epoll,
            listener,
            connections: HashMap::new(),
            next_id: 1,
            pool,
            threads,
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
            let timeout = if sessions > 0 || !self.threads.is_empty() {
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
                match event.data() {
                    LISTENER => self.accept(),
                    id => self.on_client(id),
                }
            }
            if sessions > 0 {
                self.check_images();
            }
            if !self.connections.is_empty() || !self.threads.is_empty() {
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
        self.connections.values().filter(|c| c.session.is_some()).count()
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
        if self.epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, id)).is_ok() {
            self.connections.insert(id, Connection { socket: Arc::new(socket), session: None });
        }
    }

    fn on_client(&mut self, id: u64) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        let socket = Arc::clone(&connection.socket);
        let mut buf = vec![0; MAX_REQUEST];
        let got = match wire::recv(socket.as_fd(), &mut buf, wire::RecvFlags::DONTWAIT) {
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
        let session = self.connections.get(&id).and_then(|c| c.session.as_ref());
        session.ok_or_else(|| format!("no session {id} is attached"))
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
        if connection.session.is_some() {
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
        let session =
            Session::new(id, request, Arc::clone(&image), Arc::clone(&cache.counters), sink);
        session.map(Arc::new).map_err(|errno| {
            cache.release(&image);
            format!("cannot make the session: {errno}")
        })
    }

    /// Starts the thread of a session and gives the session to its connection; on an error nothing
    /// of it stays.
    fn install(
        &mut self,
        session: &Arc<Session>,
        prepared: io::Result<(Vmm, Option<OwnedFd>, Option<OwnedFd>)>,
    ) -> Result<(Reply, Vec<OwnedFd>), io::Error> {
        let installed = prepared.and_then(|(vmm, ram, handshake)| {
            self.threads.start(session, vmm)?;
            let reply = attached_reply(session, ram.is_some(), handshake.is_some());
            Ok((reply, ram.into_iter().chain(handshake).collect()))
        });
        match self.connections.get_mut(&session.id) {
            Some(connection) if installed.is_ok() => {
                connection.session = Some(Arc::clone(session));
            }
            _ => self.pool.cache.release(&session.image),
        }
        installed
    }

    fn attach(&mut self, id: u64, request: &AttachRequest) -> Answered {
        let session = self.new_session(id, request)?;
        let prepared = (|| {
            let (ours, theirs) =
                socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
            Ok((Vmm::at_socket(ours), ram_file(&session.image, request.mode)?, Some(theirs)))
        })();
        self.install(&session, prepared)
            .map_err(|error| format!("cannot wait for a handshake: {error}"))
    }

    fn listen(&mut self, id: u64, request: &ListenRequest) -> Answered {
        let session = self.new_session(id, &request.attach)?;
        let owner = request.owner.map_or_else(geteuid, Uid::from_raw);
        let prepared = (|| {
            let vmm = Vmm::at_path(&request.path, owner)?;
            Ok((vmm, ram_file(&session.image, request.attach.mode)?, None))
        })();
        self.install(&session, prepared).map_err(|error| {
            let path = request.path.display();
            format!(
                "cannot listen on {path}: {error}: the path must not exist and its directory must"
            )
        })
    }

    /// Fails the sessions of images that hold pages the pager did not place.
    fn check_images(&self) {
        for session in self.connections.values().filter_map(|c| c.session.as_ref()) {
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
        // The session's thread has a copy, for as long as it runs: the owner is to learn now.
        let _ = shutdown(connection.socket.as_raw_fd(), Shutdown::Both);
        if let Some(session) = connection.session {
            session.mailbox.give(Order::Leave);
            self.pool.cache.release(&session.image);
            tracing::debug!(session = %session.name, left = session.image.sessions.load(Ordering::Relaxed), "detached");
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
