//! Room of this process for look-ups and sockets of egress, and the share of it that each tenant
//! may take.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// Part of the process's descriptors that clients of guests may take, and connections to the outside
/// as many again: each has one.
const CLIENTS: u64 = 8;
/// Most of each, whatever that limit is: as many as the egress proxy has room for, which has a
/// descriptor and buffers for each as well.
pub(super) const MOST_CLIENTS: usize = 4000;
/// Part of them that look-ups may be: each has one socket at a time.
const LOOKUPS: u64 = 16;
/// Where the limit of descriptors is infinite.
const MOST_DESCRIPTORS: u64 = 1 << 20;
/// Even where there are hardly any descriptors.
const FEWEST_PLACES: usize = 4;

/// Rooms of a process. What egress leaves of its descriptors is for its sessions and clients.
#[derive(Clone, Debug)]
pub(super) struct Rooms {
    /// Look-ups that wait for a name server.
    pub lookups: Arc<Room>,
    /// Clients of guests that the egress proxy serves.
    pub clients: Arc<Room>,
    /// Connections to the outside, from the attempt to the end.
    pub connections: Arc<Room>,
}

impl Rooms {
    /// Derives them from a limit of open descriptors (getrlimit(2), `RLIMIT_NOFILE`).
    pub fn of(descriptors: u64) -> Self {
        let places = |part: u64| {
            let places = usize::try_from(descriptors.min(MOST_DESCRIPTORS) / part);
            places.unwrap_or(FEWEST_PLACES).max(FEWEST_PLACES)
        };
        let clients = places(CLIENTS).min(MOST_CLIENTS);
        Self {
            lookups: Arc::new(Room::new(places(LOOKUPS))),
            clients: Arc::new(Room::new(clients)),
            connections: Arc::new(Room::new(clients)),
        }
    }
}

/// Places that tenants share. A tenant gets another one while it holds fewer than are free: one
/// tenant alone ends at half of them, and `n` that want all leave about one in `n + 1` free, which
/// is for whoever comes next (A. K. Choudhury and E. L. Hahne, "Dynamic Queue Length Thresholds for
/// Shared-Memory Packet Switches", 1998, with a factor of 1).
#[derive(Debug)]
pub(super) struct Room {
    places: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    /// Has no entry for a tenant that holds none.
    by_tenant: HashMap<String, usize>,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    #[error("this tenant's sessions have their share of them; close some, or try again later")]
    Share,
    #[error("this host has none left; try again later")]
    All,
}

impl Room {
    fn new(places: usize) -> Self {
        Self { places, held: Mutex::default() }
    }

    /// Takes a place for a tenant. It is free again when the place is dropped.
    pub fn take(self: &Arc<Self>, tenant: Option<&str>) -> Result<Place, Full> {
        let tenant = tenant.unwrap_or_default();
        let mut held = self.held.lock();
        let own = held.by_tenant.get(tenant).copied().unwrap_or_default();
        if own >= self.places - held.all {
            return Err(if own == 0 { Full::All } else { Full::Share });
        }
        held.all += 1;
        held.by_tenant.insert(tenant.to_owned(), own + 1);
        Ok(Place { room: Arc::clone(self), tenant: tenant.to_owned() })
    }

    /// Returns how many places are taken.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.held.lock().all
    }
}

/// One place in a [`Room`].
#[derive(Debug)]
pub(super) struct Place {
    room: Arc<Room>,
    tenant: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.room.held.lock();
        held.all -= 1;
        if let Some(own) = held.by_tenant.get_mut(&self.tenant) {
            *own -= 1;
            if *own == 0 {
                held.by_tenant.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes all that a tenant gets.
    fn all_of(room: &Arc<Room>, tenant: &str) -> Vec<Place> {
        std::iter::from_fn(|| room.take(Some(tenant)).ok()).collect()
    }

    #[test]
    fn tenants_that_want_everything_leave_some_for_the_next() {
        let room = Arc::new(Room::new(120));
        let red = all_of(&room, "red");
        assert_eq!((red.len(), room.take(Some("red")).unwrap_err()), (60, Full::Share));
        let others: Vec<_> = (0..5).flat_map(|n| all_of(&room, &format!("tenant {n}"))).collect();
        assert!(others.len() < 60);
        room.take(Some("blue")).unwrap();
        drop(red);
        assert!(all_of(&room, "blue").len() >= 30);
        drop(others);
        assert_eq!((room.held(), room.held.lock().by_tenant.len()), (0, 0));
        // Without a tenant it is one of its own.
        assert_eq!(std::iter::from_fn(|| room.take(None).ok()).collect::<Vec<_>>().len(), 60);
    }

    #[test]
    fn nobody_gets_a_place_that_is_not_there() {
        let room = Arc::new(Room::new(3));
        let _places: Vec<_> = (0..3).map(|n| room.take(Some(&n.to_string())).unwrap()).collect();
        assert_eq!(room.take(Some("late")).unwrap_err(), Full::All);
        assert_eq!(room.take(Some("0")).unwrap_err(), Full::Share);
    }

    #[test]
    fn rooms_leave_most_descriptors_alone() {
        for limit in [0, 64, 1024, 65_536, u64::MAX] {
            let rooms = Rooms::of(limit);
            let Rooms { lookups, clients, connections } = rooms;
            let places = lookups.places + clients.places + connections.places;
            let limit = usize::try_from(limit.min(MOST_DESCRIPTORS)).unwrap();
            assert!(places <= (limit * 5 / 16).max(3 * FEWEST_PLACES), "{limit}: {places}");
        }
        assert_eq!(Rooms::of(16_384).connections.places, 2048);
        assert_eq!(Rooms::of(65_536).connections.places, MOST_CLIENTS);
    }
}
