//! A session is used once: when it is over, it is over for everybody and for good.

use std::io::Cursor;

use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use mayfly_api::{CreateSession, Exec, ExecOutcome};
use mayfly_chaos_tests::daemon::{Daemon, TOKEN};
use mayfly_chaos_tests::slots;
use mayfly_client::Client;

use crate::support::{SMALL_POOL, client, gone, ids, refusal, request, sh, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_over_never_comes_back() {
    let _all = slots::take(slots::ALL);
    let daemon = Daemon::start(SMALL_POOL, &[]);
    let client = client(&daemon);
    let killed = client.create(&request(), None).await.unwrap();
    assert_eq!(sh(&client, &killed.id, "echo used").await, "used");
    // Another tenant does not even learn that it is there.
    let foreign = format!("/v1/sessions/{}", killed.id);
    assert_eq!(daemon.ask("GET", &foreign, Some(TOKEN), None).status, 404);
    assert_eq!(daemon.ask("DELETE", &foreign, Some(TOKEN), None).status, 404);

    // What runs in it ends with it, and says why.
    let mut running = client.run(&killed.id, &Exec::new(["sleep", "1000"])).await.unwrap();
    client.kill(&killed.id).await.unwrap();
    let error = running.recv().await.unwrap_err();
    assert!(
        error.code() == Some("session_gone") && error.to_string().contains("on request"),
        "{error}"
    );
    assert!(!killed.docker_socket.exists());
    all_is_refused(&client, &killed.id).await;

    let expired = expires(&client).await;
    let idle = idles(&client).await;

    // With many others started and ended meanwhile it is still over.
    let last = client.create(&request(), None).await.unwrap();
    for over in [&killed.id, &expired, &idle] {
        assert_ne!(last.id, *over);
        all_is_refused(&client, over).await;
        assert_eq!(
            daemon.ask("GET", &format!("/v1/sessions/{over}"), Some(TOKEN), None).status,
            404
        );
    }
    assert_eq!(ids(&client).await, [last.id]);
    daemon.stop();
}

/// A session whose time is over, although it is in use.
async fn expires(client: &Client) -> String {
    let session =
        client.create(&CreateSession { ttl_seconds: Some(1), ..request() }, None).await.unwrap();
    // It may be over already before this is asked.
    let error = match client.run(&session.id, &Exec::new(["sleep", "1000"])).await {
        Ok(mut running) => running.recv().await.unwrap_err(),
        Err(error) => error,
    };
    assert!(
        error.code() == Some("session_gone") && error.to_string().contains("time to live"),
        "{error}"
    );
    session.id
}

/// A session that nobody uses any more.
async fn idles(client: &Client) -> String {
    let wanted = CreateSession { idle_timeout_seconds: Some(1), ..request() };
    // As on a busy host a second may pass before the first use, the session is created anew until
    // it was used in time.
    let (id, outcome) = until("a session used in time", || async {
        let session = client.create(&wanted, None).await.unwrap();
        let used = client.exec(&session.id, &Exec::new(["sleep", "3"])).await;
        used.ok().map(|result| (session.id, result.outcome))
    })
    .await;
    // It was in use for longer than it may be idle.
    assert_eq!(outcome, ExecOutcome::ExitCode(0));
    // Looking at the list is no use of it.
    until("the end of an idle session", || async {
        (!ids(client).await.contains(&id)).then_some(())
    })
    .await;
    let error = client.session(&id).await.unwrap_err();
    assert!(
        error.code() == Some("session_gone") && error.to_string().contains("nobody used it"),
        "{error}"
    );
    id
}

/// Asks everything that can be asked of a session.
async fn all_is_refused(client: &Client, id: &str) {
    let command = Exec::new(["true"]);
    assert_eq!(refusal(client.session(id).await), gone());
    assert_eq!(refusal(client.exec(id, &command).await), gone());
    assert_eq!(refusal(client.run(id, &command).await), gone());
    assert_eq!(refusal(client.start_background(id, &command).await), gone());
    assert_eq!(refusal(client.backgrounds(id).await), gone());
    assert_eq!(refusal(client.extend(id, 60).await), gone());
    assert_eq!(refusal(client.logs(id).await), gone());
    assert_eq!(refusal(client.stats(id).await), gone());
    assert_eq!(refusal(client.list(id, "/").await), gone());
    assert_eq!(refusal(client.stat(id, "/").await), gone());
    assert_eq!(refusal(client.read_file(id, "/etc/passwd", 0, None).await), gone());
    assert_eq!(refusal(client.write_file(id, "/x", 0o600, "x").await), gone());
    assert_eq!(refusal(client.mkdir(id, "/x", 0o700, false).await), gone());
    assert_eq!(refusal(client.rename(id, "/x", "/y", false).await), gone());
    assert_eq!(refusal(client.remove(id, "/x", false, false).await), gone());
    assert_eq!(refusal(client.read_tar(id, "/etc", false).await), gone());
    assert_eq!(refusal(client.write_tar(id, "/tmp", Cursor::new(vec![0; 1024])).await), gone());
    assert_eq!(refusal(client.watch(id, "/tmp", false).await), gone());
    assert_eq!(refusal(client.kill(id).await), gone());
    let docker = client.docker(id, Method::GET, "/_ping", "").await.unwrap();
    let port = client.port(id, 80, Request::get("/").body(Bytes::new()).unwrap()).await.unwrap();
    assert_eq!((docker.status(), port.status()), (StatusCode::GONE, StatusCode::GONE));
}
