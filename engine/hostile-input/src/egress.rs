//! Bytes that a guest sends on its way outside, under a policy that allows loopback addresses
//! alone: these are refused before anything is connected, whatever is exempt, and no name of them
//! needs a DNS server.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, RData};
use ipnet::IpNet;
use mayfly_guest::channel::Channel;
use mayfly_guest::egress::fuzzing::{InThisProcess, Inner, answer_found, passes};
use mayfly_guest::egress::proxy::check_head;
use mayfly_guest::egress::{
    Egress, EgressAccount, EgressRecord, Host, Kind, Observer, Policy, Verdict,
};
use mayfly_protocol::{
    DnsMessage, EgressPorts, FrameReader, MAX_DNS_MESSAGE, Mode, Mux, MuxStream, Reply, Request,
    decode_frame, encode_frame, is_printable, split_frame,
};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio_util::compat::TokioAsyncReadCompatExt;

use super::{check_text, good_ack, hello, pair, run};

const ENTRIES: [&str; 7] = [
    "localhost",
    "localhost:8080",
    "127.0.0.1",
    "127.255.0.1:8080",
    "[::1]",
    "[::1]:8080",
    "[::ffff:127.0.0.2]",
];
/// More requests than this has room for would wait for the limit on their rate.
const MAX_INPUT: usize = 8 << 10;
/// Longest body of a refusal, and longest line of a head.
const MAX_LINE: usize = 1100;
/// Longest answer of the proxy.
const MAX_REFUSAL: usize = 4 << 10;
/// Clients of the proxy port that the agent has.
const CLIENTS: usize = 2;

/// The lines of the audit log.
#[derive(Debug, Default)]
struct Log(Mutex<Vec<EgressRecord>>);

impl Observer for Log {
    fn record(&self, record: &EgressRecord) {
        self.0.lock().push(record.clone());
    }
}

impl Log {
    /// Checks that nothing was allowed, or tried; returns how many lines are of requests to the
    /// proxy.
    fn check(&self) -> usize {
        let lines = self.0.lock();
        for line in lines.iter() {
            let reason = line.reason.as_deref().expect("a reason");
            check_line(&line.host);
            check_line(reason);
            let given_up =
                line.verdict == Verdict::Failed && reason == "it was given up before it was done";
            assert!(line.verdict == Verdict::Denied || given_up, "{line:?}");
            assert!(line.address.is_none_or(|address| address.is_loopback()), "{line:?}");
            assert_eq!((line.bytes_up, line.bytes_down), (0, 0), "{line:?}");
        }
        lines.iter().filter(|line| line.kind != Kind::Dns).count()
    }
}

/// Text of one line.
fn check_line(text: &str) {
    check_text(text);
    assert!(!text.contains('\n') && text.len() < MAX_REFUSAL, "{text:?}");
}

fn everything() -> Vec<IpNet> {
    ["0.0.0.0/0", "::/0"].map(|network| network.parse().expect("a network")).to_vec()
}

/// The policy, with its log.
fn closed() -> (Policy, Arc<Log>) {
    static CHECKED: Once = Once::new();
    CHECKED.call_once(|| {
        let mut found = ("localhost", 0).to_socket_addrs().expect("/etc/hosts has localhost");
        assert!(found.all(|address| address.ip().is_loopback()), "localhost is not this host");
        for entry in ENTRIES {
            match Host::parse_with_port(entry).expect("a host").0 {
                Host::Name(name) => assert_eq!(name, "localhost"),
                Host::Address(address) => assert!(address.is_loopback()),
            }
        }
    });
    let log = Arc::new(Log::default());
    let policy = Policy::allow(ENTRIES)
        .and_then(|policy| policy.with_exempt(everything()))
        .expect("a policy");
    (policy.with_observer(log.clone()), log)
}

/// Gives a DNS message to what answers it, and as if its name had led to addresses that are in it.
pub fn egress_dns(message: &[u8]) {
    let message = &message[..message.len().min(MAX_DNS_MESSAGE)];
    run(async {
        let (policy, log) = closed();
        let answer = Inner::new(policy).answer(message).await;
        assert!(
            check_answer(message, &answer).is_empty(),
            "an answer without an address that is allowed"
        );
        assert_eq!(log.check(), 0);
    });
    for exempt in [Vec::new(), everything()] {
        let addresses =
            check_answer(message, &answer_found(message, addresses_in(message), &exempt));
        for address in addresses {
            assert!(passes(address, &exempt), "{address}");
            let never = match address.to_canonical() {
                IpAddr::V4(v4) => v4.is_link_local(),
                IpAddr::V6(v6) => v6.is_unicast_link_local(),
            };
            let plain = address.to_canonical();
            assert!(
                !never && !plain.is_loopback() && !plain.is_multicast() && !plain.is_unspecified(),
                "{address}"
            );
        }
    }
}

/// Addresses of all kinds.
fn addresses_in(bytes: &[u8]) -> Vec<IpAddr> {
    let known = [
        "127.0.0.1",
        "::1",
        "169.254.169.254",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "8.8.8.8",
        "2a00::1",
    ];
    let known = known.iter().map(|address| address.parse().expect("an address"));
    let v4 =
        bytes.rchunks_exact(4).take(6).map(|b| IpAddr::V4(Ipv4Addr::new(b[0], b[1], b[2], b[3])));
    let v6 = bytes
        .rchunks_exact(16)
        .take(6)
        .filter_map(|b| b.first_chunk())
        .map(|b| IpAddr::V6(Ipv6Addr::from(*b)));
    v4.chain(v6).chain(known).collect()
}

/// Checks the answer to a DNS message, and returns the addresses in it.
fn check_answer(query: &[u8], answer: &[u8]) -> Vec<IpAddr> {
    assert!(answer.len() <= MAX_DNS_MESSAGE, "an answer of {} bytes", answer.len());
    let id = query.first_chunk::<2>().copied().unwrap_or_default();
    assert_eq!(answer.first_chunk(), Some(&id), "the id");
    let told = Message::from_vec(answer).expect("an answer");
    assert_eq!(told.metadata.message_type, MessageType::Response);
    let Ok(asked) = Message::from_vec(query) else {
        assert_eq!((told.metadata.response_code, told.queries.len()), (ResponseCode::FormErr, 0));
        return Vec::new();
    };
    let is_query = asked.metadata.message_type == MessageType::Query
        && asked.metadata.op_code == OpCode::Query;
    let [question] = asked.queries.as_slice() else {
        assert!(
            told.queries.is_empty()
                && told.answers.is_empty()
                && told.metadata.response_code != ResponseCode::NoError
        );
        return Vec::new();
    };
    if !is_query {
        assert!(told.answers.is_empty() && told.metadata.response_code != ResponseCode::NoError);
        return Vec::new();
    }
    let [again] = told.queries.as_slice() else { panic!("{} questions", told.queries.len()) };
    assert!(question.name.eq_case(&again.name), "{} became {}", question.name, again.name);
    assert_eq!((question.query_type, question.query_class), (again.query_type, again.query_class));
    let addresses = told.answers.iter().map(|record| {
        assert_eq!((record.record_type(), record.dns_class), (question.query_type, DNSClass::IN));
        assert_eq!(record.name, question.name);
        match &record.data {
            RData::A(address) => IpAddr::V4(address.0),
            RData::AAAA(address) => IpAddr::V6(address.0),
            other => panic!("{other:?}"),
        }
    });
    addresses.collect()
}

/// Plays a client of the proxy port: the first byte says whether it is one too many, what follows
/// is what it sends.
pub fn egress_proxy(bytes: &[u8]) {
    let Some((&pick, rest)) = bytes.split_first() else { return };
    let rest = &rest[..rest.len().min(MAX_INPUT)];
    let (policy, log) = closed();
    let heard = run(async {
        let (ours, theirs) = pair();
        let inner = Inner::new(policy);
        tokio::join!(inner.serve(ours, pick == 0), converse(theirs, rest)).1
    });
    let requests = log.check();
    let text = str::from_utf8(&heard).expect("text");
    let mut answers = text.split("HTTP/1.");
    assert_eq!(answers.next(), Some(""), "{text:?}");
    // What is not even HTTP has no line in the log.
    assert!(answers.clone().count() <= requests + 1, "{requests} requests: {text:?}");
    answers.for_each(check_refusal);
}

/// Sends `bytes`, closes that half, and returns what is said.
async fn converse(client: UnixStream, bytes: &[u8]) -> Vec<u8> {
    let (mut reader, mut writer) = client.into_split();
    let mut heard = Vec::new();
    let send = async move {
        let _ = writer.write_all(bytes).await;
        let _ = writer.shutdown().await;
    };
    let (_, ()) = tokio::join!(reader.read_to_end(&mut heard), send);
    heard
}

/// An answer of the proxy, behind `HTTP/1.`.
fn check_refusal(answer: &str) {
    let (head, body) = answer.split_once("\r\n\r\n").expect("a whole head");
    let status: u16 = head.get(2..5).and_then(|status| status.parse().ok()).expect("a status");
    assert!((400..600).contains(&status), "{answer:?}");
    for line in head.split("\r\n").chain([body.strip_suffix('\n').unwrap_or(body)]) {
        check_line(line);
        assert!(line.len() <= MAX_LINE, "{answer:?}");
    }
    assert!(body.is_empty() || body.starts_with("mayfly: ") && body.ends_with('\n'), "{answer:?}");
}

/// Lines: a method, a URL and a Host header; each of all as a host, and as an entry of a policy.
pub fn egress_policy(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let mut line = || lines.next().unwrap_or_default();
    let (method, uri, host) = (line(), line(), line());
    check_head(method, uri, host);
    check_head(b"CONNECT", uri, host);
    check_head(b"GET", &[b"http://", uri].concat(), host);
    let text = String::from_utf8_lossy(bytes);
    let mut hosts = vec![(Host::parse("a.example").expect("a host"), 443)];
    let mut entries = Vec::new();
    for line in text.split('\n').take(40) {
        match Host::parse(line) {
            Ok(host) => {
                check_line(&host.to_string());
                assert_eq!(Host::parse(&host.to_string()).as_ref(), Ok(&host));
                hosts.extend([(host.clone(), 80), (host, 8080)]);
            }
            Err(error) => check_line(&error.to_string()),
        }
        match Host::parse_with_port(line) {
            Ok((host, port)) => {
                let again = port.map_or_else(|| host.to_string(), |port| format!("{host}:{port}"));
                assert_eq!(Host::parse_with_port(&again), Ok((host.clone(), port)));
                hosts.push((host, port.unwrap_or(443)));
            }
            Err(error) => check_line(&error.to_string()),
        }
        match Policy::allow([line]) {
            Ok(_) => entries.push(line),
            Err(error) => check_line(&error.to_string()),
        }
    }
    let policy = Policy::allow(&entries).expect("entries that were good one by one");
    for (host, port) in hosts {
        let expected = entries.iter().any(|entry| is_named(entry, &host, port));
        assert_eq!(policy.allows(&host, port), expected, "{host}:{port} with {entries:?}");
        assert!(!expected || policy.allows_host(&host));
    }
}

/// Whether a good entry means this host and port.
fn is_named(entry: &str, host: &Host, port: u16) -> bool {
    if entry == "*" {
        return true;
    }
    let (rest, every_port) = entry.strip_suffix(":*").map_or((entry, false), |rest| (rest, true));
    let (is_host, own_port) = if rest.contains('/') {
        is_within(rest, host)
    } else if let Some(port) = rest.strip_prefix("*:") {
        (true, Some(port.parse().expect("a good port")))
    } else {
        let base = rest.strip_prefix("*.");
        let (own, own_port) = Host::parse_with_port(base.unwrap_or(rest)).expect("a good entry");
        let is_host = match (base, host) {
            (None, _) => own == *host,
            (Some(_), Host::Name(name)) => name
                .strip_suffix(&own.to_string())
                .is_some_and(|below| below.len() > 1 && below.ends_with('.')),
            (Some(_), Host::Address(_)) => false,
        };
        (is_host, own_port)
    };
    is_host && (every_port || own_port.map_or(port == 80 || port == 443, |own| own == port))
}

/// Whether an address is in the network of a good entry, and the port of that.
fn is_within(entry: &str, host: &Host) -> (bool, Option<u16>) {
    let (network, port) = if let Some(rest) = entry.strip_prefix('[') {
        rest.split_once(']').expect("a bracket")
    } else {
        let slash = entry.find('/').expect("a slash");
        entry.split_at(entry[slash..].find(':').map_or(entry.len(), |at| slash + at))
    };
    let port = port.strip_prefix(':').map(|port| port.parse().expect("a good port"));
    let network: IpNet = network.parse().expect("a good network");
    (matches!(host, Host::Address(address) if network.contains(address)), port)
}

/// Plays an agent. The first byte says which of its answers are good ones, the second where the
/// rest is cut into what it sends on its egress stream and what each client of the proxy port does.
pub fn egress_agent(bytes: &[u8]) {
    let [pick, cut, rest @ ..] = bytes else { return };
    let rest = &rest[..rest.len().min(MAX_INPUT)];
    let (names, client) = rest.split_at(rest.len() * usize::from(*cut) / 255);
    let ports = encode_frame(&Reply::Ok(EgressPorts { proxy: 3128, dns: 53 })).expect("a reply");
    let query = |message: &[u8]| {
        encode_frame(&DnsMessage { tag: 7, message: message.to_vec() }).expect("a query")
    };
    let names = match pick & 3 {
        0 => names.to_vec(),
        1 => [&ports, names].concat(),
        _ => [ports, query(names), query(names)].concat(),
    };
    let taken = if pick & 4 == 0 {
        encode_frame(&Reply::<()>::Ok(())).expect("a reply")
    } else {
        Vec::new()
    };
    // Pieces of a duplex stream, of which an empty one is the half-close.
    let framed =
        [&u32::try_from(client.len()).expect("a bounded input").to_le_bytes(), client, &[0; 4]]
            .concat();
    let agent = Agent {
        queries: queries_in(&names),
        names,
        client: if pick & 8 == 0 {
            [&taken, &framed[..]].concat()
        } else {
            [&taken, client].concat()
        },
        clients: AtomicUsize::new(0),
        done: Semaphore::new(0),
        heard: Mutex::default(),
    };
    let (policy, log) = closed();
    run(async {
        let (host, guest) = pair();
        tokio::join!(keep(host, policy), agent.work(guest));
    });
    let requests = log.check();
    for heard in agent.heard.into_inner() {
        let text = str::from_utf8(&heard).expect("text");
        assert!(text.is_empty() || text.starts_with("HTTP/1."), "{text:?}");
        assert!(text.chars().all(|c| is_printable(c) || c == '\r'), "{text:?}");
        assert!(
            text.len() <= (requests + 1) * MAX_REFUSAL,
            "{} bytes for {requests} requests",
            text.len()
        );
    }
}

/// The engine's end, until egress is over.
async fn keep(host: UnixStream, policy: Policy) {
    let (channel, _) = Channel::open(host, &hello()).await.expect("a good acknowledgement");
    match Egress::start(
        &channel,
        "fuzz",
        policy,
        EgressAccount::default(),
        Arc::new(InThisProcess::default()),
    )
    .await
    {
        Ok(egress) => {
            while !egress.is_over() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        Err(error) => check_text(&error.to_string()),
    }
}

/// The queries behind the first frame, up to one that is none.
fn queries_in(mut bytes: &[u8]) -> Vec<DnsMessage> {
    let mut queries = Vec::new();
    let mut is_first = true;
    while let Ok(Some(range)) = split_frame(bytes) {
        if !std::mem::take(&mut is_first) {
            match decode_frame::<DnsMessage>(&bytes[range.clone()]) {
                Ok(query) if query.message.len() <= MAX_DNS_MESSAGE => queries.push(query),
                _ => break,
            }
        }
        bytes = &bytes[range.end..];
    }
    queries
}

struct Agent {
    names: Vec<u8>,
    queries: Vec<DnsMessage>,
    client: Vec<u8>,
    clients: AtomicUsize,
    /// Has a permit for each client that is done.
    done: Semaphore,
    heard: Mutex<Vec<Vec<u8>>>,
}

impl Agent {
    /// Until the engine is gone.
    async fn work(&self, mut guest: UnixStream) {
        let mut buffer = [0; 4096];
        let _ = guest.read(&mut buffer).await;
        let _ = guest.write_all(&good_ack()).await;
        // yamux speaks first, and nothing may follow the acknowledgement before the first request.
        let _ = guest.readable().await;
        let mut mux = Mux::new(guest.compat(), Mode::Server);
        let mut streams = futures::stream::FuturesUnordered::new();
        loop {
            use futures::StreamExt;
            tokio::select! {
                stream = mux.next_inbound() => {
                    let Some(Ok(stream)) = stream else { return };
                    streams.push(self.serve(stream));
                }
                Some(()) = streams.next() => {}
            }
        }
    }

    async fn serve(&self, stream: MuxStream) {
        let mut reader = FrameReader::new(stream);
        match reader.next_as::<Request>().await {
            Ok(Some(Request::Egress)) => self.ask(reader).await,
            Ok(Some(Request::EgressAccept))
                if self.clients.fetch_add(1, Ordering::Relaxed) < CLIENTS =>
            {
                let (mut reader, mut writer) = reader.split();
                let mut text = Vec::new();
                let hear = async {
                    while let Ok(Some(piece)) = reader.next().await {
                        text.extend(piece);
                    }
                };
                let send = async {
                    let _ = futures::io::AsyncWriteExt::write_all(&mut writer, &self.client).await;
                    let _ = futures::io::AsyncWriteExt::close(&mut writer).await;
                };
                tokio::join!(hear, send);
                self.heard.lock().push(text);
                self.done.add_permits(1);
            }
            // Waits, as when there is no client, until the engine has had enough.
            _ => drop(reader.next().await),
        }
    }

    /// Sends queries and hears answers, until all clients are done and each query has its answer,
    /// or the engine ends it.
    async fn ask(&self, reader: FrameReader<MuxStream>) {
        let (mut reader, mut writer) = reader.split();
        if !matches!(split_frame(&self.names), Ok(Some(_))) {
            // Without a whole reply the engine waits, as long as its caller lets it: hang up.
            let _ = futures::io::AsyncWriteExt::write_all(&mut writer, &self.names).await;
            let _ = futures::io::AsyncWriteExt::close(&mut writer).await;
            return;
        }
        let mut waiting = self.queries.clone();
        let hear = async {
            while !waiting.is_empty() {
                let Ok(Some(answer)) = reader.next_as::<DnsMessage>().await else { return };
                let id = answer.message.first_chunk::<2>().copied();
                let is_its = |query: &DnsMessage| {
                    query.tag == answer.tag
                        && Some(query.message.first_chunk().copied().unwrap_or_default()) == id
                };
                let at =
                    waiting.iter().position(is_its).expect("a query that was not answered yet");
                let query = waiting.swap_remove(at);
                assert!(check_answer(&query.message, &answer.message).is_empty());
            }
            drop(self.done.acquire_many(u32::try_from(CLIENTS).expect("few clients")).await);
        };
        let send = async {
            let _ = futures::io::AsyncWriteExt::write_all(&mut writer, &self.names).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = hear => {}
            () = send => {}
        }
        let _ = futures::io::AsyncWriteExt::close(&mut writer).await;
    }
}
