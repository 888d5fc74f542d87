//! Tests of the client against a VMM that is played.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncBufReadExt, BufReader};

use super::*;
use crate::console::{MOST_BYTES, WINDOW};

/// Plays the VMM's side of a recorded conversation: for each command line, the given lines go out.
fn conversation(
    greeting: &str,
    answers: &[&str],
) -> (QmpClient, tokio::task::JoinHandle<Vec<String>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (greeting, answers) =
        (greeting.to_owned(), answers.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>());
    let peer = tokio::spawn(async move {
        let (reader, mut writer) = theirs.into_split();
        let mut lines = BufReader::new(reader).lines();
        let mut seen = Vec::new();
        writer.write_all(greeting.as_bytes()).await.unwrap();
        for answer in answers {
            seen.push(lines.next_line().await.unwrap().unwrap());
            writer.write_all(answer.as_bytes()).await.unwrap();
        }
        seen
    });
    (QmpClient::new(ours), peer)
}

const GREETING: &str = "{\"QMP\":{\"version\":{},\"capabilities\":[]}}\r\n";

#[tokio::test]
async fn a_reply_is_found_behind_greeting_and_events() {
    let event = "{\"event\":\"STOP\",\"timestamp\":{\"seconds\":1,\"microseconds\":2}}\r\n";
    let (mut client, peer) =
        conversation(GREETING, &[&format!("{event}{{\"return\":{{}},\"id\":1}}\r\n")]);
    client.execute(schema::Stop {}).await.unwrap();
    client.wait_event::<schema::Stopped>().await.unwrap();
    assert_eq!(peer.await.unwrap(), ["{\"execute\":\"stop\",\"arguments\":{},\"id\":1}"]);
}

#[tokio::test]
async fn a_refusal_carries_the_words_of_the_vmm() {
    let refusal = "{\"id\":1,\"error\":{\"class\":\"GenericError\",\"desc\":\"no such thing\"}}\n";
    let (mut client, _peer) = conversation(GREETING, &[refusal]);
    let error = client.execute(schema::Cont {}).await.unwrap_err();
    assert_eq!(error.to_string(), "the VMM refused cont: no such thing");
}

#[tokio::test]
async fn a_line_longer_than_qemu_sends_is_refused() {
    let endless = "x".repeat((64 << 10) + 2);
    let event = format!("{{\"event\":\"X\",\"data\":[{}0]}}\n", "0,".repeat(40 << 10));
    for long in [endless, event] {
        let (mut client, _peer) = conversation("", &[&long]);
        let error = client.execute(schema::Cont {}).await.unwrap_err();
        assert!(matches!(error, QmpError::Invalid { .. }), "{error}");
    }
}

#[tokio::test]
async fn garbage_and_hang_up_are_typed_errors() {
    let (mut client, _peer) = conversation("", &["\u{1}\u{2} not json\n"]);
    assert!(matches!(client.execute(schema::Cont {}).await, Err(QmpError::Invalid { .. })));
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let mut client = QmpClient::new(ours);
    assert!(matches!(
        client.execute(schema::Cont {}).await,
        Err(QmpError::Closed { .. } | QmpError::Io { .. })
    ));
}

#[tokio::test]
async fn a_line_that_is_no_text_is_told_apart_from_a_lost_connection() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(b"{\"event\":\"\xff\"}\n").await.unwrap();
    let error = QmpClient::new(ours).listen().await.unwrap_err();
    assert!(matches!(error, QmpError::Invalid { .. }), "{error}");
}

#[tokio::test]
async fn what_waits_is_bounded_in_bytes_and_the_newest_is_kept() {
    let long = format!("{{\"event\":\"X\",\"data\":[{}0]}}\n", "0,".repeat(10_000));
    let stop = "{\"event\":\"STOP\"}\n";
    for (events, most) in [(long.repeat(12), 64 << 10), (stop.repeat(200), 32 * stop.len())] {
        let answers = format!("{events}{stop}{{\"return\":{{}},\"id\":1}}\n");
        let (mut client, _peer) = conversation(GREETING, &[&answers]);
        client.execute(schema::Cont {}).await.unwrap();
        assert!(client.events.bytes <= most && client.events.messages.len() <= 32);
        client.wait_event::<schema::Stopped>().await.unwrap();
        let held: usize = client.events.messages.iter().map(|message| message.size).sum();
        assert_eq!(client.events.bytes, held);
    }
}

/// Sends `line` without end; returns the connection and what is sent so far.
fn flood(line: &str) -> (QmpClient, Arc<AtomicUsize>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let sent = Arc::new(AtomicUsize::new(0));
    let (counted, line) = (Arc::clone(&sent), line.to_owned());
    tokio::spawn(async move {
        while theirs.write_all(line.as_bytes()).await.is_ok() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    (QmpClient::new(ours), sent)
}

#[tokio::test]
async fn a_vmm_that_sends_without_end_is_read_at_a_bounded_rate() {
    let long = format!("{{\"event\":\"X\",\"data\":[{}0]}}\n", "0,".repeat(30 << 10));
    for line in [&*long, "{\"event\":\"X\"}\n"] {
        for waits_for_an_answer in [false, true] {
            let begun = Instant::now();
            let (mut client, sent) = flood(line);
            let mut read = 0;
            let listen = async {
                if waits_for_an_answer {
                    client.execute(schema::Cont {}).await.unwrap_err();
                } else {
                    while client.listen().await.is_ok() {
                        read += 1;
                        // Given up again and again, as by the supervisor of a session.
                        let _ = tokio::time::timeout(Duration::ZERO, client.listen()).await;
                    }
                }
            };
            tokio::time::timeout(3 * WINDOW / 2, listen).await.unwrap_err();
            // The first window and what has begun since, whole ones on a slow machine.
            let windows = 1 + usize::try_from(begun.elapsed().as_secs()).unwrap();
            let cost = line.len() + EACH;
            assert!(read * cost <= windows * (MOST_BYTES + cost), "{read} messages");
            let in_sockets = 1 << 20;
            let bytes = sent.load(Ordering::Relaxed) * line.len();
            assert!(bytes <= windows * (MOST_BYTES + cost) + in_sockets, "{bytes} bytes");
        }
    }
}

#[tokio::test]
async fn answers_of_an_honest_vmm_come_without_a_rest() {
    // More than a session has in its life, with what QEMU sends beside them.
    let event = "{\"timestamp\": {\"seconds\": 1795817026, \"microseconds\": 696292}, \"event\": \"RESUME\"}\r\n";
    let answers: Vec<_> =
        (1..=1000).map(|id| format!("{event}{{\"return\": {{}}, \"id\": {id}}}\r\n")).collect();
    let answers: Vec<_> = answers.iter().map(String::as_str).collect();
    let (mut client, _peer) = conversation(GREETING, &answers);
    for _ in 0..1000 {
        client.execute(schema::Cont {}).await.unwrap();
        assert_eq!(client.rest, None);
    }
}

#[tokio::test]
async fn an_answer_that_exhausts_what_may_be_read_is_handed_on_before_the_rest() {
    let answer = "{\"return\":{},\"id\":1}\n";
    let (mut client, _peer) = conversation(GREETING, &[answer, "{\"return\":{},\"id\":2}\n"]);
    client.throttle.count(MOST_BYTES - EACH - GREETING.len(), Instant::now());
    client.execute(schema::Cont {}).await.unwrap();
    let end = client.rest.expect("that was too much");
    client.execute(schema::Stop {}).await.unwrap();
    assert!(Instant::now() >= end);
}

#[tokio::test]
async fn words_of_the_vmm_cannot_steer_a_terminal() {
    let refusal = "{\"id\":1,\"error\":{\"class\":\"GenericError\",\"desc\":\"\\u001b[2Jgone\"}}\n";
    let (mut client, _peer) = conversation(GREETING, &[refusal]);
    let error = client.execute(schema::Cont {}).await.unwrap_err();
    assert_eq!(error.to_string(), "the VMM refused cont: \\u{1b}[2Jgone");
}

#[tokio::test]
async fn silence_runs_into_the_limit() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let mut client = QmpClient::new(ours);
    let limit = Duration::from_millis(20);
    let error = within(limit, "cont", client.execute(schema::Cont {})).await.unwrap_err();
    assert!(matches!(error, QmpError::TimedOut { .. }));
}
