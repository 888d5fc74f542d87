use std::collections::BTreeSet;

use super::*;

/// Everything the daemon answers, as method and path.
const ROUTES: &[&str] = &[
    "GET /",
    "GET /healthz",
    "GET /metrics",
    "GET /openapi.json",
    "GET /v1/goldens",
    "GET /v1/status",
    "GET /v1/sessions",
    "POST /v1/sessions",
    "GET /v1/sessions/{id}",
    "DELETE /v1/sessions/{id}",
    "POST /v1/sessions/{id}/extend",
    "GET /v1/sessions/{id}/egress",
    "PUT /v1/sessions/{id}/egress",
    "GET /v1/sessions/{id}/logs",
    "GET /v1/sessions/{id}/stats",
    "POST /v1/sessions/{id}/exec",
    "GET /v1/sessions/{id}/exec/stream",
    "GET /v1/sessions/{id}/execs",
    "POST /v1/sessions/{id}/execs",
    "GET /v1/sessions/{id}/execs/{n}",
    "DELETE /v1/sessions/{id}/execs/{n}",
    "GET /v1/sessions/{id}/execs/{n}/attach",
    "GET /v1/sessions/{id}/execs/{n}/output",
    "POST /v1/sessions/{id}/execs/{n}/resize",
    "POST /v1/sessions/{id}/execs/{n}/signal",
    "POST /v1/sessions/{id}/execs/{n}/stdin",
    "DELETE /v1/sessions/{id}/files",
    "GET /v1/sessions/{id}/files/content",
    "PUT /v1/sessions/{id}/files/content",
    "GET /v1/sessions/{id}/files/list",
    "GET /v1/sessions/{id}/files/stat",
    "POST /v1/sessions/{id}/files/mkdir",
    "POST /v1/sessions/{id}/files/rename",
    "GET /v1/sessions/{id}/files/tar",
    "PUT /v1/sessions/{id}/files/tar",
    "GET /v1/sessions/{id}/files/watch",
    "ANY /v1/sessions/{id}/docker/{path}",
    "ANY /v1/sessions/{id}/ports/{port}/",
    "ANY /v1/sessions/{id}/ports/{port}/{path}",
    "GET /v1/sessions/{id}/tcp/{port}",
];

const ANY: &[&str] = &["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"];

fn expected() -> BTreeSet<(String, String)> {
    let pairs = ROUTES.iter().map(|route| route.split_once(' ').unwrap());
    let expand = |(method, path): (&'static str, &'static str)| {
        let methods = if method == "ANY" { ANY.to_vec() } else { vec![method] };
        methods.into_iter().map(move |method| (method.to_owned(), path.to_owned()))
    };
    pairs.flat_map(expand).collect()
}

async fn served(daemon: &Daemon) -> serde_json::Value {
    let response = daemon.ask(Method::GET, "/openapi.json", "").await;
    serde_json::from_str(&text(response).await).unwrap()
}

#[tokio::test]
#[ignore = "needs root"]
async fn the_document_has_every_route_and_every_route_is_there() {
    let daemon = Daemon::start().await;
    let document = served(&daemon).await;
    let (mut described, mut names) = (BTreeSet::new(), BTreeSet::new());
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            described.insert((method.to_uppercase(), path.clone()));
            let name = operation["operationId"].as_str().unwrap().to_owned();
            assert!(names.insert(name.clone()), "two operations are named {name}");
        }
    }
    assert_eq!(described, expected());
    // The router is made beside the document: ask it for each.
    for (method, path) in expected() {
        let path = path
            .replace("{id}", "nobody")
            .replace("{n}", "1")
            .replace("{port}", "80")
            .replace("{path}", "a/b");
        let response = daemon
            .ask(method.parse().unwrap(), &format!("{path}?path=/x&from=/x&to=/y"), "{}")
            .await;
        if !response.status().is_success() && method != "HEAD" {
            let (_, code) = refusal(response).await;
            assert!(
                !["no_such_route", "no_such_method"].contains(&code.as_str()),
                "{method} {path}: {code}"
            );
        }
    }
    daemon.service.shutdown().await;
}

#[tokio::test]
#[ignore = "needs root"]
async fn the_document_is_openapi_and_all_its_references_lead_somewhere() {
    let daemon = Daemon::start().await;
    let document = served(&daemon).await;
    let parsed: utoipa::openapi::OpenApi = serde_json::from_value(document.clone()).unwrap();
    assert!(parsed.components.is_some_and(|components| components.schemas.len() > 20));
    let mut stack = vec![&document];
    let mut references = 0;
    while let Some(value) = stack.pop() {
        match value {
            serde_json::Value::Object(map) => {
                if let Some(target) = map.get("$ref").and_then(serde_json::Value::as_str) {
                    references += 1;
                    let pointer = target.strip_prefix('#').unwrap();
                    assert!(document.pointer(pointer).is_some(), "{target} leads nowhere");
                }
                stack.extend(map.values());
            }
            serde_json::Value::Array(values) => stack.extend(values),
            _ => {}
        }
    }
    assert!(references > 50, "{references}");
    daemon.service.shutdown().await;
}
