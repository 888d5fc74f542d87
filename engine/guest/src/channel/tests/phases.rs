//! Identity, parking, opening again.

use super::{Agent, hello};
use crate::channel::{Channel, ChannelError, ExecRequest};
use mayfly_protocol::{ACK_MAGIC, HELLO_MAGIC, HelloAck, Scanner, encode_handshake};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn the_identity_is_applied_before_the_channel_opens() {
    let (agent, channel) = Agent::open().await;
    assert_eq!(agent.identity("hostname"), "mayfly-first\n");
    assert_eq!(agent.identity("machine-id"), "11".repeat(16) + "\n");
    assert_eq!(agent.identity("boot_id"), "22222222-2222-2222-2222-222222222222\n");
    assert_eq!(agent.identity("clock"), "1800000000000000000\n");
    assert!(agent.identity("hosts").contains("127.0.1.1\tmayfly-first\n"));
    assert_eq!(agent.identity("entropy").as_bytes(), [0x33; 64]);
    let health = channel.health().await.unwrap();
    assert_eq!(health.session, "first");
    assert_eq!(health.docker, None);
    assert!(health.memory_total > health.memory_available && health.memory_available > 0);
}

#[tokio::test]
#[ignore = "needs root"]
async fn parks_and_opens_again_many_times() {
    let (agent, mut channel) = Agent::open().await;
    for round in 0..20 {
        // Something is in flight when it parks: this command is killed, and its stream's bytes are
        // dropped.
        let mut busy = channel
            .exec(ExecRequest::new(["sh", "-c", "yes | head -c 300000; exec sleep 1000"]))
            .await
            .unwrap();
        busy.recv().await.unwrap();
        let stream = channel.park().await.unwrap();
        loop {
            match busy.recv().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the command has ended by itself"),
                Err(error) => {
                    assert!(
                        matches!(
                            error,
                            ChannelError::Closed { .. }
                                | ChannelError::Io(_)
                                | ChannelError::Protocol { .. }
                        ),
                        "{error}"
                    );
                    break;
                }
            }
        }
        let name = format!("round-{round}");
        let (again, ack) = Channel::open(stream, &hello(&name)).await.unwrap();
        assert!(ack.open);
        assert_eq!(agent.identity("hostname"), format!("mayfly-{name}\n"));
        assert_eq!(again.health().await.unwrap().session, name);
        channel = again;
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn parking_leaves_nothing_behind() {
    let (agent, mut channel) = Agent::open().await;
    let directory = tempfile::tempdir().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    // Filled by the first rounds, flat afterwards.
    let mut settled = None;
    for round in 0..20 {
        // One of each request that holds something, in flight when it parks.
        let command = channel.exec(ExecRequest::new(["sleep", "1000"])).await.unwrap();
        let watch = channel.watch(directory.path(), true).await.unwrap();
        let tcp = channel.connect_tcp(port).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        let mut tar = channel.open_tar("/usr/bin", false, u64::MAX).await.unwrap();
        tar.next_chunk().await.unwrap();
        let (_, file) = channel.open_read("/proc/self/exe", 0, u64::MAX).await.unwrap();
        channel.stats().await.unwrap();
        assert!(agent.children().len() >= 2, "the command and the helper that packs");

        let stream = channel.park().await.unwrap();
        // Parked: one thread, and the port is read without a runtime.
        assert_eq!(agent.status("Threads"), 1);
        // Its end of the connection is gone.
        assert_eq!(peer.read(&mut [0; 16]).await.unwrap_or(0), 0);
        let descriptors = agent.descriptors();
        let before = *settled.get_or_insert(descriptors);
        assert_eq!(descriptors, before, "round {round}");
        drop((command, watch, tcp, tar, file));
        let name = format!("round-{round}");
        let (again, ack) = Channel::open(stream, &hello(&name)).await.unwrap();
        assert!(ack.open);
        while !agent.children().is_empty() {
            again.health().await.unwrap();
        }
        channel = again;
    }
    drop(channel);
}

#[tokio::test]
async fn memory_is_flat_over_many_sessions_of_one_agent() {
    let (agent, channel) = Agent::open().await;
    let mut stream = channel.park().await.unwrap();
    let mut after_ten = 0;
    for round in 0..110 {
        let (channel, _) = Channel::open(stream, &hello(&format!("round-{round}"))).await.unwrap();
        let watch = channel.watch("/proc/self", false).await.unwrap();
        channel.stats().await.unwrap();
        stream = channel.park().await.unwrap();
        drop(watch);
        if round == 9 {
            after_ten = agent.resident();
        }
    }
    // A hundred rounds that each kept one buffer of the channel would be far more.
    assert!(agent.resident() < after_ten + (1 << 20), "{} -> {}", after_ten, agent.resident());
}

#[tokio::test]
#[ignore = "needs root"]
async fn stats_are_those_of_the_system() {
    let (_agent, channel) = Agent::open().await;
    let before = channel.stats().await.unwrap();
    assert!(
        before.memory_total > before.memory_available && before.memory_available > 0,
        "{before:?}"
    );
    assert!(
        before.disk_total > before.disk_available && before.cpus > 0 && before.processes > 2,
        "{before:?}"
    );
    let root = nix::sys::statvfs::statvfs("/").unwrap();
    assert_eq!(before.disk_total, root.blocks() * root.fragment_size());
    // A quarter of a second of work shows.
    channel
        .exec(ExecRequest::new(["sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"]))
        .await
        .unwrap()
        .output()
        .await
        .unwrap();
    let after = channel.stats().await.unwrap();
    assert!(after.cpu_busy_ms > before.cpu_busy_ms, "{before:?} {after:?}");
}

#[tokio::test]
async fn parks_before_any_request_too() {
    let (_agent, channel) = Agent::open().await;
    let stream = channel.park().await.unwrap();
    let (channel, _) = Channel::open(stream, &hello("second")).await.unwrap();
    channel.health().await.unwrap();
}

#[tokio::test]
async fn a_hook_that_fails_is_named_in_the_acknowledgement() {
    use std::os::unix::fs::PermissionsExt;
    let (agent, channel) = Agent::open().await;
    let hooks = agent.state.path().join("hooks.d");
    std::fs::create_dir(&hooks).unwrap();
    let hook = hooks.join("reseed");
    std::fs::write(&hook, "#!/bin/sh\nexit 7\n").unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    let stream = channel.park().await.unwrap();
    let (_channel, ack) = Channel::open(stream, &hello("second")).await.unwrap();
    assert_eq!(ack.errors.len(), 1);
    assert_eq!(ack.errors[0].step, "hook reseed");
    assert!(ack.errors[0].message.contains('7'), "{}", ack.errors[0].message);
}

#[tokio::test]
async fn garbage_and_a_bad_hello_leave_the_agent_parked() {
    let (_agent, mut stream) = Agent::start();
    stream.write_all(&[0x55; 10_000]).await.unwrap();
    stream.write_all(&encode_handshake(&HELLO_MAGIC, b"\x01nonsense")).await.unwrap();
    let mut scanner = Scanner::new(ACK_MAGIC);
    let refusal = loop {
        if let Some(payload) = scanner.next_payload() {
            break HelloAck::decode(&payload).unwrap();
        }
        let mut buffer = [0; 512];
        let count = stream.read(&mut buffer).await.unwrap();
        assert_ne!(count, 0);
        scanner.push(&buffer[..count]);
    };
    assert!(!refusal.open);
    let (channel, _) = Channel::open(stream, &hello("good")).await.unwrap();
    channel.health().await.unwrap();
}

#[tokio::test]
async fn a_new_hello_takes_over_an_open_channel() {
    // As after a crash of the engine: the agent is still in the open phase, on the same port.
    let (_agent, mut stream) = Agent::start();
    stream.write_all(&hello("lost").encode().unwrap()).await.unwrap();
    let mut scanner = Scanner::new(ACK_MAGIC);
    while scanner.next_payload().is_none() {
        let mut buffer = [0; 512];
        let count = stream.read(&mut buffer).await.unwrap();
        scanner.push(&buffer[..count]);
    }
    let (channel, _) = Channel::open(stream, &hello("found")).await.unwrap();
    assert_eq!(channel.health().await.unwrap().session, "found");
}

#[tokio::test]
async fn an_identity_that_breaks_its_rules_is_never_sent() {
    let (host, mut guest) = tokio::net::UnixStream::pair().unwrap();
    let bad = mayfly_protocol::Hello { hostname: "two words".into(), ..hello("x") };
    assert!(matches!(Channel::open(host, &bad).await, Err(ChannelError::Handshake(_))));
    assert_eq!(guest.read(&mut [0; 16]).await.unwrap(), 0);
}

#[tokio::test]
async fn what_belongs_to_a_guest_only_is_refused_on_a_host() {
    let (_agent, channel) = Agent::open().await;
    assert!(matches!(channel.quiesce().await, Err(ChannelError::Guest(_))));
    assert!(matches!(channel.power_off().await, Err(ChannelError::Guest(_))));
}

#[tokio::test]
async fn readiness_names_the_service_and_shows_its_log() {
    let (agent, channel) = Agent::open().await;
    let put = |name: &str, text: &str| {
        let path = agent.state.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    put("services", "dockerd=/usr/bin/dockerd\nready=docker:/nonexistent/docker.sock\n");
    put("log/dockerd.log", "level=fatal msg=\"no space left\"\n");
    put("states/dockerd", "running 12\n");
    let late = channel.wait_ready(Duration::from_millis(1)).await.unwrap_err().to_string();
    assert!(
        late.contains("did not answer within 1 ms") && late.contains("no space left"),
        "{late}"
    );
    put("states/dockerd", "exited 1\n");
    let ended = channel.wait_ready(Duration::from_secs(60)).await.unwrap_err().to_string();
    assert!(ended.contains("dockerd has ended") && ended.contains("no space left"), "{ended}");
}

#[tokio::test]
async fn readiness_is_an_answer_of_the_docker_api() {
    let (agent, channel) = Agent::open().await;
    let socket = agent.state.path().join("docker.sock");
    std::fs::write(
        agent.state.path().join("services"),
        format!("ready=docker:{}\n", socket.display()),
    )
    .unwrap();
    let wait = channel.wait_ready(Duration::from_secs(60));
    let serve = async {
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        for answer in [
            "HTTP/1.0 503 Service Unavailable\r\n\r\n",
            "HTTP/1.0 200 OK\r\n\r\nOK",
            "HTTP/1.0 200 OK\r\n\r\nOK",
        ] {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(client.read_u8().await.unwrap());
            }
            assert!(request.starts_with(b"GET /_ping HTTP/1"));
            client.write_all(answer.as_bytes()).await.unwrap();
        }
    };
    let (health, ()) = tokio::join!(wait, serve);
    assert_eq!(health.unwrap().docker, Some(true));
}
