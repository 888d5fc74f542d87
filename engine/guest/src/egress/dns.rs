//! Answers the DNS queries of a guest: addresses of names that its policy allows, and nothing else.

use super::decision::NoName;
use super::proxy::Outside;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};
use std::net::IpAddr;

/// Seconds for which a guest may keep an answer. It leads nowhere by itself: connections are
/// checked anew.
const TTL: u32 = 30;
/// With these an answer stays below the 512 bytes of RFC 1035, section 4.2.1, so that it need not
/// be cut.
const MAX_ANSWERS: usize = 8;
/// RFC 9715.
const PAYLOAD: u16 = 1232;
/// Id and flags.
const ID: usize = 2;

/// A query that asks for something an answer can be looked up for.
#[derive(Debug)]
pub struct Question {
    /// The name, without its last dot, as it was asked for.
    pub name: String,
    query: Query,
}

/// Reads a query.
///
/// # Errors
/// The whole answer, when it can be given without looking anything up.
pub fn read(message: &[u8]) -> Result<(Message, Question), Vec<u8>> {
    let Ok(asked) = Message::from_vec(message) else {
        let id = message.first_chunk::<ID>().map_or(0, |id| u16::from_be_bytes(*id));
        return Err(encode(&Message::error_msg(id, OpCode::Query, ResponseCode::FormErr)));
    };
    let mut answer = Message::response(asked.metadata.id, asked.metadata.op_code);
    answer.metadata.recursion_desired = asked.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    if asked.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD);
        answer.set_edns(edns);
    }
    let refuse = |mut answer: Message, code| {
        answer.metadata.response_code = code;
        Err(encode(&answer))
    };
    if asked.metadata.message_type != MessageType::Query {
        return refuse(answer, ResponseCode::FormErr);
    }
    if asked.metadata.op_code != OpCode::Query {
        return refuse(answer, ResponseCode::NotImp);
    }
    let [query] = asked.queries.as_slice() else { return refuse(answer, ResponseCode::FormErr) };
    answer.add_query(query.clone());
    if query.query_class != DNSClass::IN {
        return refuse(answer, ResponseCode::NotImp);
    }
    let name = query.name.to_ascii();
    let name = name.strip_suffix('.').unwrap_or(&name).to_owned();
    let query = query.clone();
    Ok((answer, Question { name, query }))
}

/// Answers a query, whatever it is.
pub(super) async fn answer(outside: &Outside, message: &[u8]) -> Vec<u8> {
    match read(message) {
        Ok((answer, question)) => {
            let found = outside.look_up(&question.name).await;
            conclude(answer, &question, found)
        }
        Err(answer) => answer,
    }
}

/// The answer to a question whose name led to `found`.
pub(super) fn conclude(
    mut answer: Message,
    question: &Question,
    found: Result<Vec<IpAddr>, NoName>,
) -> Vec<u8> {
    match found {
        Ok(addresses) => add(&mut answer, question, &addresses),
        Err(NoName::Denied) => answer.metadata.response_code = ResponseCode::NXDomain,
        Err(NoName::Failed) => answer.metadata.response_code = ResponseCode::ServFail,
    }
    encode(&answer)
}

/// Adds the addresses of the kind that was asked for. For another kind of record there is no
/// answer, which is not an error.
fn add(answer: &mut Message, question: &Question, addresses: &[IpAddr]) {
    let wanted = question.query.query_type;
    let records = addresses.iter().filter_map(|address| match address {
        IpAddr::V4(address) if wanted == RecordType::A => Some(RData::A((*address).into())),
        IpAddr::V6(address) if wanted == RecordType::AAAA => Some(RData::AAAA((*address).into())),
        _ => None,
    });
    for data in records.take(MAX_ANSWERS) {
        answer.add_answer(Record::from_rdata(question.query.name.clone(), TTL, data));
    }
}

/// Encodes an answer; one that cannot be, which none of ours is, becomes an empty message that
/// clients pass over.
fn encode(message: &Message) -> Vec<u8> {
    message.to_vec().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::Policy;
    use crate::egress::fuzzing::Inner;
    use hickory_proto::rr::Name;
    use proptest::prelude::*;

    fn query(name: &str, kind: RecordType) -> Message {
        let mut message = Message::query();
        message.metadata.id = 4711;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    fn inner() -> Inner {
        let exempt = ["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
        let policy = Policy::allow(["localhost", "allowed.invalid"]).unwrap();
        Inner::new(policy.with_exempt(exempt).unwrap())
    }

    async fn ask(message: &Message) -> Message {
        Message::from_vec(&inner().answer(&message.to_vec().unwrap()).await).unwrap()
    }

    #[tokio::test]
    async fn only_names_of_the_policy_whose_addresses_pass_exist() {
        for (name, code) in [
            ("other.example.", ResponseCode::NXDomain),
            // Allowed, and leads to this host.
            ("localhost.", ResponseCode::NXDomain),
            ("allowed.invalid.", ResponseCode::ServFail),
            ("127.0.0.1.", ResponseCode::NXDomain),
            (".", ResponseCode::NXDomain),
        ] {
            for kind in [RecordType::A, RecordType::AAAA, RecordType::TXT] {
                let answer = ask(&query(name, kind)).await;
                assert_eq!(
                    (answer.metadata.response_code, answer.answers.len()),
                    (code, 0),
                    "{name} {kind}"
                );
                assert_eq!(
                    (answer.metadata.id, answer.metadata.message_type),
                    (4711, MessageType::Response)
                );
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_question_for_an_address_is_answered_with_an_error() {
        let mut update = query("localhost.", RecordType::A);
        update.metadata.op_code = OpCode::Update;
        assert_eq!(ask(&update).await.metadata.response_code, ResponseCode::NotImp);
        let mut chaos = query("localhost.", RecordType::A);
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert_eq!(ask(&chaos).await.metadata.response_code, ResponseCode::NotImp);
        let mut two = query("localhost.", RecordType::A);
        two.add_query(two.queries[0].clone());
        assert_eq!(ask(&two).await.metadata.response_code, ResponseCode::FormErr);
        let garbage = Message::from_vec(&inner().answer(&[1, 2, 3]).await).unwrap();
        assert_eq!(
            (garbage.metadata.id, garbage.metadata.response_code),
            (0x0102, ResponseCode::FormErr)
        );
    }

    #[test]
    fn the_longest_answer_is_not_cut() {
        let name = [["a"; 31].join(""), ["b"; 63].join(""), ["c"; 63].join(""), ["d"; 63].join("")]
            .join(".");
        let mut asked = query(&name, RecordType::AAAA);
        asked.set_edns(Edns::new());
        let (mut answer, question) = read(&asked.to_vec().unwrap()).unwrap();
        let addresses: Vec<IpAddr> =
            (0..20).map(|n| IpAddr::V6(std::net::Ipv6Addr::from_bits(n))).collect();
        add(&mut answer, &question, &addresses);
        assert_eq!(answer.answers.len(), MAX_ANSWERS);
        assert!(encode(&answer).len() <= 768, "{}", encode(&answer).len());
        let (mut answer, question) =
            read(&query("a.example.", RecordType::A).to_vec().unwrap()).unwrap();
        add(&mut answer, &question, &[addresses[0], "192.0.2.1".parse().unwrap()]);
        assert_eq!(answer.answers.len(), 1);
    }

    proptest! {
        #[test]
        fn no_message_makes_it_panic(message in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Err(answer) = read(&message) {
                prop_assert!(!answer.is_empty());
            }
        }

        #[test]
        fn a_query_with_some_bytes_changed_makes_no_panic(at in 0usize..40, byte in any::<u8>()) {
            let mut message = query("some.name.example.", RecordType::A).to_vec().unwrap();
            let at = at % message.len();
            message[at] = byte;
            let _ = read(&message);
        }
    }
}
