//! OpenTelemetry traces: our spans, sent in batches over OTLP (HTTP, protobuf).

use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::LookupSpan;

use super::collector::CollectorClient;

/// Longest wait for a collector when the process ends.
pub(super) const FLUSH_LIMIT: Duration = Duration::from_secs(3);
/// Longest wait for a collector's answer to one batch.
const EXPORT_LIMIT: Duration = Duration::from_secs(5);

/// Variables that name a collector, the special one first (OpenTelemetry specification, "Protocol
/// Exporter").
const ENDPOINT_VARIABLES: [&str; 2] =
    ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// Reason why traces could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// The exporter speaks plain HTTP.
    #[error(
        "{variable}={endpoint} needs TLS, which mayfly does not speak: name a collector on this host, as http://127.0.0.1:4318"
    )]
    Tls {
        /// Name of the variable.
        variable: &'static str,
        /// Value of the variable.
        endpoint: String,
    },
    /// The HTTP client cannot be made.
    #[error("cannot export traces: no HTTP client: {0}")]
    Client(std::io::Error),
    /// The exporter refused its settings.
    #[error("cannot export traces: {0}; check the OTEL_EXPORTER_OTLP_* variables")]
    Exporter(ExporterBuildError),
}

impl From<ExporterBuildError> for TracesError {
    fn from(cause: ExporterBuildError) -> Self {
        Self::Exporter(cause)
    }
}

/// A provider that exports to the collector the environment names; `None` when it names none.
pub(super) fn provider_from_env() -> Result<Option<SdkTracerProvider>, TracesError> {
    let set = |variable: &'static str| {
        std::env::var(variable)
            .ok()
            .filter(|endpoint| !endpoint.is_empty())
            .map(|endpoint| (variable, endpoint))
    };
    match ENDPOINT_VARIABLES.into_iter().find_map(set) {
        None => Ok(None),
        Some((variable, endpoint)) if endpoint.starts_with("https:") => {
            Err(TracesError::Tls { variable, endpoint })
        }
        // The exporter reads the endpoint itself: only one of the two variables gets a path
        // appended.
        Some(_) => Ok(Some(provider(None)?)),
    }
}

fn provider(endpoint: Option<&str>) -> Result<SdkTracerProvider, TracesError> {
    let client = CollectorClient::new(EXPORT_LIMIT).map_err(TracesError::Client)?;
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(EXPORT_LIMIT);
    let exporter = match endpoint {
        Some(endpoint) => exporter.with_endpoint(endpoint).build()?,
        None => exporter.build()?,
    };
    // Attributes of the environment (OTEL_RESOURCE_ATTRIBUTES) are kept, the name is always ours.
    let resource = Resource::builder()
        .with_service_name("mayfly")
        .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    Ok(SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build())
}

/// Whether a span or an event belongs into logs and traces of any level of detail.
pub(super) fn is_ours(metadata: &Metadata<'_>) -> bool {
    // The exporter's own HTTP client must not be traced: that would never end.
    metadata.target().starts_with("mayfly") && *metadata.level() <= Level::INFO
}

/// The layer that turns spans into traces of `provider`.
pub(super) fn layer<S>(provider: &SdkTracerProvider) -> impl Layer<S> + Send + Sync + use<S>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("mayfly"))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(filter_fn(is_ours).with_max_level_hint(Level::INFO))
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::BTreeMap;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;

    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use opentelemetry_proto::tonic::trace::v1::Span;
    use prost::Message;
    use tracing_subscriber::layer::SubscriberExt;

    /// Accepts one export and returns its path and body.
    fn receive(listener: &TcpListener) -> (String, ExportTraceServiceRequest) {
        let (stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream);
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            match line.trim_end() {
                "" => break,
                line => head.push(line.to_ascii_lowercase()),
            }
        }
        let length = head
            .iter()
            .find_map(|line| line.strip_prefix("content-length: "))
            .unwrap()
            .parse()
            .unwrap();
        assert!(head.contains(&"content-type: application/x-protobuf".to_owned()), "{head:?}");
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        reader
            .get_mut()
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            .unwrap();
        (head[0].clone(), ExportTraceServiceRequest::decode(&*body).unwrap())
    }

    fn text(value: Option<&opentelemetry_proto::tonic::common::v1::AnyValue>) -> &str {
        match value.and_then(|value| value.value.as_ref()) {
            Some(Value::StringValue(text)) => text,
            other => panic!("no text: {other:?}"),
        }
    }

    #[test]
    fn a_collector_gets_one_trace_with_a_span_for_each_step() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(receive(&listener)));
        let provider = provider(Some(&endpoint)).unwrap();
        tracing::subscriber::with_default(
            tracing_subscriber::registry().with(layer(&provider)),
            || {
                let start = tracing::info_span!(
                    "start",
                    golden = "default",
                    session = tracing::field::Empty
                );
                start.in_scope(|| {
                    tracing::info_span!("queue").in_scope(|| ());
                    tracing::info_span!("take").in_scope(|| tracing::info!("a standby"));
                    tracing::debug_span!("detail").in_scope(|| ());
                });
                start.record("session", "s-1");
                tracing::info_span!(target: "hyper", "request").in_scope(|| ());
            },
        );
        provider.shutdown_with_timeout(FLUSH_LIMIT).unwrap();
        let (line, request) = receiver.recv_timeout(Duration::from_secs(60)).expect("an export");
        assert_eq!(line, "post /v1/traces http/1.1");
        let sent = &request.resource_spans[0];
        let resource = sent.resource.as_ref().unwrap();
        let name =
            resource.attributes.iter().find(|attribute| attribute.key == "service.name").unwrap();
        assert_eq!(text(name.value.as_ref()), "mayfly");

        let spans: BTreeMap<&str, &Span> = sent
            .scope_spans
            .iter()
            .flat_map(|scope| &scope.spans)
            .map(|span| (span.name.as_str(), span))
            .collect();
        assert_eq!(spans.keys().copied().collect::<Vec<_>>(), ["queue", "start", "take"]);
        let start = spans["start"];
        assert!(start.parent_span_id.is_empty());
        for step in ["queue", "take"] {
            assert_eq!(spans[step].trace_id, start.trace_id, "{step}");
            assert_eq!(spans[step].parent_span_id, start.span_id, "{step}");
            assert!(spans[step].start_time_unix_nano >= start.start_time_unix_nano);
            assert!(spans[step].end_time_unix_nano <= start.end_time_unix_nano);
        }
        assert_eq!(spans["take"].events[0].name, "a standby");
        let session = start.attributes.iter().find(|attribute| attribute.key == "session").unwrap();
        assert_eq!(text(session.value.as_ref()), "s-1");
    }
}
