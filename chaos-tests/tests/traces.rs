//! Traces of a real session's start, as a collector gets them.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use mayfly_chaos_tests::daemon::Daemon;
use mayfly_chaos_tests::home::GOLDEN;
use mayfly_chaos_tests::slots;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::json;

#[test]
fn a_start_is_one_trace_with_a_span_for_each_step() {
    let _all = slots::take(slots::ALL);
    let collector = Collector::start();
    let one_standby = format!("[goldens.{GOLDEN}]\nfloor = 1\nmax_standbys = 1\nshells = 0\n");
    let daemon =
        Daemon::start(&one_standby, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint)]);
    daemon.until_standbys(GOLDEN, 1);
    let id = daemon.create(&json!({ "golden": GOLDEN, "wait_docker": true }));
    daemon.stop();

    let spans = collector.spans.lock().unwrap().clone();
    let session =
        spans.iter().find(|span| span.name == "session" && text(span, "session") == Some(&id));
    let session = session.unwrap_or_else(|| panic!("no span of {id} among {:?}", names(&spans)));
    assert!(session.parent_span_id.is_empty());
    assert_eq!((text(session, "golden"), text(session, "tier")), (Some(GOLDEN), Some("standby")));

    let trace: Vec<_> =
        spans.iter().filter(|span| span.trace_id == session.trace_id).cloned().collect();
    let by_name: BTreeMap<&str, &Span> =
        trace.iter().map(|span| (span.name.as_str(), span)).collect();
    let start = by_name["start"];
    assert_eq!(start.parent_span_id, session.span_id);
    let steps = ["queue", "take", "hand_over", "docker"].map(|name| {
        let step =
            by_name.get(name).unwrap_or_else(|| panic!("no {name} among {:?}", names(&trace)));
        assert_eq!(step.parent_span_id, start.span_id, "{name}");
        *step
    });
    for (before, after) in steps.iter().zip(&steps[1..]) {
        assert!(
            before.end_time_unix_nano <= after.start_time_unix_nano,
            "{} before {}",
            before.name,
            after.name
        );
    }
    assert!(steps[0].start_time_unix_nano >= start.start_time_unix_nano);
    assert!(steps[3].end_time_unix_nano <= start.end_time_unix_nano);
}

fn names(spans: &[Span]) -> Vec<&str> {
    spans.iter().map(|span| span.name.as_str()).collect()
}

fn text<'a>(span: &'a Span, key: &str) -> Option<&'a str> {
    let attribute = span.attributes.iter().find(|attribute| attribute.key == key)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

/// Takes OTLP over HTTP and keeps the spans.
struct Collector {
    endpoint: String,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let spans = Arc::new(Mutex::new(Vec::new()));
        let kept = spans.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let kept = kept.clone();
                std::thread::spawn(move || serve(stream, &kept));
            }
        });
        Self { endpoint, spans }
    }
}

fn serve(stream: TcpStream, kept: &Mutex<Vec<Span>>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut length = None;
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        assert_eq!(line.trim_end(), "POST /v1/traces HTTP/1.1");
        while !line.trim_end().is_empty() {
            line.clear();
            reader.read_line(&mut line).ok()?;
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
                length = value.trim_end().parse().ok();
            }
        }
        let mut body = vec![0; length?];
        reader.read_exact(&mut body).ok()?;
        let request = ExportTraceServiceRequest::decode(&*body).expect("OTLP");
        let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        kept.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
        // Only now: the daemon counts what is answered as delivered.
        reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()?;
    }
}
