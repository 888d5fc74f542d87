//! The open phase: yamux, one task per request, on one thread.

use crate::config::Layout;
use crate::context::{Context, Ending};
use crate::port::{AsyncPort, Port};
use crate::threads::Work;
use crate::wire::Wire;
use crate::{clock, egress, exec, files, forward, health, quiesce, stats, tar, watch};
use mayfly_protocol::{FrameError, GuestError, Mode, Mux, MuxError, MuxStream, Reply, Request};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;
use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinSet, LocalSet};

/// Runner of open phases, one after the other, with a runtime that was made before the snapshot.
pub struct Opener {
    runtime: Runtime,
    context: Rc<Context>,
}

impl Opener {
    /// Makes the runtime. No thread is started.
    pub fn new(layout: Layout, guest: bool) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let context = Context::new(layout, guest);
        Ok(Self { runtime, context: Rc::new(context) })
    }

    /// Serves requests until a Park, the end of the stream or bytes that are not yamux. Gives the
    /// port back with the bytes of its last read, in which a new Hello may be.
    pub fn serve(&mut self, port: Port, session: String) -> io::Result<(Port, Vec<u8>)> {
        // Not before there is something to do: yamux begins with a ping.
        port.wait_readable()?;
        self.context.session.replace(session);
        self.context.ending.set(None);
        let context = Rc::clone(&self.context);
        let local = LocalSet::new();
        let (port, unread) = local.block_on(&self.runtime, async move {
            let mut mux = Mux::new(port.into_async()?, Mode::Server);
            let mut tasks = JoinSet::new();
            let reaper = Rc::clone(&context);
            tasks.spawn_local(async move { reaper.reap().await });
            while let Some(stream) = next_stream(&mut mux, &context).await {
                while tasks.try_join_next().is_some() {}
                tasks.spawn_local(handle(stream, Rc::clone(&context)));
            }
            tasks.shutdown().await;
            // A parked guest has one thread.
            exec::rest();
            context.left.clear();
            context.threads.rest();
            context.reap_rest().await;
            mux.into_transport().ok_or_else(|| io::Error::other("a stream outlived its connection"))
        })?;
        match self.context.ending.get() {
            // The engine may have hung up right after the answer, which does not take the request
            // back.
            Some(Ending::PowerOff) => crate::init::power_off(),
            // What the engine still sent to a parking agent is of no use to anybody.
            Some(Ending::Park) => Ok((port.into_port(), Vec::new())),
            // After any other end, the bytes may hold a new Hello.
            None => Ok((port.into_port(), unread)),
        }
    }
}

/// The next stream of the engine, or `None` when the open phase is over.
async fn next_stream(mux: &mut Mux<AsyncPort>, context: &Context) -> Option<MuxStream> {
    let event = poll_fn(|cx| match mux.poll_inbound(cx) {
        Poll::Ready(event) => Poll::Ready(event),
        Poll::Pending if context.ending.get().is_some() && mux.is_drained() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await;
    match event {
        Some(Ok(stream)) => Some(stream),
        Some(Err(MuxError::Closed)) | None => None,
        // Seen by the engine as a channel that parks by itself; said here for whoever reads the
        // console.
        Some(Err(error)) => {
            crate::console::say(&format!("channel reset: {error}"));
            None
        }
    }
}

async fn handle(stream: MuxStream, context: Rc<Context>) {
    context.reap_lost();
    let mut wire = Wire::new(stream);
    // An error here means that the stream is gone or broken; there is nobody left to tell.
    let _ = match wire.next_request().await {
        Ok(Some(request)) => dispatch(wire, request, &context).await,
        Ok(None) => Ok(()),
        Err(error) => answer::<()>(wire, Err(GuestError::new(error.to_string()))).await,
    };
}

async fn dispatch(wire: Wire, request: Request, context: &Rc<Context>) -> Result<(), FrameError> {
    match request {
        Request::Exec(request) => exec::run(wire, request, context).await,
        Request::Connect { path } => forward::unix(wire, &path).await,
        Request::ConnectTcp { port } => forward::tcp(wire, port).await,
        Request::Egress => egress::serve(wire, context).await,
        Request::EgressAccept => egress::accept(wire, context).await,
        Request::ReadFile { at, offset, limit } => {
            files::read(wire, at, offset, limit, context).await
        }
        Request::WriteFile { at, options } => files::write(wire, at, options, context).await,
        Request::List { at, options } => files::list(wire, at, options, context).await,
        Request::Stat { at, options } => {
            let work = files::at(context, Work::Read, at, move |place| files::stat(place, options));
            answer(wire, work.await).await
        }
        Request::Mkdir { at, mode, parents } => {
            let make = move |place: &files::Place| files::mkdir(place, mode, parents);
            answer(wire, files::at(context, Work::Change, at, make).await).await
        }
        Request::Remove { at, recursive, force } => {
            let remove = move |place: &files::Place| files::remove(place, recursive, force);
            answer(wire, files::at(context, Work::Change, at, remove).await).await
        }
        Request::Rename { from, to, parents } => {
            let rename = move |place: &files::Place| files::rename(place, &to, parents);
            answer(wire, files::at(context, Work::Change, from, rename).await).await
        }
        Request::PackTar { at, sparse } => tar::pack(wire, at, sparse, context).await,
        Request::UnpackTar { at } => tar::unpack(wire, at, context).await,
        Request::Watch { at, recursive } => watch::run(wire, at, recursive, context).await,
        Request::Clock { adjust_ns } => answer(wire, clock::adjust(context.guest, adjust_ns)).await,
        Request::Stats => answer(wire, context.threads.run(Work::Read, stats::stats).await).await,
        Request::Health => answer(wire, health::health(context).await).await,
        Request::WaitReady { timeout_ms } => {
            answer(wire, health::wait_ready(context, timeout_ms).await).await
        }
        Request::Quiesce => answer(wire, quiesce::run(context).await).await,
        Request::Park => end(wire, context, Ending::Park).await,
        Request::PowerOff if context.guest => end(wire, context, Ending::PowerOff).await,
        Request::PowerOff => {
            answer::<()>(wire, Err(GuestError::new("power off works in a guest only"))).await
        }
    }
}

async fn end(wire: Wire, context: &Context, ending: Ending) -> Result<(), FrameError> {
    answer::<()>(wire, Ok(())).await?;
    context.ending.set(Some(ending));
    Ok(())
}

async fn answer<T: serde::Serialize>(mut wire: Wire, reply: Reply<T>) -> Result<(), FrameError> {
    wire.send(&reply)?;
    wire.close().await
}
