//! What the egress of all sessions of this process shares.

use std::sync::{Arc, LazyLock};

use super::line_rate::LineRate;
use super::room::Rooms;
use super::system::System;

/// How names are found, the room for look-ups and connections, and the rate of lines.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub system: Arc<System>,
    pub rooms: Rooms,
    pub line_rate: LineRate,
}

impl Shared {
    /// Those of this process and its host. The limit of descriptors is that at the first call.
    pub fn of_process() -> Self {
        static SHARED: LazyLock<Shared> = LazyLock::new(|| Shared {
            system: Arc::new(System::of_host()),
            rooms: Rooms::of(mayfly_host::descriptors::limit()),
            line_rate: LineRate::default(),
        });
        SHARED.clone()
    }
}
