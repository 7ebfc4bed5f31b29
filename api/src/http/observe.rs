//! Sees every request: counts and times it, and gives the lines that it leaves in the log an id: `request` is
//! the proxy's `X-Request-Id` or one of ours, `trace` the trace id of an incoming `traceparent`.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use axum::{Router, extract::Request, response::Response};
use http::HeaderMap;
use tower::Service as _;
use tracing::{
    Instrument as _, Span,
    field::{Empty, display},
    instrument::Instrumented,
};

use crate::metrics::Http;

/// Longest id of a proxy that we take over.
const MAX_ID: usize = 64;

/// A router whose requests are observed. It goes around the whole router: as a layer of it, each route would be boxed once
/// more.
#[derive(Debug, Clone)]
pub(crate) struct Observe {
    router: Router,
    metrics: Arc<Http>,
}

impl Observe {
    pub(crate) fn new(router: Router) -> Self {
        Self {
            router,
            metrics: Arc::new(Http::new()),
        }
    }

    /// The response to a request.
    pub(super) fn call(
        &self,
        request: Request,
    ) -> impl Future<Output = Result<Response, Infallible>> + Send + use<> {
        let pending = Pending {
            metrics: Arc::clone(&self.metrics),
            path: request.uri().clone(),
            start: Instant::now(),
            status: None,
        };
        let span = span(request.headers());
        let response = span.in_scope(|| self.router.clone().call(request));
        Observed {
            inner: response.instrument(span),
            pending,
        }
    }
}

pin_project_lite::pin_project! {
    /// The response to come.
    struct Observed<F> {
        #[pin]
        inner: Instrumented<F>,
        pending: Pending,
    }
}

impl<F: Future<Output = Result<Response, Infallible>>> Future for Observed<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        this.pending.status = result
            .as_ref()
            .ok()
            .map(|response| response.status().as_u16());
        Poll::Ready(result)
    }
}

/// A request that is counted when it ends, also if it is given up before the answer.
struct Pending {
    metrics: Arc<Http>,
    /// Cloning it copies no text.
    path: http::Uri,
    start: Instant,
    status: Option<u16>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.metrics
            .count(self.path.path(), self.status, self.start.elapsed());
    }
}

/// What the log lines of a request begin with, at every level.
fn span(headers: &HeaderMap) -> Span {
    let text = |name| headers.get(name)?.to_str().ok();
    let trace = text("traceparent").and_then(trace_id);
    let span = if let Some(id) = text("x-request-id").filter(|id| is_id(id)) {
        tracing::error_span!("http", request = %id, trace = Empty)
    } else {
        let id: u64 = rand::random();
        tracing::error_span!("http", request = %format_args!("{id:016x}"), trace = Empty)
    };
    if let Some(trace) = trace {
        span.record("trace", display(trace));
    }
    span
}

/// Whether a proxy's id is one that cannot upset the log.
fn is_id(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=MAX_ID).contains(&text.len()) && text.bytes().all(plain)
}

/// The trace id of a `traceparent` (<https://www.w3.org/TR/trace-context/#traceparent-header>): version,
/// trace id, parent id and flags in hexadecimal; later versions may have more.
fn trace_id(header: &str) -> Option<&str> {
    let mut parts = header.trim().split('-');
    let mut next = |length: usize| {
        let part = parts.next()?;
        let hex = part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        (hex && part.len() == length).then_some(part)
    };
    let (version, trace, parent, _flags) = (next(2)?, next(32)?, next(16)?, next(2)?);
    let more = parts.next().is_some();
    let nothing = |part: &str| part.bytes().all(|b| b == b'0');
    let invalid = version == "ff" || (version == "00" && more) || nothing(trace) || nothing(parent);
    (!invalid).then_some(trace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trace_ids() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let good = format!("00-{trace}-00f067aa0ba902b7-01");
        assert_eq!(trace_id(&good), Some(trace));
        let newer = format!("01-{trace}-00f067aa0ba902b7-01-more");
        assert_eq!(trace_id(&newer), Some(trace));
        for bad in [
            String::new(),
            trace.to_owned(),
            good.to_uppercase(),
            format!("ff-{trace}-00f067aa0ba902b7-01"),
            format!("00-{trace}-0000000000000000-01"),
            format!("00-{trace}-00f067aa0ba902b7"),
            format!("{good}-more"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01".to_owned(),
        ] {
            assert_eq!(trace_id(&bad), None, "{bad}");
        }
    }

    #[test]
    fn ids_of_proxies() {
        assert!(is_id("f8a1-22_b.3"));
        for bad in ["", "a b", "a\"b", "ä", &"x".repeat(65)] {
            assert!(!is_id(bad), "{bad}");
        }
    }
}
