//! Docker in sessions.

use std::time::Duration;

use crate::case::{Case, Context, Failure};
use crate::ensure;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "docker-run",
        about: "`docker run` in a session, from inside and with the host's client",
        quick: true,
        run: docker_run,
        ..Case::USUAL
    },
    Case {
        name: "docker-build",
        about: "`docker build` in a session makes an image that runs",
        limit: Duration::from_secs(600),
        run: docker_build,
        ..Case::USUAL
    },
    Case {
        name: "docker-compose",
        about: "`docker compose up --wait` in a session starts two services that talk",
        limit: Duration::from_secs(600),
        run: docker_compose,
        ..Case::USUAL
    },
];

fn docker_run(context: &mut Context) -> Result<(), Failure> {
    let inside =
        context.ok("mayfly run default -- docker run --rm busybox echo hello from a container")?;
    ensure!(inside.trim() == "hello from a container", "{inside}");
    // Output and exit code of one container with the host's client.
    let outside = "mayfly run --docker default -- docker run --rm busybox sh -c 'echo \"$0\" | rev; exit 4' olleh";
    let outside = context.sh(outside)?;
    ensure!(outside.stdout.trim() == "hello", "{outside:?}");
    ensure!(outside.exit == crate::guest_agent::Exit::Code(4), "{}", outside.ending());
    Ok(())
}

fn docker_build(context: &mut Context) -> Result<(), Failure> {
    let said = context.ok("mayfly run default -- sh -euc '
            mkdir /root/context; cd /root/context
            printf \"FROM busybox\\nRUN echo built in a layer >/made\\nCMD cat /made\\n\" >Dockerfile
            docker build --quiet --tag made . >&2
            docker run --rm made'")?;
    ensure!(said.trim() == "built in a layer", "{said}");
    Ok(())
}

fn docker_compose(context: &mut Context) -> Result<(), Failure> {
    let said = context.ok("mayfly run default -- sh -euc '
            mkdir /root/project; cd /root/project
            cat >compose.yaml <<END
services:
  web:
    image: busybox
    command: sh -c \"mkdir /www && echo served >/www/index.html && httpd -f -p 8080 -h /www\"
    healthcheck: { test: [CMD, wget, -q, -O, /dev/null, \"http://127.0.0.1:8080\"], interval: 2s, retries: 60 }
  client:
    image: busybox
    command: sleep 1000
    depends_on: { web: { condition: service_healthy } }
END
            docker compose up --detach --wait >&2
            docker compose exec -T client wget -q -O - http://web:8080
            docker compose down --timeout 1 >&2'")?;
    ensure!(said.trim() == "served", "{said}");
    Ok(())
}
