use super::*;

/// Every route of each kind: open ones, those of the daemon, those of sessions, WebSockets, and none.
const PATHS: [&str; 12] = [
    "/",
    "/healthz",
    "/openapi.json",
    "/metrics",
    "/v1/status",
    "/v1/sessions",
    "/v1/sessions/nobody/exec/stream",
    "/v1/sessions/nobody/execs/1/attach",
    "/v1/sessions/nobody/files/content?path=/x",
    "/v1/sessions/nobody/docker/info",
    "/v1/sessions/nobody/ports/80/",
    "/no/such/route",
];

const PEERS: [Peer; 2] = [Peer::Local, Peer::Remote];

/// A request with a token and these headers, which come last.
fn get(path: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::get(path).header("authorization", format!("Bearer {TOKEN}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::empty()).unwrap()
}

fn websocket(host: &str, origin: &str) -> Request<Body> {
    let headers = [
        ("host", host),
        ("origin", origin),
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA=="),
    ];
    get("/v1/sessions/nobody/exec/stream", &headers)
}

#[tokio::test]
#[ignore = "needs root"]
async fn no_route_answers_a_page_of_another_origin() {
    let daemon = Daemon::start().await;
    let host = ("host", "localhost:7070");
    for peer in PEERS {
        for path in PATHS {
            for foreign in [
                ("origin", "http://evil.example"),
                ("origin", "http://localhost:3000"),
                ("origin", "null"),
                ("sec-fetch-site", "cross-site"),
                ("sec-fetch-site", "same-site"),
            ] {
                let response = daemon.send(peer, get(path, &[host, foreign])).await;
                let refused = (StatusCode::FORBIDDEN, "foreign_origin".into());
                assert_eq!(refusal(response).await, refused, "{peer:?} {path} {foreign:?}");
            }
            // What the daemon's own page and clients without a browser send.
            for own in [
                ("origin", "http://localhost:7070"),
                ("sec-fetch-site", "same-origin"),
                ("sec-fetch-site", "none"),
                ("accept", "*/*"),
            ] {
                let response = daemon.send(peer, get(path, &[host, own])).await;
                assert_ne!(response.status(), StatusCode::FORBIDDEN, "{peer:?} {path} {own:?}");
            }
        }
        let refused = daemon.send(peer, websocket("localhost", "http://evil.example")).await;
        assert_eq!(refusal(refused).await.1, "foreign_origin");
        let own = daemon.send(peer, websocket("localhost", "http://localhost")).await;
        assert_eq!(refusal(own).await.1, "no_such_session");
    }
    daemon.service.shutdown().await;
}

#[tokio::test]
#[ignore = "needs root"]
async fn the_unix_socket_is_not_found_by_a_name_of_somebody_else() {
    let daemon = Daemon::start().await;
    for path in PATHS {
        for host in ["evil.example", "evil.example:7070", "mayfly:7070", "192.0.2.1:7070"] {
            let response = daemon.send(Peer::Local, get(path, &[("host", host)])).await;
            let refused = (StatusCode::FORBIDDEN, "foreign_host".into());
            assert_eq!(refusal(response).await, refused, "{path} {host}");
            // A token is a better proof than a name.
            let response = daemon.send(Peer::Remote, get(path, &[("host", host)])).await;
            assert_ne!(response.status(), StatusCode::FORBIDDEN, "{path} {host}");
        }
        for host in ["mayfly", "docker", "api.moby.localhost", "localhost:7070", "127.0.0.1:7070"] {
            let response = daemon.send(Peer::Local, get(path, &[("host", host)])).await;
            assert_ne!(response.status(), StatusCode::FORBIDDEN, "{path} {host}");
        }
    }
    daemon.service.shutdown().await;
}

#[tokio::test]
#[ignore = "needs root"]
async fn names_of_the_configuration_are_the_daemons() {
    let daemon = Daemon::start_with("allowed_hosts = [\"build.example\"]").await;
    for peer in PEERS {
        for (host, code) in [
            ("build.example:7070", "no_such_session"),
            ("localhost:7070", "no_such_session"),
            ("evil.example:7070", "foreign_host"),
        ] {
            let response = daemon.send(peer, get("/v1/sessions/nobody", &[("host", host)])).await;
            assert_eq!(refusal(response).await.1, code, "{peer:?} {host}");
        }
        // Behind a proxy that has changed the host.
        let headers = [("host", "127.0.0.1:7070"), ("origin", "https://build.example")];
        let response = daemon.send(peer, get("/v1/sessions/nobody", &headers)).await;
        assert_eq!(refusal(response).await.1, "no_such_session", "{peer:?}");
    }
    daemon.service.shutdown().await;
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_browser_takes_no_answer_for_what_it_is_not() {
    let daemon = Daemon::start().await;
    for path in PATHS {
        for headers in [&[][..], &[("host", "evil.example")]] {
            let response = daemon.send(Peer::Local, get(path, headers)).await;
            let header = |name: &str| response.headers()[name].to_str().unwrap();
            assert_eq!(header("x-content-type-options"), "nosniff", "{path}");
            let policy = header("content-security-policy");
            assert!(policy.starts_with("default-src 'none'"), "{path}: {policy}");
            if path != "/" || !headers.is_empty() {
                assert!(policy.contains("sandbox"), "{path}: {policy}");
                assert_eq!(header("cross-origin-resource-policy"), "same-origin", "{path}");
            }
        }
    }
    daemon.service.shutdown().await;
}
