//! Sandboxes: sessions that were created through this front end, with what E2B's clients know of
//! them besides.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use futures::FutureExt as _;
use mayfly_api::TenantName;
use mayfly_daemon::service::held::Full;
use mayfly_daemon::service::shares::Share;
use mayfly_daemon::service::{LiveSession, Service};
use parking_lot::{Mutex, RwLock};
use rand::TryRng;
use rand::rngs::SysRng;

use crate::envd::watchers::Watchers;
use crate::rest::network::Network;
use crate::settings::Settings;

/// All sandboxes of a daemon.
pub(crate) struct Sandboxes {
    pub service: Service,
    pub settings: Settings,
    /// From which the tokens of each sandbox are made. A sandbox ends with the daemon, and so does
    /// this.
    key: [u8; blake3::KEY_LEN],
    live: RwLock<HashMap<String, Arc<Sandbox>>>,
}

/// What a client asks for that only this front end knows of.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// Name of the template.
    pub template: String,
    pub network: Network,
}

/// A sandbox.
pub(crate) struct Sandbox {
    pub session: Arc<LiveSession>,
    pub asked: Mutex<Asked>,
    /// Proves that a client may use envd.
    envd: blake3::Hash,
    /// Proves that a client may use ports that are not public.
    traffic: blake3::Hash,
    pub watchers: Watchers,
    /// The user of calls that name none, once one was made.
    pub default_user: OnceLock<String>,
    /// When its processors were looked at last, and for how many milliseconds they had been busy.
    pub sample: Mutex<Option<(Instant, u64)>>,
    /// For what was asked.
    held: Mutex<Share>,
}

impl Sandboxes {
    pub fn new(service: Service, settings: Settings) -> Arc<Self> {
        let mut key = [0; blake3::KEY_LEN];
        // Nothing else would be secret, either, on a host without random bytes: sessions need them.
        SysRng.try_fill_bytes(&mut key).expect("the host has random bytes");
        Arc::new(Self { service, settings, key, live: RwLock::default() })
    }

    /// Makes a session a sandbox until it ends. One that is a sandbox already stays what it is.
    ///
    /// # Errors
    /// [`Full`].
    pub fn add(
        self: &Arc<Self>,
        session: Arc<LiveSession>,
        asked: Asked,
    ) -> Result<Arc<Sandbox>, Full> {
        let id = session.id().to_owned();
        // Of a request that is repeated, which must not end for want of room.
        if let Some(sandbox) = self.live.read().get(&id) {
            return Ok(sandbox.clone());
        }
        let held = session.account().take(asked.template.len() + asked.network.held_bytes());
        let held = held.ok_or(Full)?;
        let mut live = self.live.write();
        if let Some(sandbox) = live.get(&id) {
            return Ok(sandbox.clone());
        }
        let sandbox = Arc::new(Sandbox {
            asked: Mutex::new(asked),
            envd: self.token("envd", &id),
            traffic: self.token("traffic", &id),
            watchers: Watchers::default(),
            default_user: OnceLock::new(),
            sample: Mutex::default(),
            held: Mutex::new(held),
            session,
        });
        live.insert(id.clone(), sandbox.clone());
        drop(live);
        let (all, session) = (self.clone(), sandbox.session.clone());
        tokio::spawn(async move {
            let _ = session.ended().await;
            let ended = all.live.write().remove(&id);
            // A watch holds on to its session.
            if let Some(ended) = ended {
                ended.watchers.clear();
            }
        });
        Ok(sandbox)
    }

    fn token(&self, what: &str, id: &str) -> blake3::Hash {
        blake3::keyed_hash(&self.key, format!("{what} {id}").as_bytes())
    }

    /// Returns the sandbox with this id, whoever asks, unless it is over.
    pub fn find(&self, id: &str) -> Option<Arc<Sandbox>> {
        self.live.read().get(id).filter(|sandbox| !sandbox.is_over()).cloned()
    }

    /// Returns a tenant's sandbox.
    pub fn of_tenant(&self, tenant: &TenantName, id: &str) -> Option<Arc<Sandbox>> {
        self.find(id).filter(|sandbox| sandbox.session.tenant() == tenant)
    }

    /// Lists all sandboxes that are not over, in no order.
    pub fn all(&self) -> Vec<Arc<Sandbox>> {
        self.live.read().values().filter(|sandbox| !sandbox.is_over()).cloned().collect()
    }
}

impl Sandbox {
    /// Whether its session is over. Its entry goes a moment later.
    fn is_over(&self) -> bool {
        self.session.ended().now_or_never().is_some()
    }

    /// Returns whether a client that asks for this could have got this sandbox for it, as far as the
    /// session does not know.
    pub fn is_as(&self, asked: &Asked) -> bool {
        let own = self.asked.lock();
        let of = |asked: &Asked| {
            let Asked { template, network } = asked.clone();
            (template, network.allow_public_traffic, network.mask_request_host)
        };
        of(&own) == of(asked)
    }

    /// Replaces what the sandbox may reach, by its client's word, and what counts it. Who may reach
    /// the sandbox stays.
    pub fn replace_network(&self, network: Network, held: Share) {
        let mut asked = self.asked.lock();
        let before = std::mem::take(&mut asked.network);
        asked.network = Network {
            allow_public_traffic: before.allow_public_traffic,
            mask_request_host: before.mask_request_host,
            ..network
        };
        *self.held.lock() = held;
    }

    /// Returns the token for envd.
    pub fn envd_token(&self) -> String {
        self.envd.to_hex().to_string()
    }

    /// Returns the token for ports.
    pub fn traffic_token(&self) -> String {
        self.traffic.to_hex().to_string()
    }

    /// Returns whether this is the token for envd. Takes the same time for every wrong one.
    pub fn is_envd_token(&self, token: &str) -> bool {
        blake3::Hash::from_hex(token).is_ok_and(|token| token == self.envd)
    }

    /// Returns whether this is the token for ports. Takes the same time for every wrong one.
    pub fn is_traffic_token(&self, token: &str) -> bool {
        blake3::Hash::from_hex(token).is_ok_and(|token| token == self.traffic)
    }
}
