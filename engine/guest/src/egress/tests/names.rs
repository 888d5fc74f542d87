//! DNS queries of the guest.

use super::world::{World, policy};
use crate::egress::{Kind, Verdict};
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::net::UdpSocket;

async fn ask(socket: &UdpSocket, name: &str, kind: RecordType) -> Message {
    let mut query = Message::query();
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    socket.send(&query.to_vec().unwrap()).await.unwrap();
    let mut buffer = [0; 4096];
    let count = socket.recv(&mut buffer).await.unwrap();
    let answer = Message::from_vec(&buffer[..count]).unwrap();
    assert_eq!(answer.metadata.id, query.metadata.id);
    answer
}

#[test]
#[ignore = "needs root"]
fn names_of_the_policy_have_addresses_and_others_do_not_exist() {
    World::run(
        policy(&["server.test:8080", "inside.test", "both.test", "*.sub.test"]),
        async |world| {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            socket.connect(("127.0.0.1", world.egress.ports().dns)).await.unwrap();
            for (name, code, addresses) in [
                ("server.test.", ResponseCode::NoError, "198.51.100.7"),
                ("SERVER.test.", ResponseCode::NoError, "198.51.100.7"),
                ("a.sub.test.", ResponseCode::NoError, "198.51.100.7"),
                ("both.test.", ResponseCode::NoError, "198.51.100.7"),
                ("inside.test.", ResponseCode::NXDomain, ""),
                ("other.test.", ResponseCode::NXDomain, ""),
                ("localhost.", ResponseCode::NXDomain, ""),
            ] {
                let answer = ask(&socket, name, RecordType::A).await;
                assert_eq!(answer.metadata.response_code, code, "{name}");
                let found: Vec<String> =
                    answer.answers.iter().map(|record| record.data.to_string()).collect();
                assert_eq!(found.join(" "), addresses, "{name}");
                assert!(ask(&socket, name, RecordType::AAAA).await.answers.is_empty());
            }
            let lines = world.log.lines(14).await;
            assert!(lines.iter().all(|line| line.kind == Kind::Dns));
            assert_eq!(lines.iter().filter(|line| line.verdict == Verdict::Denied).count(), 6);
        },
    );
}

#[test]
#[ignore = "needs root"]
fn garbage_is_answered_and_too_much_at_once_is_dropped() {
    World::run(policy(&["server.test"]), async |world| {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(("127.0.0.1", world.egress.ports().dns)).await.unwrap();
        socket.send(&[7; 3]).await.unwrap();
        let mut buffer = [0; 4096];
        let count = socket.recv(&mut buffer).await.unwrap();
        assert_eq!(
            Message::from_vec(&buffer[..count]).unwrap().metadata.response_code,
            ResponseCode::FormErr
        );
        // Too long for a query, and a flood: nobody has to answer all of it, but it must go on.
        socket.send(&[0; 10_000]).await.unwrap();
        for _ in 0..500 {
            let _ = socket.send(&[7; 3]).await;
        }
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(("127.0.0.1", world.egress.ports().dns)).await.unwrap();
        loop {
            let asked = tokio::time::timeout(
                std::time::Duration::from_secs(1),
                ask(&socket, "server.test.", RecordType::A),
            );
            if let Ok(answer) = asked.await {
                assert_eq!(answer.answers.len(), 1);
                break;
            }
        }
    });
}
