//! Exchange with the name servers of this host (RFC 1035): one socket at a time for a look-up, over
//! UDP, and over TCP what does not fit. Everything ends when its future is dropped.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::system::NameServers;

/// Longest datagram in bytes (RFC 9715).
const PAYLOAD: u16 = 1232;
/// Aliases that are followed within one answer.
const MAX_ALIASES: usize = 16;
/// Addresses of each kind that are looked at.
const MAX_ADDRESSES: usize = 8;

/// Why there are no addresses. None of these tells anything about the name servers.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotFound {
    #[error("there is no such name")]
    NoName,
    #[error("it has no address")]
    NoAddress,
    #[error("it cannot be a name")]
    BadName,
    #[error("no name server of this host answered in time")]
    Silent,
    #[error("the name servers of this host could not tell: {0}")]
    Refused(ResponseCode),
    #[error("the name servers of this host cannot be asked: {0}")]
    Failed(io::ErrorKind),
}

impl NotFound {
    /// Whether asking somebody else is of no use.
    fn is_final(&self) -> bool {
        matches!(self, Self::NoName | Self::NoAddress)
    }
}

/// Asks for the addresses of a name, which is absolute, until `end`: at least one, IPv4 before
/// IPv6.
pub(super) async fn look_up(
    name: &str,
    servers: &NameServers,
    end: Instant,
) -> Result<Vec<IpAddr>, NotFound> {
    let labels = name.split('.').map(str::as_bytes);
    // Its encoding has no form that is not absolute.
    let name = Name::from_labels(labels).map_err(|_| NotFound::BadName)?;
    let tries = servers.attempts * servers.addresses.len();
    let mut found = Err(NotFound::Silent);
    for (number, server) in servers.addresses.iter().cycle().take(tries).enumerate() {
        let left = end.saturating_duration_since(Instant::now());
        // So that the last one is asked, too.
        let limit = servers.timeout.min(left / u32::try_from(tries - number).unwrap_or(1));
        let is_extended = number < servers.addresses.len();
        found = ask(&name, *server, servers.only_tcp, is_extended, limit).await;
        if found.as_ref().map_or_else(NotFound::is_final, |_| true) {
            break;
        }
    }
    found
}

/// A query for one kind of address.
struct Question {
    query: Query,
    id: u16,
    bytes: Vec<u8>,
}

impl Question {
    fn new(name: &Name, kind: RecordType, is_extended: bool) -> Result<Self, NotFound> {
        let query = Query::query(name.clone(), kind);
        // With a random id.
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(query.clone());
        if is_extended {
            let mut edns = Edns::new();
            edns.set_max_payload(PAYLOAD);
            message.set_edns(edns);
        }
        let bytes = message.to_vec().map_err(|_| NotFound::BadName)?;
        Ok(Self { query, id: message.metadata.id, bytes })
    }

    /// Reads a message that may be the answer; absent when it is not.
    fn answer(&self, bytes: &[u8]) -> Option<Message> {
        let message = Message::from_vec(bytes).ok()?;
        let is_ours = message.metadata.id == self.id
            && message.metadata.message_type == MessageType::Response
            // A server that does not understand a message may answer without its question.
            && match message.queries.as_slice() {
                [query] => *query == self.query,
                [] => message.metadata.response_code == ResponseCode::FormErr,
                _ => false,
            };
        is_ours.then_some(message)
    }
}

/// Asks one server for both kinds of addresses. One kind is enough if the other does not come.
async fn ask(
    name: &Name,
    server: SocketAddr,
    only_tcp: bool,
    is_extended: bool,
    limit: Duration,
) -> Result<Vec<IpAddr>, NotFound> {
    let questions = [
        Question::new(name, RecordType::A, is_extended)?,
        Question::new(name, RecordType::AAAA, is_extended)?,
    ];
    let mut answers = [None, None];
    let work = async {
        if !only_tcp {
            over_udp(server, &questions, &mut answers).await?;
        }
        for (question, answer) in questions.iter().zip(&mut answers) {
            if answer.as_ref().is_none_or(|answer: &Message| answer.metadata.truncation) {
                *answer = None;
                *answer = Some(over_tcp(server, question).await?);
            }
        }
        Ok::<_, io::Error>(())
    };
    let missing = match tokio::time::timeout(limit, work).await {
        Ok(Err(error)) => NotFound::Failed(error.kind()),
        _ => NotFound::Silent,
    };
    conclude(name, &answers, missing)
}

/// What both answers say together; `missing` is why one may not be there.
fn conclude(
    name: &Name,
    answers: &[Option<Message>; 2],
    missing: NotFound,
) -> Result<Vec<IpAddr>, NotFound> {
    let mut found = Vec::new();
    let mut code = None;
    for answer in answers.iter().flatten() {
        match answer.metadata.response_code {
            ResponseCode::NoError => found.extend(addresses(name, answer)),
            other => code = code.or(Some(other)),
        }
    }
    match code {
        _ if !found.is_empty() => Ok(found),
        Some(ResponseCode::NXDomain) => Err(NotFound::NoName),
        Some(code) => Err(NotFound::Refused(code)),
        None if answers.iter().all(Option::is_some) => Err(NotFound::NoAddress),
        None => Err(missing),
    }
}

/// The addresses of `name`, and of what it is an alias of, in an answer.
fn addresses(name: &Name, answer: &Message) -> Vec<IpAddr> {
    let alias_of = |name: &Name| {
        answer.answers.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == *name => Some(target.0.clone()),
            _ => None,
        })
    };
    let mut name = name.clone();
    for _ in 0..MAX_ALIASES {
        let Some(target) = alias_of(&name) else { break };
        name = target;
    }
    let mut addresses = Vec::new();
    for record in answer.answers.iter().filter(|record| record.name == name) {
        let address = match &record.data {
            RData::A(address) => IpAddr::V4(address.0),
            RData::AAAA(address) => IpAddr::V6(address.0).to_canonical(),
            _ => continue,
        };
        if !addresses.contains(&address) && addresses.len() < MAX_ADDRESSES {
            addresses.push(address);
        }
    }
    addresses
}

/// Until there is an answer to each question. The socket is bound to a random port and connected,
/// so that the kernel drops what others send.
async fn over_udp(
    server: SocketAddr,
    questions: &[Question; 2],
    answers: &mut [Option<Message>; 2],
) -> io::Result<()> {
    let any: SocketAddr = if server.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    for question in questions {
        socket.send(&question.bytes).await?;
    }
    // More than was asked for: a server that ignores it is still understood.
    let mut buffer = [0; 4096];
    while answers.iter().any(Option::is_none) {
        let count = socket.recv(&mut buffer).await?;
        for (question, answer) in questions.iter().zip(&mut *answers) {
            if answer.is_none() {
                *answer = question.answer(&buffer[..count]);
            }
        }
    }
    Ok(())
}

/// With the length in front (RFC 1035, section 4.2.2).
async fn over_tcp(server: SocketAddr, question: &Question) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], &question.bytes].concat()).await?;
    let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut bytes).await?;
    question.answer(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), at in 0usize..80) {
            let name = Name::from_ascii("a.test.").unwrap();
            let question = Question::new(&name, RecordType::A, true).unwrap();
            let read = |bytes: &[u8]| question.answer(bytes).map(|answer| addresses(&name, &answer));
            prop_assert!(read(&bytes).is_none_or(|found| found.len() <= MAX_ADDRESSES));
            let mut own = question.bytes.clone();
            own[2] |= 0x80;
            let mixed = [&own[..at.min(own.len())], &bytes].concat();
            prop_assert!(read(&mixed).is_none_or(|found| found.len() <= MAX_ADDRESSES));
        }
    }
}
