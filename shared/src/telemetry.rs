//! Logs and metrics: set up once at start. And how an error is written with what caused it.

use std::{
    error::Error,
    fmt::{self, Write as _},
    io::IsTerminal,
    time::Duration,
};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::config::SettingError;

/// Upper bounds of the duration histograms, in seconds.
const SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0,
];

/// How often recorded samples are folded into their buckets.
const UPKEEP: Duration = Duration::from_secs(5);

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Which log lines are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter(String);

impl LogFilter {
    /// From LOGLEVEL or RUST_LOG.
    pub fn new(text: &str) -> Self {
        let level = match text.trim().to_ascii_uppercase().as_str() {
            "TRACE" => "trace",
            "DEBUG" => "debug",
            "" | "INFO" => "info",
            "WARNING" | "WARN" => "warn",
            "CRITICAL" | "ERROR" | "FATAL" => "error",
            _ => return Self(text.trim().to_owned()),
        };
        // A level is about us. The libraries below speak of headers and frames at debug and trace, which
        // nobody asked for and which could show what must not be shown.
        let others = if level == "error" { "error" } else { "warn" };
        Self(format!(
            "{others},matrix2acrobits_api={level},matrix2acrobits_worker={level},matrix2acrobits_shared={level}"
        ))
    }

    /// The filter in the syntax of tracing's `EnvFilter`.
    pub fn directives(&self) -> &str {
        &self.0
    }
}

/// Starts logging to standard output.
pub fn init_logs(filter: &LogFilter, format: LogFormat) -> Result<(), SettingError> {
    let filter = EnvFilter::try_new(filter.directives()).map_err(|_| {
        SettingError::new("LOGLEVEL", "is not a level or a list of tracing filters")
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stdout().is_terminal())
        .with_target(false);
    // A second initialisation (in tests) keeps the first.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}

/// Starts collecting metrics, inside the runtime; the handle renders them for `/metrics`. `buckets` has the
/// upper bounds of histograms that are not durations of requests.
pub fn init_metrics(buckets: &[(&str, &[f64])]) -> PrometheusHandle {
    // The exporter looks at full names first. It refuses empty lists of bounds only.
    let matchers = buckets
        .iter()
        .map(|&(name, bounds)| (Matcher::Full(name.into()), bounds))
        .chain([(Matcher::Suffix("_seconds".into()), SECONDS)]);
    let mut builder = PrometheusBuilder::new();
    for (matcher, bounds) in matchers {
        builder = builder
            .set_buckets_for_metric(matcher, bounds)
            .unwrap_or_else(|_| PrometheusBuilder::new());
    }
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    let _ = metrics::set_global_recorder(recorder);
    crate::metrics::register();
    // Without it the exporter keeps every sample until somebody scrapes.
    let upkeep = handle.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP).await;
            upkeep.run_upkeep();
        }
    });
    handle
}

/// Writes an error and what caused it, in one line: `a: b: c`. What a cause's text already contains is not
/// repeated.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a>(pub &'a (dyn Error + 'a));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = self.0.to_string();
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !line.contains(&text) {
                write!(line, ": {text}")?;
            }
            cause = error.source();
        }
        f.write_str(&line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_ours_alone_and_filters_pass_through() {
        assert!(
            LogFilter::new("Debug")
                .directives()
                .starts_with("warn,matrix2acrobits_api=debug")
        );
        assert!(
            LogFilter::new("CRITICAL")
                .directives()
                .starts_with("error,")
        );
        assert_eq!(LogFilter::new("sqlx=debug").directives(), "sqlx=debug");
    }

    #[derive(Debug, thiserror::Error)]
    enum Sample {
        #[error("outer")]
        Hides(#[source] Box<Sample>),
        #[error("middle: {0}")]
        Shows(#[source] Box<Sample>),
        #[error("the disk is full")]
        Root,
    }

    #[test]
    fn causes_are_written_once() {
        let shows = || Sample::Shows(Box::new(Sample::Root));
        let hides = Sample::Hides(Box::new(shows()));
        assert_eq!(Chain(&Sample::Root).to_string(), "the disk is full");
        assert_eq!(Chain(&shows()).to_string(), "middle: the disk is full");
        assert_eq!(Chain(&hides).to_string(), "outer: middle: the disk is full");
    }
}
