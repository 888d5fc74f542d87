use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use mayfly_api::{CreateSession, TenantName};

use super::*;

#[tokio::test]
#[ignore = "needs root"]
async fn a_session_that_is_not_there_is_said_as_such_everywhere() {
    let daemon = Daemon::start().await;
    let session = "/v1/sessions/nobody";
    for (method, path, body) in [
        (Method::GET, "", ""),
        (Method::DELETE, "", ""),
        (Method::POST, "/extend", r#"{"ttl_seconds":5}"#),
        (Method::GET, "/logs", ""),
        (Method::GET, "/stats", ""),
        (Method::POST, "/exec", r#"{"argv":["true"]}"#),
        (Method::GET, "/execs", ""),
        (Method::POST, "/execs", r#"{"argv":["true"]}"#),
        (Method::GET, "/execs/1/output", ""),
        (Method::GET, "/files/content?path=/x", ""),
        (Method::PUT, "/files/content?path=/x", "content"),
        (Method::GET, "/files/tar?path=/x", ""),
        (Method::GET, "/files/watch?path=/x", ""),
        (Method::GET, "/docker/_ping", ""),
        (Method::PATCH, "/ports/8080/a", ""),
    ] {
        let response = daemon.ask(method.clone(), &format!("{session}{path}"), body).await;
        assert_eq!(
            refusal(response).await,
            (StatusCode::NOT_FOUND, "no_such_session".into()),
            "{method} {path}"
        );
    }
    daemon.service.shutdown().await;
}

#[tokio::test]
#[ignore = "needs root"]
async fn bad_requests_for_a_session_are_refused_with_the_reason() {
    let daemon = Daemon::start().await;
    for (body, status, code) in [
        ("", StatusCode::BAD_REQUEST, "bad_request"),
        ("{", StatusCode::BAD_REQUEST, "bad_request"),
        ("{}", StatusCode::UNPROCESSABLE_ENTITY, "bad_request"),
        (r#"{"golden":7}"#, StatusCode::UNPROCESSABLE_ENTITY, "bad_request"),
        (r#"{"golden":"x","ttl":"1h"}"#, StatusCode::UNPROCESSABLE_ENTITY, "bad_request"),
        (r#"{"golden":"none-such"}"#, StatusCode::NOT_FOUND, "unknown_golden"),
    ] {
        let response = daemon.ask(Method::POST, "/v1/sessions", body).await;
        assert_eq!(refusal(response).await, (status, code.into()), "{body}");
    }
    let attach = Request::post("/v1/sessions?attach=true")
        .header("content-type", "application/json")
        .header("idempotency-key", "k")
        .body(Body::from(r#"{"golden":"x"}"#))
        .unwrap();
    assert_eq!(refusal(daemon.send(Peer::Local, attach).await).await.0, StatusCode::BAD_REQUEST);
    let plain = Request::post("/v1/sessions").body(Body::from(r#"{"golden":"x"}"#)).unwrap();
    assert_eq!(refusal(daemon.send(Peer::Local, plain).await).await.1, "not_json");
    let tenant =
        Request::get("/v1/sessions").header("mayfly-tenant", "a b").body(Body::empty()).unwrap();
    assert_eq!(refusal(daemon.send(Peer::Local, tenant).await).await.1, "bad_request");
    daemon.service.shutdown().await;
}

#[tokio::test]
#[ignore = "needs root"]
async fn bad_requests_for_a_session_count_towards_the_rate_of_their_tenant() {
    let daemon = Daemon::with("limits = { requests_per_second = 0.001, burst = 6 }").await;
    let ask = async |tenant: &str, key: Option<&str>, query: &str, body: &str| {
        let request = Request::post(format!("/v1/sessions{query}"))
            .header("content-type", "application/json")
            .header("mayfly-tenant", tenant);
        let request = match key {
            Some(key) => request.header("idempotency-key", key),
            None => request,
        };
        let request = request.body(Body::from(body.to_owned())).unwrap();
        refusal(daemon.send(Peer::Local, request).await).await.1
    };
    let env = r#"{"golden":"x","env":{"A=B":""}}"#;
    for (key, query, body) in [
        (None, "", "{"),
        (None, "", env),
        (None, "?no=such", "{}"),
        (Some(""), "", "{}"),
        (Some("k"), "?attach=true", r#"{"golden":"x"}"#),
        (Some("k"), "", env),
    ] {
        assert_eq!(ask("red", key, query, body).await, "bad_request", "{key:?} {query} {body}");
    }
    for body in ["{", env, r#"{"golden":"x"}"#] {
        assert_eq!(ask("red", None, "", body).await, "rate_limited", "{body}");
    }
    assert_eq!(ask("default", None, "", env).await, "bad_request");
    daemon.service.shutdown().await;
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_body_beyond_the_limit_is_refused() {
    let daemon = Daemon::start().await;
    let huge = format!(r#"{{"golden":"{}"}}"#, "x".repeat(5 << 20));
    let response = daemon.ask(Method::POST, "/v1/sessions", huge).await;
    assert_eq!(refusal(response).await, (StatusCode::PAYLOAD_TOO_LARGE, "too_large".into()));
    daemon.service.shutdown().await;
}

#[tokio::test]
#[ignore = "needs root"]
async fn unknown_routes_and_methods_are_json_too() {
    let daemon = Daemon::start().await;
    let unknown = daemon.ask(Method::GET, "/v2/sessions", "").await;
    assert_eq!(refusal(unknown).await, (StatusCode::NOT_FOUND, "no_such_route".into()));
    let method = daemon.ask(Method::PUT, "/v1/sessions", "").await;
    assert_eq!(refusal(method).await, (StatusCode::METHOD_NOT_ALLOWED, "no_such_method".into()));
    daemon.service.shutdown().await;
}

/// One byte of a body in a buffer of its own, as a connection gives it.
struct Buffer(u8, Arc<AtomicUsize>);

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        std::slice::from_ref(&self.0)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::Relaxed);
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn buffers_of_a_connection_are_not_held_for_a_body_that_comes_byte_by_byte() {
    let daemon = Daemon::start().await;
    let [held, most] = [0; 2].map(|none| Arc::new(AtomicUsize::new(none)));
    let bytes = format!(r#"{{"golden":"{}"}}"#, "x".repeat(2000)).into_bytes();
    let (of_body, most_of_body) = (held.clone(), most.clone());
    let frames = bytes.into_iter().map(move |byte| {
        most_of_body.fetch_max(of_body.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        Ok::<_, std::convert::Infallible>(Bytes::from_owner(Buffer(byte, of_body.clone())))
    });
    let body = Body::from_stream(futures::stream::iter(frames));
    let response = daemon.ask(Method::POST, "/v1/sessions", body).await;
    assert_ne!(refusal(response).await.1, "too_large");
    let most = most.load(Ordering::Relaxed);
    assert!((1..=2).contains(&most), "{most} buffers at a time");
    assert_eq!(held.load(Ordering::Relaxed), 0);
    daemon.service.shutdown().await;
}

#[tokio::test]
#[ignore = "needs root"]
async fn what_a_tenant_gives_to_hold_counts_for_it() {
    let daemon = Daemon::with("limits = { max_buffer_mib = 1 }").await;
    let (red, local) = (TenantName::new("red").unwrap(), TenantName::local());
    let metadata = format!(r#"{{"golden":"x","metadata":{{"a":"{}"}}}}"#, "x".repeat(1000));
    let ask = async |tenant: &TenantName, body: &str| {
        let request = Request::post("/v1/sessions")
            .header("content-type", "application/json")
            .header("content-length", body.len())
            .header("mayfly-tenant", tenant.as_str());
        let request = request.body(Body::from(body.to_owned())).unwrap();
        refusal(daemon.send(Peer::Local, request).await).await
    };
    let account = daemon.service.bytes_of(&red);
    let (full, unknown) = (
        (StatusCode::TOO_MANY_REQUESTS, "buffers_full".to_owned()),
        (StatusCode::NOT_FOUND, "unknown_golden".to_owned()),
    );
    assert_eq!(ask(&red, &metadata).await, unknown);
    // No room for the body; nobody else is bothered by that.
    let held = account.passing().take((1 << 20) - 500).unwrap();
    assert_eq!(ask(&red, &metadata).await, full);
    assert_eq!(ask(&local, &metadata).await, unknown);
    drop(held);
    assert_eq!(ask(&red, &metadata).await, unknown);
    // Room for the body, and then none for what is kept of it.
    let held = account.passing().take((1 << 20) - 500).unwrap();
    let create = |service: Service, tenant: TenantName| async move {
        let metadata = [("a".to_owned(), "x".repeat(1000))].into();
        let request = CreateSession { golden: "x".into(), metadata, ..CreateSession::default() };
        service.create(&tenant, request, None).await.unwrap_err().code()
    };
    assert_eq!(create(daemon.service.clone(), red.clone()).await, "buffers_full");
    drop(held);
    assert_eq!(create(daemon.service.clone(), red.clone()).await, "unknown_golden");
    assert_eq!(account.held(), 0);
    daemon.service.shutdown().await;
}

#[tokio::test]
#[ignore = "needs root"]
async fn lists_are_read_up_to_the_bound_that_is_told() {
    let daemon = Daemon::start().await;
    let pairs = |count: usize| {
        let pairs: Vec<String> = (0..count).map(|n| format!(r#""{n}":"""#)).collect();
        format!("{{{}}}", pairs.join(","))
    };
    let hosts = |count: usize| format!(r#"{{"allow":[{}]}}"#, vec![r#""a""#; count].join(","));
    let (found, bad) = (StatusCode::NOT_FOUND, StatusCode::UNPROCESSABLE_ENTITY);
    for (field, value, status, words) in [
        ("env", pairs(256), found, "none-such"),
        ("env", pairs(257), bad, "env has more than 256 entries"),
        ("env", pairs(100_000), bad, "env has more than 256 entries"),
        ("metadata", pairs(64), found, "none-such"),
        ("metadata", pairs(65), bad, "metadata has more than 64 entries"),
        ("egress", hosts(256), bad, "egress is off"),
        ("egress", hosts(257), bad, "egress.allow has more than 256 entries"),
    ] {
        let body = format!(r#"{{"golden":"none-such","{field}":{value}}}"#);
        let response = daemon.ask(Method::POST, "/v1/sessions", body).await;
        assert_eq!(response.status(), status, "{field}");
        let message = text(response).await;
        assert!(message.contains(words), "{message}");
    }
    daemon.service.shutdown().await;
}
