//! The two requests: egress as a whole, and one client of the proxy port.

use super::listen::Listeners;
use super::{dns, docker};
use crate::context::Context;
use crate::forward;
use crate::wire::{Event, Wire, reply};
use mayfly_protocol::{FrameError, GuestError, Reply};
use nix::errno::Errno;
use std::rc::Rc;

/// Serves an Egress stream until the engine ends it.
pub async fn serve(mut wire: Wire, context: &Rc<Context>) -> Result<(), FrameError> {
    let place = match Place::take(context).await {
        Ok(place) => place,
        Err(error) => {
            wire.send(&Reply::<()>::Err(error))?;
            return wire.close().await;
        }
    };
    wire.send_now(&Reply::Ok(place.listeners.ports)).await?;
    // The answer leaves first: writing a file is the slowest part. No later request is read before
    // this is done.
    tokio::task::yield_now().await;
    let _docker = place.listeners.bridge.and_then(docker::ClientConfig::put);
    dns::relay(&mut wire, &place.listeners.dns).await
}

/// Serves an EgressAccept stream.
pub async fn accept(mut wire: Wire, context: &Rc<Context>) -> Result<(), FrameError> {
    let listeners = context.egress.borrow().clone();
    let Some(listeners) = listeners else {
        let error =
            GuestError { errno: Errno::ENOTCONN as i32, message: "there is no egress".into() };
        wire.send(&Reply::<()>::Err(error))?;
        return wire.close().await;
    };
    let client = tokio::select! {
        client = listeners.next_client() => reply("accept a proxy client", client),
        () = listeners.ended.cancelled() => Err(GuestError::new("egress has ended")),
        () = hung_up(&mut wire) => return Ok(()),
    };
    tokio::select! {
        done = forward::run(wire, client) => done,
        () = listeners.ended.cancelled() => Ok(()),
    }
}

/// Resolves when the engine wants no client any more. It sends nothing before it has one.
async fn hung_up(wire: &mut Wire) {
    while let Ok(Event::Drained) = wire.event().await {}
}

/// Makes the listeners known to all requests while it lives.
struct Place {
    context: Rc<Context>,
    listeners: Rc<Listeners>,
}

impl Place {
    async fn take(context: &Rc<Context>) -> Reply<Self> {
        let busy =
            || GuestError { errno: Errno::EBUSY as i32, message: "there is egress already".into() };
        if context.egress.borrow().is_some() {
            return Err(busy());
        }
        let listeners = Rc::new(Listeners::open(context.guest).await?);
        if context.egress.borrow().is_some() {
            return Err(busy());
        }
        context.egress.replace(Some(Rc::clone(&listeners)));
        Ok(Self { context: Rc::clone(context), listeners })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.context.egress.replace(None);
        self.listeners.ended.cancel();
    }
}
