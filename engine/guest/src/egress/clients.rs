//! Clients of a guest that the proxy has.
//!
//! Their places are free again when both are done with one: the guest's stream and the proxy. A
//! guest ends a stream whenever it likes, and were its place free at once, the proxy could have
//! clients without number.

use std::collections::HashMap;
use std::future::Future;

use tokio::task::JoinSet;

use super::limits::ClientPlace;
use super::room::Place;

/// Places of a client: one of the session, but for a client too many, and one of this process.
pub(super) type Places = (Option<ClientPlace>, Place);

/// Clients of one session.
#[derive(Debug, Default)]
pub(super) struct Clients {
    next: u32,
    held: HashMap<u32, Client>,
    /// Carry the clients' bytes; each ends with the number of its client.
    carried: JoinSet<u32>,
}

#[derive(Debug)]
struct Client {
    places: Places,
    /// Whether its bytes are still carried.
    is_carried: bool,
    /// Whether the proxy has it.
    is_served: bool,
}

impl Clients {
    /// Returns the number of the next client.
    pub fn number(&mut self) -> u32 {
        self.next = self.next.wrapping_add(1);
        self.next
    }

    /// Adds a client that the proxy was given, and runs what carries its bytes.
    pub fn add(
        &mut self,
        number: u32,
        places: Places,
        carry: impl Future<Output = ()> + Send + 'static,
    ) {
        self.held.insert(number, Client { places, is_carried: true, is_served: true });
        self.carried.spawn(async move {
            carry.await;
            number
        });
    }

    /// Returns how many of them are only told that there are too many.
    pub fn refused(&self) -> usize {
        self.held.values().filter(|client| client.places.0.is_none()).count()
    }

    /// Waits until the stream of a client is over that the proxy still has, and returns its number;
    /// `None` when there are no streams. Cancel-safe.
    pub async fn hung_up(&mut self) -> Option<u32> {
        loop {
            let Ok(number) = self.carried.join_next().await? else { continue };
            let Some(client) = self.held.get_mut(&number) else { continue };
            client.is_carried = false;
            if client.is_served {
                return Some(number);
            }
            self.held.remove(&number);
        }
    }

    /// Takes note that the proxy is done with a client. False when it has none of this number.
    pub fn served(&mut self, number: u32) -> bool {
        let Some(client) = self.held.get_mut(&number) else { return false };
        let was_served = std::mem::replace(&mut client.is_served, false);
        if !client.is_carried {
            self.held.remove(&number);
        }
        was_served
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::super::room::Rooms;
    use super::*;

    #[tokio::test]
    async fn places_are_free_when_the_stream_and_the_proxy_are_done() {
        let room = Rooms::of(1024).clients;
        for proxy_first in [false, true] {
            let mut clients = Clients::default();
            let (hang_up, over) = oneshot::channel::<()>();
            let number = clients.number();
            clients.add(number, (None, room.take(None).unwrap()), async move {
                let _ = over.await;
            });
            assert_eq!(clients.refused(), 1);
            if proxy_first {
                assert!(clients.served(number));
                assert!(!clients.served(number), "twice");
                assert_eq!(room.held(), 1);
                drop(hang_up);
                assert_eq!(clients.hung_up().await, None);
            } else {
                drop(hang_up);
                assert_eq!(clients.hung_up().await, Some(number));
                assert_eq!(room.held(), 1);
                assert!(clients.served(number));
            }
            assert_eq!((room.held(), clients.refused()), (0, 0));
            assert!(!clients.served(number), "one that is gone");
        }
    }
}
