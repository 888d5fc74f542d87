//! Starts that nobody waits for any more.

use std::future::{Future, poll_fn};

use futures::future::BoxFuture;
use tokio::runtime::Handle;

/// Future that is dropped in a thread where that may take its time.
struct Elsewhere<T: 'static>(Option<BoxFuture<'static, T>>);

impl<T> Drop for Elsewhere<T> {
    fn drop(&mut self) {
        if let Some(future) = self.0.take()
            && let Ok(runtime) = Handle::try_current()
        {
            drop(runtime.spawn_blocking(move || drop(future)));
        }
    }
}

/// Waits for `start`. When the caller is dropped before it is done, so is `start`, but not in this
/// thread: a VMM that was started by then is killed and waited for, and its cgroup removed, which
/// would keep all other requests waiting that the thread has to serve.
pub(super) async fn withdrawable<T: 'static>(start: impl Future<Output = T> + Send + 'static) -> T {
    let mut start = Elsewhere(Some(Box::pin(start)));
    let done = poll_fn(|context| match &mut start.0 {
        Some(start) => start.as_mut().poll(context),
        None => std::task::Poll::Pending,
    })
    .await;
    // What is left of it waits for nothing.
    start.0 = None;
    done
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread::{self, ThreadId};
    use std::time::Duration;

    use super::*;

    /// Says in which thread it is dropped.
    struct Told(mpsc::Sender<ThreadId>);

    impl Drop for Told {
        fn drop(&mut self) {
            Handle::try_current().unwrap();
            self.0.send(thread::current().id()).unwrap();
        }
    }

    #[tokio::test]
    async fn a_start_that_is_given_up_is_dropped_in_another_thread() {
        let (told, dropped) = mpsc::channel();
        let guard = Told(told.clone());
        let start = withdrawable(async move {
            let _guard = guard;
            std::future::pending::<()>().await;
        });
        assert!(tokio::time::timeout(Duration::from_millis(1), start).await.is_err());
        assert_ne!(dropped.recv().unwrap(), thread::current().id());
        // One that is done is not.
        let guard = Told(told);
        assert_eq!(withdrawable(async move { drop(guard) }).await, ());
        assert_eq!(dropped.recv().unwrap(), thread::current().id());
    }
}
