//! What a test can have go wrong, and the answers that go with it.

use std::time::Duration;

use axum::response::Response;
use serde_json::json;

use crate::server;

/// Something that is wrong with the homeserver.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// Nobody listens (for one user: as [`Fault::Reset`]).
    Refuse,
    /// A proxy's error page with this status.
    Status(u16),
    /// Takes the request and never answers.
    Hang,
    /// Closes the connection without an answer.
    Reset,
    /// 429 as Synapse words it, on pusher calls.
    RateLimited {
        /// Goes into the body, and rounded up to seconds into Retry-After.
        retry_after_ms: u64,
    },
    /// 500 on this share of the calls, in a fixed order that looks random.
    FlakyPercent(u8),
    /// An error in Matrix' shape, on pusher calls.
    Answer {
        /// HTTP status.
        status: u16,
        /// `M_…`.
        errcode: &'static str,
        /// The text.
        error: &'static str,
    },
    /// The application service token is unknown.
    WrongToken,
    /// Answers well, after this many milliseconds.
    Delay(u64),
    /// A proxy's page with this status, after the homeserver has done what it was asked.
    DoneBut(u16),
    /// A gateway's answer in JSON that is not Matrix'.
    Gateway(u16, &'static str),
    /// A proxy's 429 page with an HTTP date this many seconds ahead in Retry-After.
    LimitedUntil(u64),
}

pub(super) fn rate_limited(retry_after_ms: u64) -> Response {
    let body = json!({
        "errcode": "M_LIMIT_EXCEEDED",
        "error": "Too Many Requests",
        "retry_after_ms": retry_after_ms,
    });
    let mut answer = server::json(429, &body);
    let seconds = retry_after_ms.div_ceil(1000);
    answer
        .headers_mut()
        .insert("retry-after", seconds.to_string().parse().unwrap());
    answer
}

pub(super) fn limited_until(seconds: u64) -> Response {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap();
    let date = std::time::UNIX_EPOCH + now + Duration::from_secs(seconds);
    let date = httpdate::fmt_http_date(date);
    let mut answer = server::html(429);
    let headers = answer.headers_mut();
    headers.insert("retry-after", date.parse().unwrap());
    answer
}

/// As Synapse words it.
pub(super) fn unknown_token() -> Response {
    matrix_error(401, "M_UNKNOWN_TOKEN", "Invalid access token passed.")
}

/// An error in Matrix' shape.
pub(super) fn matrix_error(status: u16, errcode: &str, error: &str) -> Response {
    server::json(status, &json!({"errcode": errcode, "error": error}))
}
