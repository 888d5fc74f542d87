use super::*;

fn get(path: &str, authorization: Option<&str>) -> Request<Body> {
    let mut request = Request::builder().uri(path);
    if let Some(value) = authorization {
        request = request.header("authorization", value);
    }
    request.body(Body::empty()).unwrap()
}

#[tokio::test]
#[ignore = "needs root"]
async fn tcp_needs_a_token_for_everything_that_tells_something() {
    let daemon = Daemon::start().await;
    for path in [
        "/v1/status",
        "/v1/sessions",
        "/v1/goldens",
        "/metrics",
        "/v1/sessions/x",
        "/v1/sessions/x/docker/info",
    ] {
        for wrong in [None, Some("Bearer wrong"), Some("Basic abc"), Some(TOKEN)] {
            let response = daemon.send(Peer::Remote, get(path, wrong)).await;
            assert_eq!(response.headers()["www-authenticate"], "Bearer", "{path}");
            assert_eq!(
                refusal(response).await,
                (StatusCode::UNAUTHORIZED, "unauthorized".into()),
                "{path}"
            );
        }
    }
    let right = format!("Bearer {TOKEN}");
    assert_eq!(
        daemon.send(Peer::Remote, get("/v1/status", Some(&right))).await.status(),
        StatusCode::OK
    );
    for open in ["/", "/healthz", "/openapi.json"] {
        assert_eq!(
            daemon.send(Peer::Remote, get(open, None)).await.status(),
            StatusCode::OK,
            "{open}"
        );
    }
    daemon.service.shutdown().await;
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_request_that_no_listener_vouches_for_needs_a_token() {
    let daemon = Daemon::start().await;
    let response = daemon.router().oneshot(get("/v1/status", None)).await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    daemon.service.shutdown().await;
}

#[tokio::test]
#[ignore = "needs root"]
async fn tcp_cannot_speak_for_another_tenant() {
    let daemon = Daemon::start().await;
    let mut request = get("/v1/sessions", None);
    request.headers_mut().insert("mayfly-tenant", "red".parse().unwrap());
    assert_eq!(daemon.send(Peer::Remote, request).await.status(), StatusCode::UNAUTHORIZED);
    daemon.service.shutdown().await;
}

#[tokio::test]
#[ignore = "needs root"]
async fn the_page_runs_nothing_but_its_own_blocks() {
    let daemon = Daemon::start().await;
    let (first, second) =
        (daemon.ask(Method::GET, "/", "").await, daemon.ask(Method::GET, "/", "").await);
    let policy = first.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    assert_ne!(
        policy,
        second.headers()["content-security-policy"].to_str().unwrap(),
        "a nonce is used once"
    );
    let nonce =
        policy.split("script-src 'nonce-").nth(1).unwrap().split('\'').next().unwrap().to_owned();
    let page = text(first).await;
    for block in ["<script", "<style"] {
        for rest in page.split(block).skip(1) {
            assert!(
                rest.starts_with(&format!(" nonce=\"{nonce}\">")),
                "{block}{}",
                &rest[..rest.len().min(60)]
            );
        }
    }
    // What the policy would silently switch off.
    for attribute in [" style=\"", " onclick=", " onload="] {
        assert!(!page.contains(attribute), "{attribute}");
    }
    daemon.service.shutdown().await;
}
