//! `filesystem.Filesystem`: paths of a sandbox. As envd does it, they are done by root for a user:
//! no right is missing, and what is made is the user's.

use axum::body::Body;
use axum::http::HeaderMap;
use axum::response::Response;
use mayfly_daemon::http::counted;
use mayfly_guest::channel::{DirEntry, FilePath, ListOptions, StatOptions};
use serde::{Deserialize, Serialize};

use super::call::In;
use super::entry::EntryInfo;
use super::guest_user;
use super::process::Empty;
use crate::connect::{self, Code, ConnectError};

/// What is told of each path.
const TOLD: StatOptions = StatOptions { follow: true, xattrs: true };
/// Rights of a directory that is made.
const DIRECTORY: u32 = 0o755;
/// Longest path, in bytes (`PATH_MAX`).
const LONGEST: usize = 4096;

#[derive(Deserialize)]
struct OfPath {
    #[serde(default)]
    path: String,
}

#[derive(Serialize)]
struct WithEntry {
    entry: EntryInfo,
}

/// A path of the user that a call is for.
///
/// # Errors
/// [`ConnectError`].
pub(super) fn path_of(path: &str, user: &str) -> Result<FilePath, ConnectError> {
    if path.len() > LONGEST || path.contains('\0') {
        return Err(ConnectError::invalid(format!(
            "a path has at most {LONGEST} bytes, and none of them is zero"
        )));
    }
    // Without a path it is the user's home.
    let path = if path.is_empty() { "~" } else { path };
    Ok(FilePath::of_user(path, user).as_root())
}

/// Reads a request, and for whom it is.
async fn read<T: serde::de::DeserializeOwned>(
    call: &In,
    headers: &HeaderMap,
    body: Body,
) -> Result<(T, String), ConnectError> {
    let (request, _held) = call.request(headers, body).await?;
    let user = guest_user::resolve(call, guest_user::of_headers(headers)?).await?;
    Ok((request, user))
}

pub(crate) async fn stat(
    call: In,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ConnectError> {
    let (request, user) = read::<OfPath>(&call, &headers, body).await?;
    entry(&call, path_of(&request.path, &user)?).await
}

async fn entry(call: &In, path: FilePath) -> Result<Response, ConnectError> {
    let metadata = call.ask(call.guest().stat_with(path, TOLD)).await?;
    let told = WithEntry { entry: EntryInfo::of(metadata) };
    Ok(counted::json(call.session().account(), &told)?)
}

pub(crate) async fn make_dir(
    call: In,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ConnectError> {
    let (request, user) = read::<OfPath>(&call, &headers, body).await?;
    let path = path_of(&request.path, &user)?;
    let made = call.ask(call.guest().mkdir(path.clone(), DIRECTORY, true)).await;
    match made {
        Ok(true) => entry(&call, path).await,
        Ok(false) => Err(ConnectError::new(Code::AlreadyExists, "the directory is there already")),
        Err(error) if error.code() == Code::AlreadyExists => {
            Err(ConnectError::invalid(format!("the path is no directory: {}", error.message())))
        }
        Err(error) => Err(error),
    }
}

#[derive(Deserialize)]
struct Move {
    #[serde(default)]
    source: String,
    #[serde(default)]
    destination: String,
}

pub(crate) async fn rename(
    call: In,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ConnectError> {
    let (request, user) = read::<Move>(&call, &headers, body).await?;
    let from = path_of(&request.source, &user)?;
    let to = path_of(&request.destination, &user)?;
    call.ask(call.guest().rename(from, to.path.clone(), true)).await?;
    entry(&call, to).await
}

/// Removes a path and all below it; that there is none is fine.
pub(crate) async fn remove(
    call: In,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ConnectError> {
    let (request, user) = read::<OfPath>(&call, &headers, body).await?;
    if request.path.is_empty() {
        return Err(ConnectError::invalid("path is missing"));
    }
    let path = path_of(&request.path, &user)?;
    call.ask(call.guest().remove(path, true, true)).await?;
    Ok(connect::answer(&Empty {}))
}

#[derive(Deserialize)]
struct ListDir {
    #[serde(default)]
    path: String,
    #[serde(default)]
    depth: u32,
}

pub(crate) async fn list_dir(
    call: In,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ConnectError> {
    let (request, user) = read::<ListDir>(&call, &headers, body).await?;
    let options = ListOptions { depth: request.depth.max(1), stat: Some(TOLD) };
    let listed = call.guest().list_with(path_of(&request.path, &user)?, options);
    let mut listed = call.ask(listed).await?;
    let entries = in_order(std::mem::take(&mut listed.entries)).await?;
    let told = entries
        .into_iter()
        .filter_map(|entry| entry.metadata.map(|metadata| EntryInfo::of(*metadata)));
    let response = counted::list(call.session().account(), "entries", told).await;
    drop(listed);
    Ok(response?)
}

/// Sorts by name. A guest can name so many that a worker of the daemon would be kept for long.
async fn in_order(mut entries: Vec<DirEntry>) -> Result<Vec<DirEntry>, ConnectError> {
    let sort = move || {
        entries.sort_unstable_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
        entries
    };
    let sorted = tokio::task::spawn_blocking(sort).await;
    sorted.map_err(|_| ConnectError::new(Code::Internal, "the list was lost"))
}
