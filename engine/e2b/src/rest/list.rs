//! Lists of sandboxes, page by page.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::{RawQuery, State};
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mayfly_daemon::service::held::{Full, Held};
use tokio::task::coop::consume_budget;
use url::form_urlencoded;

use super::sandbox::Detail;
use super::{Asking, RestError};
use crate::sandboxes::{Sandbox, Sandboxes};

const NEXT_TOKEN: HeaderName = HeaderName::from_static("x-next-token");
/// Sandboxes of a page, and the most that a client may ask for.
const PAGE: usize = 100;
/// Bytes that are written at a time; a few of these, and others have their turn.
const STRETCH: usize = 4 << 10;

/// What a client wants to see.
#[derive(Debug, Default, PartialEq, Eq)]
struct Query {
    metadata: BTreeMap<String, String>,
    /// Whether those that run are wanted: there are no others.
    running: bool,
    template: Option<String>,
    started_after: Option<SystemTime>,
    started_before: Option<SystemTime>,
    ascending: bool,
    limit: usize,
    after: Option<Place>,
}

/// Place of a sandbox among all: when it was started, in milliseconds since 1970, and its id.
type Place = (u128, String);

impl Query {
    fn parse(text: &str) -> Result<Self, RestError> {
        let mut query = Self { running: true, limit: PAGE, ..Self::default() };
        let mut states = None;
        for (name, value) in form_urlencoded::parse(text.as_bytes()) {
            match &*name {
                "metadata" => query.metadata = metadata(&value),
                // As a list, or several times.
                "state" => {
                    let states = states.get_or_insert(false);
                    *states |= value.split(',').any(|state| state == "running");
                }
                "templateID" | "template" => query.template = Some(value.into_owned()),
                "startedAfter" => query.started_after = Some(time(&name, &value)?),
                "startedBefore" => query.started_before = Some(time(&name, &value)?),
                "order" => query.ascending = value == "asc",
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=PAGE).contains(limit));
                    query.limit = limit.ok_or_else(|| {
                        RestError::bad_request(format!("limit must be 1 to {PAGE}"))
                    })?;
                }
                "nextToken" => query.after = Some(place(&value)?),
                _ => {}
            }
        }
        query.running = states.unwrap_or(true);
        Ok(query)
    }

    fn wants(&self, sandbox: &Sandbox) -> bool {
        let session = &sandbox.session;
        let labels = session.metadata();
        let started = session.created_at();
        let is_template = |template: &String| {
            let name = template.split(':').next().unwrap_or_default();
            session.golden() == name || sandbox.asked.lock().template == *template
        };
        self.running
            && self.metadata.iter().all(|(name, value)| labels.get(name) == Some(value))
            && self.template.as_ref().is_none_or(is_template)
            && self.started_after.is_none_or(|after| started > after)
            && self.started_before.is_none_or(|before| started < before)
    }
}

/// Pairs in one value, encoded once more; SDKs encode each name and value besides.
fn metadata(value: &str) -> BTreeMap<String, String> {
    let decoded =
        |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    let pairs = form_urlencoded::parse(value.as_bytes());
    pairs.map(|(name, value)| (decoded(&name), decoded(&value))).collect()
}

fn time(name: &str, value: &str) -> Result<SystemTime, RestError> {
    let bad =
        || RestError::bad_request(format!("{name} must be a time such as 2026-01-02T03:04:05Z"));
    // humantime reads UTC alone; others have an offset, which a query may have turned into a space.
    let value = value.replace(' ', "+");
    let at = value.rfind(['+', '-']).filter(|at| *at > "2026-01-02".len());
    let Some(at) = at else {
        return humantime::parse_rfc3339_weak(&value).map_err(|_| bad());
    };
    let (local, offset) = value.split_at(at);
    let local = humantime::parse_rfc3339_weak(local).map_err(|_| bad())?;
    let (hours, minutes) = offset[1..].split_once(':').ok_or_else(bad)?;
    let number = |text: &str| text.parse::<u64>().ok().filter(|n| *n < 60).ok_or_else(bad);
    let offset_by = std::time::Duration::from_secs(number(hours)? * 3600 + number(minutes)? * 60);
    let utc = match offset.as_bytes()[0] {
        b'+' => local.checked_sub(offset_by),
        _ => local.checked_add(offset_by),
    };
    utc.ok_or_else(bad)
}

fn place_of(sandbox: &Sandbox) -> Place {
    let started = sandbox.session.created_at().duration_since(SystemTime::UNIX_EPOCH);
    (started.unwrap_or_default().as_millis(), sandbox.session.id().to_owned())
}

fn token((millis, id): &Place) -> String {
    URL_SAFE_NO_PAD.encode(format!("{millis} {id}"))
}

fn place(token: &str) -> Result<Place, RestError> {
    let read = || {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (millis, id) = text.split_once(' ')?;
        Some((millis.parse().ok()?, id.to_owned()))
    };
    read().ok_or_else(|| RestError::bad_request("nextToken is none that this daemon has given"))
}

/// `GET /v2/sandboxes`.
pub(crate) async fn list(
    State(sandboxes): State<Arc<Sandboxes>>,
    Asking(tenant): Asking,
    RawQuery(query): RawQuery,
) -> Result<Response, RestError> {
    let query = Query::parse(&query.unwrap_or_default())?;
    let mut found: Vec<_> = sandboxes.all();
    found.retain(|sandbox| *sandbox.session.tenant() == tenant && query.wants(sandbox));
    let mut found: Vec<_> =
        found.into_iter().map(|sandbox| (place_of(&sandbox), sandbox)).collect();
    found.sort_by(|(a, _), (b, _)| if query.ascending { a.cmp(b) } else { b.cmp(a) });
    if let Some(after) = &query.after {
        found.retain(|(place, _)| if query.ascending { place > after } else { place < after });
    }
    let more = found.len() > query.limit;
    found.truncate(query.limit);
    let next = found.last().filter(|_| more).map(|(place, _)| token(place));
    let account = sandboxes.service.bytes_of(&tenant);
    let mut body = Held::new(&account.passing()).map_err(super::too_much)?;
    write(&mut body, &sandboxes, found.iter().map(|(_, sandbox)| sandbox))
        .await
        .map_err(super::too_much)?;
    let mut response = super::json(body);
    if let Some(next) = next.and_then(|next| HeaderValue::try_from(next).ok()) {
        response.headers_mut().insert(NEXT_TOKEN, next);
    }
    Ok(response)
}

/// `GET /sandboxes`: as old clients ask, without pages and the oldest last.
pub(crate) async fn list_all(
    state: State<Arc<Sandboxes>>,
    asking: Asking,
    query: RawQuery,
) -> Result<Response, RestError> {
    list(state, asking, query).await
}

/// Writes a list, however long without keeping the thread.
async fn write(
    body: &mut Held,
    sandboxes: &Sandboxes,
    items: impl Iterator<Item = &Arc<Sandbox>> + Send,
) -> Result<(), Full> {
    let mut before: &[u8] = b"[";
    for sandbox in items {
        let from = body.len();
        body.extend(before)?;
        serde_json::to_writer(&mut *body, &Detail::of(sandboxes, sandbox)).map_err(|_| Full)?;
        before = b",";
        for _ in 0..=(body.len() - from) / STRETCH {
            consume_budget().await;
        }
    }
    body.extend(if before == b"[" { b"[]" } else { b"]" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_as_sdks_write_it() {
        let query = Query::parse(
            "metadata=user%252Bid%3Da%252520b%26k%3Dv&state=running&state=paused&limit=7&order=asc\
             &startedAfter=2026-01-02T03%3A04%3A05%2B02%3A00&template=base%3Av1",
        )
        .unwrap();
        let pairs = [("user+id", "a b"), ("k", "v")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(query.metadata, pairs.into());
        assert!(query.running && query.ascending);
        assert_eq!((query.limit, query.template.as_deref()), (7, Some("base:v1")));
        let utc = humantime::parse_rfc3339("2026-01-02T01:04:05Z").unwrap();
        assert_eq!(query.started_after, Some(utc));
        assert!(!Query::parse("state=paused").unwrap().running);
        for bad in ["limit=0", "limit=101", "limit=x", "nextToken=x", "startedAfter=yesterday"] {
            assert!(Query::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_leads_back_to_its_place() {
        let at = (1_767_322_445_123, "0123456789abcdef".to_owned());
        assert_eq!(place(&token(&at)).unwrap(), at);
    }

    #[test]
    fn times_are_read_with_any_offset() {
        let utc = humantime::parse_rfc3339("2026-01-02T03:04:05.5Z").unwrap();
        for text in [
            "2026-01-02T03:04:05.5Z",
            "2026-01-02T03:04:05.500000+00:00",
            "2026-01-02T01:34:05.5-01:30",
            "2026-01-02T05:04:05.5 02:00",
        ] {
            assert_eq!(time("x", text).unwrap(), utc, "{text}");
        }
    }
}
