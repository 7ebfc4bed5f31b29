//! The log: its setup at start, and how an error is written together with its causes.

use std::{
    error::Error,
    fmt::{self, Write as _},
    io::IsTerminal,
};

use tracing_subscriber::EnvFilter;

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
    /// From LOGLEVEL or RUST_LOG. None if it is neither a level nor a list of filters.
    ///
    /// A filter may be the name of a target alone. But a word of letters is a level that does not exist, and would make us
    /// log nothing.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let level = match text.to_ascii_uppercase().as_str() {
            "TRACE" => "trace",
            "DEBUG" => "debug",
            "" | "INFO" => "info",
            "WARNING" | "WARN" => "warn",
            "CRITICAL" | "ERROR" | "FATAL" => "error",
            "OFF" => return Some(Self("off".to_owned())),
            _ => {
                let word = text.bytes().all(|byte| byte.is_ascii_alphabetic());
                let filters = !word
                    && !text.contains(char::is_whitespace)
                    && EnvFilter::try_new(text).is_ok();
                return filters.then(|| Self(text.to_owned()));
            }
        };
        // A level applies to our crates only. At debug and trace, libraries log headers and frames, which nobody asked
        // for and which could show secrets.
        let others = if level == "error" { "error" } else { "warn" };
        // sqlx's pool logs each failed attempt to connect, many a second, and returns the last error to us.
        // The filter compares the beginnings of targets, so one name covers all our crates.
        Some(Self(format!(
            "{others},sqlx_core::pool=off,matrix2acrobits={level}"
        )))
    }

    /// The filter in the syntax of tracing's `EnvFilter`.
    fn directives(&self) -> &str {
        &self.0
    }
}

/// Starts logging to standard output.
pub fn init_logs(filter: &LogFilter, format: LogFormat) {
    let filter = EnvFilter::new(filter.directives());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stdout().is_terminal())
        .with_target(false)
        // Otherwise a line that cannot be written is reported on standard error, with a panic if that is closed as
        // well.
        .log_internal_errors(false);
    // A second initialisation (in tests) has no effect.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// Writes an error and its causes in one line: `a: b: c`. A cause that the line already contains is not repeated.
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
        for (text, directives) in [
            (
                "Debug",
                Some("warn,sqlx_core::pool=off,matrix2acrobits=debug"),
            ),
            (
                "CRITICAL",
                Some("error,sqlx_core::pool=off,matrix2acrobits=error"),
            ),
            (" sqlx=debug ", Some("sqlx=debug")),
            ("warn,sqlx=debug", Some("warn,sqlx=debug")),
            ("matrix2acrobits_api", Some("matrix2acrobits_api")),
            ("hyper::client", Some("hyper::client")),
            ("VERBOSE", None),
            ("foo bar", None),
            ("sqlx=loud", None),
            ("a=b=c", None),
        ] {
            let filter = LogFilter::parse(text);
            assert_eq!(
                filter.as_ref().map(LogFilter::directives),
                directives,
                "{text}"
            );
        }
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
