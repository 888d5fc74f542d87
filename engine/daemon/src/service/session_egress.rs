//! The egress of a live session: given when it is created or later, replaced, taken away.

use std::sync::Arc;

use mayfly_api::{EgressPolicy, EgressStatus, TenantName};
use mayfly_engine::session::{Session, SessionError};
use mayfly_guest::egress::{Egress, EgressAccount, Observer, Policy};
use parking_lot::Mutex;

use super::egress::Granted;
use super::shares::Share;

/// The egress of one session, and what was used of it under all its policies.
#[derive(Debug)]
pub(super) struct SessionEgress {
    tenant: TenantName,
    observer: Arc<dyn Observer>,
    account: EgressAccount,
    state: Mutex<State>,
    /// Held by who changes it: one after the other.
    changing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Current>,
    is_over: bool,
}

#[derive(Debug)]
struct Current {
    egress: Egress,
    shown: EgressPolicy,
    /// The bytes of its entries.
    _kept: Share,
}

/// The session has ended meanwhile.
#[derive(Debug)]
pub(super) struct Over;

impl SessionEgress {
    pub fn new(tenant: &TenantName, observer: Arc<dyn Observer>) -> Self {
        Self {
            tenant: tenant.clone(),
            observer,
            account: EgressAccount::default(),
            state: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
        }
    }

    /// Gives the session what was granted, in place of what it has; nothing when that is nothing.
    /// `kept` are the bytes of it.
    ///
    /// Connections that are not allowed any more are cut off when this returns. Where it fails, or
    /// is dropped, the session has what it had, or nothing.
    ///
    /// # Errors
    /// As [`Session::allow_egress`].
    pub async fn set(
        &self,
        session: &Session,
        granted: Option<Granted>,
        kept: Share,
    ) -> Result<Result<(), Over>, SessionError> {
        let _changing = self.changing.lock().await;
        let Some(Granted { shown, policy }) = granted else {
            let _ended = self.state.lock().current.take();
            return Ok(Ok(()));
        };
        let policy = self.of_tenant(policy);
        {
            let mut state = self.state.lock();
            // One that the guest has ended is begun again.
            let current = state.current.take_if(|current| !current.egress.is_over());
            if let Some(Current { egress, .. }) = current {
                egress.replace(policy);
                state.current = Some(Current { egress, shown, _kept: kept });
                return Ok(Ok(()));
            }
            state.current = None;
        }
        let egress = session.allow_egress_on(policy, self.account.clone()).await?;
        let mut state = self.state.lock();
        if state.is_over {
            return Ok(Err(Over));
        }
        state.current = Some(Current { egress, shown, _kept: kept });
        Ok(Ok(()))
    }

    /// Ends it with the session.
    pub fn end(&self) {
        let mut state = self.state.lock();
        state.is_over = true;
        let _ended = state.current.take();
    }

    pub fn status(&self) -> EgressStatus {
        let used = self.account.used();
        let state = self.state.lock();
        EgressStatus {
            policy: state.current.as_ref().map(|current| current.shown.clone()),
            bytes_used: used.bytes,
            connections_used: used.connections,
        }
    }

    fn of_tenant(&self, policy: Policy) -> Policy {
        policy.with_tenant(self.tenant.as_str()).with_observer(Arc::clone(&self.observer))
    }
}
