//! Watches of directories: streams of what changes, and watchers that are asked now and then.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::response::Response;
use mayfly_daemon::http::counted;
use mayfly_daemon::service::held::Full;
use mayfly_guest::channel::{FileKind, FilePath, StatOptions, Watch, WatchEvent, WatchKind};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, MissedTickBehavior};

use super::call::In;
use super::entry::{EntryInfo, held_bytes};
use super::filesystem::path_of;
use super::guest_user;
use super::process::{Empty, keepalive};
use crate::connect::{self, Answers, ClientGone, Code, ConnectError};

/// Most watchers of a sandbox.
const MOST: usize = 64;
const TOLD: StatOptions = StatOptions { follow: true, xattrs: true };

/// The watchers of a sandbox.
#[derive(Default)]
pub(crate) struct Watchers {
    next: AtomicU64,
    all: Mutex<HashMap<String, Arc<Watcher>>>,
}

struct Watcher {
    root: Root,
    watch: tokio::sync::Mutex<Watch>,
}

/// What is watched.
#[derive(Clone)]
struct Root {
    path: FilePath,
    /// Its absolute path.
    at: String,
    with_entries: bool,
}

impl Watchers {
    /// Ends all.
    pub fn clear(&self) {
        self.all.lock().clear();
    }

    fn add(&self, watcher: Watcher) -> Result<String, ConnectError> {
        let mut all = self.all.lock();
        if all.len() >= MOST {
            let message = format!("a sandbox may have {MOST} watchers: remove one");
            return Err(ConnectError::new(Code::ResourceExhausted, message));
        }
        let id = format!("w{}", self.next.fetch_add(1, Ordering::Relaxed) + 1);
        all.insert(id.clone(), Arc::new(watcher));
        Ok(id)
    }

    fn get(&self, id: &str) -> Result<Arc<Watcher>, ConnectError> {
        self.all.lock().get(id).cloned().ok_or_else(|| no_watcher(id))
    }
}

fn no_watcher(id: &str) -> ConnectError {
    let message = format!("there is no watcher {}", id.escape_debug());
    ConnectError::new(Code::NotFound, message)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WatchRequest {
    #[serde(default)]
    path: String,
    #[serde(default)]
    recursive: bool,
    #[serde(default)]
    include_entry: bool,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Event {
    name: String,
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<EntryInfo>,
}

async fn open(
    call: &In,
    request: WatchRequest,
    headers: &HeaderMap,
) -> Result<Watcher, ConnectError> {
    let user = guest_user::resolve(call, guest_user::of_headers(headers)?).await?;
    let path = path_of(&request.path, &user)?;
    let found = call.ask(call.guest().stat_with(path.clone(), TOLD)).await?;
    let kind = found.followed.as_ref().map_or(found.kind, |followed| followed.kind);
    if kind != FileKind::Directory {
        return Err(ConnectError::invalid("the path is no directory"));
    }
    let at = String::from_utf8_lossy(found.path.as_bytes()).into_owned();
    let watch = call.ask(call.guest().watch(path.clone(), request.recursive)).await?;
    let root = Root { path, at, with_entries: request.include_entry };
    Ok(Watcher { root, watch: tokio::sync::Mutex::new(watch) })
}

/// What clients are told of one change: of one that moves within the directory, both names.
fn told(event: &WatchEvent) -> Vec<(String, &'static str)> {
    let name = |path: &mayfly_guest::channel::ByteString| {
        String::from_utf8_lossy(path.as_bytes()).into_owned()
    };
    let kind = match event.kind {
        WatchKind::Created => "EVENT_TYPE_CREATE",
        WatchKind::Modified => "EVENT_TYPE_WRITE",
        WatchKind::Attributes => "EVENT_TYPE_CHMOD",
        WatchKind::Removed => "EVENT_TYPE_REMOVE",
        WatchKind::Renamed => {
            let from = event.from.as_ref().map(|from| (name(from), "EVENT_TYPE_RENAME"));
            return from.into_iter().chain([(name(&event.path), "EVENT_TYPE_CREATE")]).collect();
        }
        WatchKind::Closed | WatchKind::Overflow => return Vec::new(),
    };
    vec![(name(&event.path), kind)]
}

impl Root {
    /// The events that clients are told of one change.
    async fn events(&self, call: &In, event: &WatchEvent) -> Vec<Event> {
        let mut events = Vec::new();
        for (name, kind) in told(event) {
            let is_there = !matches!(kind, "EVENT_TYPE_REMOVE" | "EVENT_TYPE_RENAME");
            let entry = match self.with_entries && is_there {
                true => self.entry(call, &name).await,
                false => None,
            };
            events.push(Event { name, r#type: kind, entry });
        }
        events
    }

    /// What is there now, if anything is.
    async fn entry(&self, call: &In, name: &str) -> Option<EntryInfo> {
        let path = FilePath { path: format!("{}/{name}", self.at).into(), ..self.path.clone() };
        let found = call.ask(call.guest().stat_with(path, TOLD)).await.ok()?;
        Some(EntryInfo::of(found))
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Created {
    watcher_id: String,
}

pub(crate) async fn create(
    call: In,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ConnectError> {
    let (request, _held) = call.request::<WatchRequest>(&headers, body).await?;
    let watcher = open(&call, request, &headers).await?;
    let watcher_id = call.sandbox.watchers.add(watcher)?;
    Ok(connect::answer(&Created { watcher_id }))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OfWatcher {
    #[serde(default)]
    watcher_id: String,
}

/// Tells what has happened since the last time: all of it, also what was written a moment ago.
pub(crate) async fn events(
    call: In,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ConnectError> {
    let (request, _held) = call.request::<OfWatcher>(&headers, body).await?;
    let watcher = call.sandbox.watchers.get(&request.watcher_id)?;
    let flushed = {
        let mut watch = watcher.watch.lock().await;
        call.ask(watch.flush()).await?
    };
    if flushed.events.iter().any(|event| event.kind == WatchKind::Overflow) {
        let message = "events were lost, there were too many: look at the directory again";
        return Err(ConnectError::new(Code::ResourceExhausted, message));
    }
    let (mut all, mut kept) = (Vec::new(), Vec::new());
    for event in &flushed.events {
        for event in watcher.root.events(&call, event).await {
            kept.push(call.session().account().take(held_bytes(&event)).ok_or(Full)?);
            all.push(event);
        }
    }
    Ok(counted::list(call.session().account(), "events", all).await?)
}

pub(crate) async fn remove(
    call: In,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ConnectError> {
    let (request, _held) = call.request::<OfWatcher>(&headers, body).await?;
    let removed = call.sandbox.watchers.all.lock().remove(&request.watcher_id);
    removed.ok_or_else(|| no_watcher(&request.watcher_id))?;
    Ok(connect::answer(&Empty {}))
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Start(Empty),
    Filesystem(Box<Event>),
    Keepalive(Empty),
}

/// Tells what happens as it does, until the client goes away.
pub(crate) async fn watch_dir(
    call: In,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ConnectError> {
    let account = call.session().account().clone();
    let (every, limit) = (keepalive(&headers), connect::time_limit(&headers)?);
    let (request, _held) = connect::server_stream::<WatchRequest>(&headers, body, &account).await?;
    let (answers, response) = Answers::new(&account)?;
    let watcher = open(&call, request, &headers).await?;
    tokio::spawn(async move {
        let over = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        let outcome = tokio::select! {
            outcome = tell(&call, watcher, &answers, every) => outcome,
            () = over => Ok(Err(ConnectError::new(
                Code::DeadlineExceeded,
                "the time limit of the call is over",
            ))),
            () = answers.closed() => return,
            _ = call.session().ended() => return,
        };
        match outcome {
            Ok(Err(error)) if error.is_gone() => {}
            Ok(outcome) => answers.end(outcome).await,
            Err(ClientGone) => {}
        }
    });
    Ok(response)
}

async fn tell(
    call: &In,
    watcher: Watcher,
    answers: &Answers,
    every: Duration,
) -> Result<Result<(), ConnectError>, ClientGone> {
    let Watcher { root, watch } = watcher;
    let mut watch = watch.into_inner();
    answers.send(&Answer::Start(Empty {})).await?;
    let mut alive = tokio::time::interval_at(Instant::now() + every, every);
    alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            event = call.ask(watch.next()) => event,
            _ = alive.tick() => {
                answers.send(&Answer::Keepalive(Empty {})).await?;
                continue;
            }
        };
        match event {
            Ok(Some(event)) if event.kind == WatchKind::Overflow => {
                let message = "events were lost, there were too many: look at the directory again";
                return Ok(Err(ConnectError::new(Code::ResourceExhausted, message)));
            }
            Ok(Some(event)) => {
                for event in root.events(call, &event).await {
                    answers.send(&Answer::Filesystem(Box::new(event))).await?;
                }
            }
            // The directory is gone.
            Ok(None) => return Ok(Ok(())),
            Err(error) => return Ok(Err(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_has_the_names_of_inotify() {
        let event = |kind, path: &str, from: Option<&str>| {
            let from = from.map(Into::into);
            told(&WatchEvent { kind, path: path.into(), from, entry: None })
        };
        assert_eq!(event(WatchKind::Created, "a", None), [("a".into(), "EVENT_TYPE_CREATE")]);
        assert_eq!(event(WatchKind::Modified, "a/b", None), [("a/b".into(), "EVENT_TYPE_WRITE")]);
        assert_eq!(event(WatchKind::Attributes, "a", None), [("a".into(), "EVENT_TYPE_CHMOD")]);
        assert_eq!(
            event(WatchKind::Renamed, "new", Some("old")),
            [("old".into(), "EVENT_TYPE_RENAME"), ("new".into(), "EVENT_TYPE_CREATE")]
        );
        assert!(event(WatchKind::Closed, "a", None).is_empty());
    }
}
