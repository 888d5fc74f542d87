//! A name server whose answers depend on the first label of a name.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::task::AbortOnDropHandle;

/// What every name has that has addresses.
pub const V4: &str = "192.0.2.1";
pub const V6: &str = "2001:db8::1";

/// A query as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub name: String,
    pub kind: RecordType,
    pub over_tcp: bool,
    pub from: SocketAddr,
}

/// A server that runs until it is dropped.
pub struct NameServer {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

impl NameServer {
    /// Starts one at an address; port 0 is any that is free for both protocols.
    pub async fn start(ip: [u8; 4], port: u16) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind((Ipv4Addr::from(ip), port)).await.unwrap();
            match TcpListener::bind(udp.local_addr().unwrap()).await {
                Ok(tcp) => break (udp, tcp),
                Err(error) => assert_eq!(port, 0, "{error}"),
            }
        };
        let address = udp.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let tasks = [
            tokio::spawn(serve_udp(udp, asked.clone())),
            tokio::spawn(serve_tcp(tcp, asked.clone())),
        ];
        Self { address, asked, _tasks: tasks.map(AbortOnDropHandle::new) }
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().clone()
    }

    /// Returns the different names that were asked for.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.asked().into_iter().map(|asked| asked.name).collect();
        names.sort();
        names.dedup();
        names
    }
}

async fn serve_udp(socket: UdpSocket, log: Arc<Mutex<Vec<Asked>>>) {
    let mut buffer = [0; 4096];
    loop {
        // An error is that of an earlier answer whose client is gone.
        let Ok((count, from)) = socket.recv_from(&mut buffer).await else { continue };
        for answer in answers(&buffer[..count], false, from, &log) {
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

async fn serve_tcp(listener: TcpListener, log: Arc<Mutex<Vec<Asked>>>) {
    while let Ok((client, from)) = listener.accept().await {
        let _ = answer_tcp(client, from, &log).await;
    }
}

async fn answer_tcp(
    mut client: TcpStream,
    from: SocketAddr,
    log: &Mutex<Vec<Asked>>,
) -> std::io::Result<()> {
    let mut query = vec![0; usize::from(client.read_u16().await?)];
    client.read_exact(&mut query).await?;
    for answer in answers(&query, true, from, log) {
        client.write_u16(u16::try_from(answer.len()).unwrap()).await?;
        client.write_all(&answer).await?;
    }
    Ok(())
}

/// The messages with which a query is answered.
fn answers(
    query: &[u8],
    over_tcp: bool,
    from: SocketAddr,
    log: &Mutex<Vec<Asked>>,
) -> Vec<Vec<u8>> {
    let asked = Message::from_vec(query).unwrap();
    let question = asked.queries[0].clone();
    let name = question.name.to_ascii();
    let first = name.split('.').next().unwrap().trim_end_matches(|c: char| c.is_ascii_digit());
    log.lock().push(Asked { name: name.clone(), kind: question.query_type, over_tcp, from });
    let mut answer = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
    answer.add_query(question.clone());
    let code = |mut answer: Message, code| {
        answer.metadata.response_code = code;
        vec![answer]
    };
    let messages = match first {
        "slow" => Vec::new(),
        "half" if question.query_type == RecordType::AAAA => Vec::new(),
        "none" => code(answer, ResponseCode::NXDomain),
        "broken" => code(answer, ResponseCode::ServFail),
        "empty" => vec![answer],
        "old" if asked.edns.is_some() => {
            answer.queries.clear();
            code(answer, ResponseCode::FormErr)
        }
        "long" if !over_tcp => {
            answer.metadata.truncation = true;
            vec![answer]
        }
        "alias" => {
            let (one, two) = (named("one.test."), named("two.test."));
            // Out of order, and with addresses of somebody else.
            add(&mut answer, &two, question.query_type, false);
            add(&mut answer, &named("other.test."), question.query_type, true);
            for (name, target) in [(one.clone(), two), (question.name.clone(), one)] {
                let target = hickory_proto::rr::rdata::CNAME(target);
                answer.add_answer(Record::from_rdata(name, 1, RData::CNAME(target)));
            }
            vec![answer]
        }
        "forged" => {
            let mut other_id = answer.clone();
            other_id.metadata.id ^= 1;
            let mut no_answer = answer.clone();
            no_answer.metadata.message_type = MessageType::Query;
            let mut other_name = answer.clone();
            other_name.queries = vec![Query::query(named("other.test."), question.query_type)];
            let mut forged = [other_id, no_answer, other_name];
            for message in &mut forged {
                add(message, &question.name, question.query_type, true);
            }
            add(&mut answer, &question.name, question.query_type, false);
            forged.into_iter().chain([answer]).collect()
        }
        _ => {
            add(&mut answer, &question.name, question.query_type, false);
            vec![answer]
        }
    };
    messages.iter().map(|message| message.to_vec().unwrap()).collect()
}

fn named(name: &str) -> Name {
    Name::from_ascii(name).unwrap()
}

/// Adds an address of the kind that is asked for, which nobody has when it is `wrong`.
fn add(answer: &mut Message, name: &Name, kind: RecordType, wrong: bool) {
    let data = match (kind, wrong) {
        (RecordType::A, false) => RData::A(V4.parse().unwrap()),
        (RecordType::A, true) => RData::A("192.0.2.66".parse().unwrap()),
        (RecordType::AAAA, false) => RData::AAAA(V6.parse().unwrap()),
        (RecordType::AAAA, true) => RData::AAAA("2001:db8::66".parse().unwrap()),
        _ => return,
    };
    answer.add_answer(Record::from_rdata(name.clone(), 1, data));
}
