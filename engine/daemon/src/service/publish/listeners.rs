//! The listeners of one session, and what they carry.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::service::live::LiveSession;
use crate::service::shares::{Account, Share};

/// Most ports of a session.
const MAX_LISTENERS: usize = 64;
/// Most ports that are shown, those that were not opened among them.
const MAX_SHOWN: usize = 128;
/// Most connections of a session at a time; more wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 128;
/// Lower ports are those of the host's own services (`ip_unprivileged_port_start` of ip(7)).
const LOWEST: u16 = 1024;
/// Pause after a failed accept(2), which out of descriptors fails again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The ports, each with the reason why it is not open, where that is so.
pub(super) type Shown = Arc<Mutex<BTreeMap<u16, Option<String>>>>;

/// The listeners of one session.
pub(super) struct Listeners {
    address: Ipv4Addr,
    account: Account,
    session: Weak<LiveSession>,
    shown: Shown,
    open: HashMap<u16, Listener>,
    places: Arc<Semaphore>,
}

/// One that listens; it closes, with its connections, when this is dropped.
struct Listener {
    task: AbortOnDropHandle<()>,
    _share: Share,
}

impl Listener {
    /// Closes it before this returns, so that its port can be had again.
    async fn close(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

impl Listeners {
    pub fn new(
        address: Ipv4Addr,
        account: Account,
        session: Weak<LiveSession>,
        shown: Shown,
    ) -> Self {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        Self { address, account, session, shown, open: HashMap::new(), places }
    }

    /// Listens on these ports and no others, as far as that can be.
    pub async fn set(&mut self, ports: &BTreeSet<u16>) {
        let closed: Vec<_> = self.open.extract_if(|port, _| !ports.contains(port)).collect();
        for (_, listener) in closed {
            listener.close().await;
        }
        let mut shown = BTreeMap::new();
        for port in ports.iter().copied().take(MAX_SHOWN) {
            let error = match self.open.contains_key(&port) {
                true => None,
                false => self.listen(port).await.err(),
            };
            shown.insert(port, error);
        }
        *self.shown.lock() = shown;
    }

    async fn listen(&mut self, port: u16) -> Result<(), String> {
        if port < LOWEST {
            return Err(format!(
                "ports below {LOWEST} are for services of the host: publish another one"
            ));
        }
        if self.open.len() >= MAX_LISTENERS {
            return Err(format!(
                "{MAX_LISTENERS} ports of the session are open, which is the most"
            ));
        }
        let share = self.account.take(1).ok_or("the tenant has as many connections as it may")?;
        let listener = TcpListener::bind((self.address, port))
            .await
            .map_err(|error| format!("cannot listen on {}:{port}: {error}", self.address))?;
        let (session, account) = (Weak::clone(&self.session), self.account.clone());
        let serve = serve(listener, port, session, account, Arc::clone(&self.places));
        let task = AbortOnDropHandle::new(tokio::spawn(serve));
        self.open.insert(port, Listener { task, _share: share });
        Ok(())
    }
}

async fn serve(
    listener: TcpListener,
    port: u16,
    session: Weak<LiveSession>,
    account: Account,
    places: Arc<Semaphore>,
) {
    // Dropped with this task, and then ends what it carries.
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((client, _)) => {
                // What is over has its listeners closed by whoever holds them.
                let Some(session) = session.upgrade() else { continue };
                // A client that there is no room for is closed.
                let Some(share) = account.take(1) else { continue };
                connections.spawn(async move {
                    let _held = (place, share);
                    carry(&session, client, port).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept on a published port");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn carry(session: &LiveSession, mut client: TcpStream, port: u16) {
    let _active = session.active();
    // The bytes come in pieces of the channel's making; the next one must not wait for an
    // acknowledgement.
    let _ = client.set_nodelay(true);
    let carried = async {
        let mut stream = session.session().guest().connect_tcp(port).await?;
        tokio::io::copy_bidirectional(&mut client, &mut stream).await?;
        Ok::<_, mayfly_guest::channel::ChannelError>(())
    };
    if let Err(error) = carried.await {
        tracing::debug!(session = session.id(), port, %error, "connection to a published port");
    }
}

#[cfg(test)]
mod tests {
    use mayfly_api::TenantName;

    use super::*;
    use crate::service::shares::Shares;

    fn listeners(most: usize) -> (Listeners, Shown, Account) {
        let account = Shares::new(most, []).account(&TenantName::local(), None);
        let shown = Shown::default();
        // Nobody else is at this address.
        let address = Ipv4Addr::new(127, 63, rand::random(), 9);
        let listeners = Listeners::new(address, account.clone(), Weak::new(), Arc::clone(&shown));
        (listeners, shown, account)
    }

    /// Ports at which nobody listens, also not on every address of the host.
    fn free<const N: usize>() -> [u16; N] {
        let taken = [(); N].map(|()| std::net::TcpListener::bind("0.0.0.0:0").unwrap());
        taken.map(|listener| listener.local_addr().unwrap().port())
    }

    fn has_error(shown: &Shown, words: &str) -> bool {
        shown.lock().values().flatten().any(|error| error.contains(words))
    }

    #[tokio::test]
    async fn what_is_published_is_open_and_closes_with_it() {
        let (mut listeners, shown, account) = listeners(1000);
        let address = listeners.address;
        let reaches = async |port: u16| TcpStream::connect((address, port)).await.is_ok();
        let [first, second, third] = free();
        listeners.set(&[80, first, second].into()).await;
        assert!(reaches(first).await && reaches(second).await && !reaches(80).await);
        let errors = shown.lock().clone();
        assert!(errors[&80].as_ref().unwrap().contains("below 1024"), "{errors:?}");
        assert_eq!((&errors[&first], &errors[&second]), (&None, &None));
        listeners.set(&[second].into()).await;
        assert!(!reaches(first).await && reaches(second).await);
        assert_eq!((shown.lock().len(), account.held()), (1, 1));
        // Somebody else has it, and then not any more.
        let other = TcpListener::bind((address, third)).await.unwrap();
        listeners.set(&[third].into()).await;
        assert!(shown.lock()[&third].as_ref().unwrap().contains("in use"));
        drop(other);
        listeners.set(&[third].into()).await;
        assert_eq!(shown.lock()[&third], None);
        drop(listeners);
        let closed = async { while reaches(third).await {} };
        tokio::time::timeout(Duration::from_secs(20), closed).await.unwrap();
        assert_eq!(account.held(), 0);
    }

    #[tokio::test]
    async fn however_many_a_guest_names_few_are_open() {
        let (mut listeners, shown, account) = listeners(1000);
        listeners.set(&(1..=u16::MAX).collect()).await;
        assert_eq!((listeners.open.len(), shown.lock().len()), (0, MAX_SHOWN));
        listeners.set(&(2000..=u16::MAX).collect()).await;
        assert_eq!((listeners.open.len(), shown.lock().len()), (MAX_LISTENERS, MAX_SHOWN));
        assert_eq!(account.held(), MAX_LISTENERS);
        assert!(has_error(&shown, "which is the most"));
        listeners.set(&BTreeSet::new()).await;
        assert_eq!((shown.lock().len(), account.held()), (0, 0));
        let (mut few, shown, _) = self::listeners(2);
        few.set(&free::<3>().into()).await;
        assert_eq!(few.open.len(), 2);
        assert!(has_error(&shown, "as many connections"));
    }
}
