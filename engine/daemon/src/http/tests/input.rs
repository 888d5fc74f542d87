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
