//! Logs on standard error, and traces where a collector is named.

use std::io::IsTerminal;
use std::str::FromStr;

use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Registry;
use tracing_subscriber::filter::{FilterExt, ParseError, Targets, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use super::traces::{self, TracesError};

/// Variable with a filter: levels, and levels of targets, such as `mayfly=debug,info`.
pub const FILTER_VARIABLE: &str = "MAYFLY_LOG";
/// Variable with the form of the log: `text` or `json`.
pub const FORMAT_VARIABLE: &str = "MAYFLY_LOG_FORMAT";
/// Filter of a daemon's log unless it is told otherwise.
pub const DAEMON_FILTER: &str = "mayfly=info,warn";

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Lines for people.
    #[default]
    Text,
    /// JSON, one object per line.
    Json,
}

impl FromStr for Format {
    type Err = LoggingError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(LoggingError::Format { value: word.to_owned() }),
        }
    }
}

/// Reason why logs or traces could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter makes no sense.
    #[error(
        "{FILTER_VARIABLE}={value:?} is no log filter: {cause}; write e.g. {FILTER_VARIABLE}=mayfly=debug,info"
    )]
    Filter {
        /// Value that was asked for.
        value: String,
        /// Error that says what is wrong with it.
        cause: ParseError,
    },
    /// No such form.
    #[error("there is no log format {value:?}: use text or json")]
    Format {
        /// Value that was asked for.
        value: String,
    },
    /// Traces could not be set up.
    #[error(transparent)]
    Traces(#[from] TracesError),
    /// The process has a log already.
    #[error("cannot set the log up: {0}")]
    Twice(TryInitError),
}

impl From<TryInitError> for LoggingError {
    fn from(cause: TryInitError) -> Self {
        Self::Twice(cause)
    }
}

/// Flushes what is not yet with the collector when dropped. Drop it outside any async runtime.
#[derive(Debug)]
#[must_use = "traces stop when it is dropped"]
pub struct Logging {
    traces: Option<SdkTracerProvider>,
}

impl Drop for Logging {
    fn drop(&mut self) {
        if let Some(provider) = self.traces.take()
            && let Err(error) = provider.shutdown_with_timeout(traces::FLUSH_LIMIT)
        {
            tracing::warn!(%error, "the last traces did not reach the collector");
        }
    }
}

/// Sets up the log of this process on standard error, and traces where
/// `OTEL_EXPORTER_OTLP_ENDPOINT` names a collector. `MAYFLY_LOG` comes before `filter`, `format`
/// before `MAYFLY_LOG_FORMAT`. Call it once, outside any async runtime.
///
/// # Errors
/// [`LoggingError`].
pub fn init(filter: &str, format: Option<Format>) -> Result<Logging, LoggingError> {
    let filter = std::env::var(FILTER_VARIABLE)
        .ok()
        .filter(|value| !value.is_empty())
        .unwrap_or_else(|| filter.to_owned());
    let format =
        match (format, std::env::var(FORMAT_VARIABLE).ok().filter(|value| !value.is_empty())) {
            (Some(format), _) => format,
            (None, Some(word)) => word.parse()?,
            (None, None) => Format::default(),
        };
    let provider = traces::provider_from_env()?;
    subscriber(
        &filter,
        format,
        std::io::stderr,
        std::io::stderr().is_terminal(),
        provider.as_ref(),
    )?
    .try_init()?;
    Ok(Logging { traces: provider })
}

fn subscriber<W>(
    filter: &str,
    format: Format,
    writer: W,
    colours: bool,
    traces: Option<&SdkTracerProvider>,
) -> Result<impl Subscriber + Send + Sync + for<'a> LookupSpan<'a>, LoggingError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let words: Vec<_> = filter.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
    let filter = Targets::from_str(&words.join(","))
        .map_err(|cause| LoggingError::Filter { value: filter.to_owned(), cause })?
        // Our spans say which session a line is about, however little is logged.
        .or(filter_fn(|metadata| metadata.is_span() && traces::is_ours(metadata))
            .with_max_level_hint(LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colours);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match format {
        Format::Text => lines.with_filter(filter).boxed(),
        Format::Json => lines.json().with_current_span(false).with_filter(filter).boxed(),
    };
    Ok(tracing_subscriber::registry().with(lines).with(traces.map(traces::layer)))
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::Seek;
    use std::sync::Arc;

    fn logged(filter: &str, format: Format) -> String {
        let mut file = tempfile::tempfile().unwrap();
        let subscriber =
            subscriber(filter, format, Arc::new(file.try_clone().unwrap()), false, None).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("session", id = "s-1", golden = "default");
            span.in_scope(|| {
                tracing::warn!(code = 7, "left behind");
                tracing::debug!("a detail");
            });
        });
        file.rewind().unwrap();
        std::io::read_to_string(file).unwrap()
    }

    #[test]
    fn a_line_of_json_names_its_session() {
        let text = logged("warn", Format::Json);
        let line: serde_json::Value = serde_json::from_str(&text).expect("one line of JSON");
        assert_eq!(line["level"], "WARN");
        assert_eq!(
            (&line["fields"]["message"], &line["fields"]["code"]),
            (&"left behind".into(), &7.into())
        );
        assert_eq!(
            (&line["spans"][0]["name"], &line["spans"][0]["id"]),
            (&"session".into(), &"s-1".into())
        );
    }

    #[test]
    fn a_line_of_text_names_its_session_and_the_filter_holds() {
        let text = logged("warn", Format::Text);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("session{id=\"s-1\" golden=\"default\"}"), "{text}");
        assert_eq!(logged("off", Format::Text), "");
        assert_eq!(logged("debug", Format::Text).lines().count(), 2);
        assert_eq!(logged("off, mayfly_daemon=debug,", Format::Text).lines().count(), 2);
        assert_eq!(logged("debug,mayfly_daemon::observe=warn", Format::Text).lines().count(), 1);
        assert_eq!(logged("debug,mayfly_daemon=off", Format::Text), "");
    }

    #[test]
    fn nonsense_is_refused_with_advice() {
        let wrong =
            subscriber("mayfly=loud", Format::Text, std::io::stderr, false, None).err().unwrap();
        assert!(
            wrong.to_string().contains("MAYFLY_LOG=\"mayfly=loud\" is no log filter"),
            "{wrong}"
        );
        assert!(subscriber("a=b=info", Format::Text, std::io::stderr, false, None).is_err());
        let wrong = "xml".parse::<Format>().unwrap_err();
        assert_eq!(wrong.to_string(), "there is no log format \"xml\": use text or json");
    }
}
