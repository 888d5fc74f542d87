//! Pulls and builds of a session's Docker daemon.

use std::path::Path;
use std::process::Command;

use mayfly_chaos_tests::network::{Page, Site};
use serde_json::{Value, json};

use crate::world::{World, allow};

/// Content and digest of a blob.
struct Blob(Vec<u8>, String);

impl Blob {
    fn new(content: Vec<u8>, dir: &Path) -> Self {
        std::fs::write(dir.join("blob"), &content).unwrap();
        let sum = run(Command::new("sha256sum").arg(dir.join("blob")));
        Self(
            content,
            format!("sha256:{}", String::from_utf8(sum).unwrap().split(' ').next().unwrap()),
        )
    }

    fn json(value: &Value, dir: &Path) -> Self {
        Self::new(value.to_string().into_bytes(), dir)
    }

    fn described(&self, kind: &str) -> Value {
        json!({ "mediaType": kind, "size": self.0.len(), "digest": self.1 })
    }
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A registry (OCI distribution specification) with one image, `tiny:1`, whose one file is
/// `/made-outside`.
fn registry() -> Site {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("made-outside"), "in a registry\n").unwrap();
    let layer = run(Command::new("tar").arg("-c").arg("-C").arg(dir.path()).arg("made-outside"));
    let layer = Blob::new(layer, dir.path());
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": { "Cmd": ["/none"] },
        "rootfs": { "type": "layers", "diff_ids": [layer.1] },
    });
    let config = Blob::json(&config, dir.path());
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": kind,
        "config": config.described("application/vnd.oci.image.config.v1+json"),
        "layers": [layer.described("application/vnd.oci.image.layer.v1.tar")],
    });
    let manifest = Blob::json(&manifest, dir.path());
    let digest = format!("docker-content-digest: {}", manifest.1);
    let page = Page::ok(manifest.0).header(format!("content-type: {kind}")).header(digest);
    let blob = |blob: Blob| (format!("/v2/tiny/blobs/{}", blob.1), Page::ok(blob.0));
    Site::from([
        ("/v2/".to_owned(), Page::ok("{}").header("docker-distribution-api-version: registry/2.0")),
        ("/v2/tiny/manifests/1".to_owned(), page.clone()),
        (format!("/v2/tiny/manifests/{}", manifest.1), page),
        blob(layer),
        blob(config),
        ("/added".to_owned(), Page::ok("added by a build\n")),
        ("/fetched".to_owned(), Page::ok("fetched by a build\n")),
    ])
}

/// Docker speaks plain HTTP only to registries that are said to be insecure; there is no
/// certificate in this network.
const INSECURE: &str = "sed -i 's|^{|{ \"insecure-registries\": [\"server.test\"],|' /etc/docker/daemon.json && \
                        kill -HUP $(pidof dockerd) && \
                        until docker info 2>/dev/null | grep -q server.test; do sleep 0.1; done";

#[test]
fn docker_pulls_and_builds_through_it() {
    World::run("enabled = true", registry(), async |world| {
        let id = world.start(allow(&["server.test"])).await;
        world.ok(&id, INSECURE).await;
        world.ok(&id, "docker pull server.test/tiny:1").await;
        let content =
            "c=$(docker create server.test/tiny:1) && docker cp $c:/made-outside - | tar -xO";
        assert_eq!(world.ok(&id, content).await, "in a registry\n");
        assert!(
            world.audit_of_ended(&id, &["kind=\"http\"", "server.test", "allowed"], 3).await >= 3,
            "{}",
            world.daemon.log()
        );

        let build = "mkdir -p /tmp/b && cd /tmp/b && printf '%s\\n' 'FROM busybox' 'ADD http://server.test/added /added' \
                     'RUN wget -q -O /fetched http://server.test/fetched' > Dockerfile && docker build -q -t built . && \
                     docker run --rm built cat /added /fetched";
        let said = world.ok(&id, build).await;
        assert!(said.contains("added by a build\nfetched by a build\n"), "{said}");
        // The proxy is no part of the image.
        assert_eq!(world.ok(&id, "docker inspect built | grep -ci _proxy || true").await, "0\n");

        let denied = world.sh(&id, "docker pull other.test/tiny:1").await;
        assert_ne!(denied.code, 0, "{}", denied.text);
        assert!(world.audit(&id, &["other.test", "denied"]) >= 1);
        let build = "cd /tmp/b && printf '%s\\n' 'FROM busybox' 'RUN wget -T 20 -O /x http://other.test/' > Dockerfile && \
                     docker build .";
        let denied = world.sh(&id, build).await;
        assert!(denied.code != 0 && denied.text.contains("403"), "{}", denied.text);
    });
}
