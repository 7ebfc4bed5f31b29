//! What the homeserver's answer means for a job. Pure: no I/O.

use std::time::Duration;

/// The longest that we wait because a homeserver asks us to.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);

/// What came back from the homeserver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Nothing usable: refused, reset, timed out, TLS. `sent`: the homeserver may have acted on it.
    None { reason: String, sent: bool },
    /// An HTTP response.
    Http(Response),
}

/// The parts of a response that decide.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Whether the body is a JSON object.
    pub(crate) json: bool,
    pub(crate) errcode: Option<String>,
    pub(crate) error: Option<String>,
    /// From `retry_after_ms` in the body or else the Retry-After header.
    pub(crate) retry_after: Option<Duration>,
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It did what we asked.
    Done,
    /// The homeserver is not well: try again, without end.
    Unwell { reason: String, maybe_done: bool },
    /// It asks us to slow down.
    Limited { after: Duration },
    /// Our own configuration is wrong: no job can succeed.
    Misconfigured { reason: String },
    /// It refuses this request and will again.
    Refused { reason: String },
}

/// Classifies an answer (docs/architecture.md). `fallback` is the wait for a 429 that names none.
pub(crate) fn classify(answer: &Answer, fallback: Duration) -> Verdict {
    let response = match answer {
        Answer::None { reason, sent } => {
            return Verdict::Unwell {
                reason: reason.clone(),
                maybe_done: *sent,
            };
        }
        Answer::Http(response) => response,
    };
    let reason = describe(response);
    let unwell = |maybe_done| Verdict::Unwell {
        reason: reason.clone(),
        maybe_done,
    };
    match response.status {
        429 => Verdict::Limited {
            after: response
                .retry_after
                .unwrap_or(fallback)
                .min(MAX_RETRY_AFTER),
        },
        401 => Verdict::Misconfigured {
            reason: format!("MATRIX_AS_TOKEN is not accepted: {reason}"),
        },
        // Not from a Matrix homeserver but from something in front of it.
        _ if !response.json => unwell(false),
        200..=299 => Verdict::Done,
        404 if response.errcode.as_deref() == Some("M_UNRECOGNIZED") => Verdict::Misconfigured {
            reason: format!(
                "MATRIX_HOMESERVER_URL does not lead to the client-server API: {reason}"
            ),
        },
        408 | 425 => unwell(false),
        400..=499 => Verdict::Refused { reason },
        // An error after the work may leave the work done.
        status => unwell(status >= 500),
    }
}

/// The same for a deletion: a homeserver that does not know the user holds no pusher of his.
pub(crate) fn classify_deletion(answer: &Answer, fallback: Duration) -> Verdict {
    let verdict = classify(answer, fallback);
    match answer {
        Answer::Http(response) if response.status == 403 && is_unknown_user(response) => {
            Verdict::Done
        }
        _ => verdict,
    }
}

/// Synapse's words for it; the errcode is that of other refusals as well.
fn is_unknown_user(response: &Response) -> bool {
    let error = response.error.as_deref().unwrap_or_default();
    error.starts_with("Application service has not registered this user")
}

/// The answer in a line for logs and dead letters: status, errcode and error.
fn describe(response: &Response) -> String {
    let status = response.status;
    match (&response.errcode, &response.error) {
        (Some(errcode), Some(error)) => format!("HTTP {status} {errcode}: {error}"),
        (Some(errcode), None) => format!("HTTP {status} {errcode}"),
        _ if response.json => format!("HTTP {status}"),
        _ => format!("HTTP {status} without JSON"),
    }
}

/// Reads a response's status, headers and body.
pub(crate) fn read(status: u16, retry_after: Option<&str>, body: &[u8]) -> Response {
    let json: Option<serde_json::Map<String, serde_json::Value>> =
        serde_json::from_slice(body).ok();
    let text = |key: &str| {
        let value = json.as_ref()?.get(key)?.as_str()?;
        // An answer is not a place to store novels in.
        Some(value.chars().take(300).collect())
    };
    let from_body = json
        .as_ref()
        .and_then(|json| json.get("retry_after_ms")?.as_u64())
        .map(Duration::from_millis);
    let from_header = retry_after
        .and_then(|text| text.trim().parse().ok())
        .map(Duration::from_secs);
    Response {
        status,
        errcode: text("errcode"),
        error: text("error"),
        retry_after: from_body.or(from_header),
        json: json.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(status: u16, body: &str) -> Verdict {
        classify(
            &Answer::Http(read(status, None, body.as_bytes())),
            Duration::from_secs(7),
        )
    }

    #[test]
    fn answers() {
        use Verdict::{Done, Limited, Misconfigured, Refused, Unwell};
        let error = |code: &str| format!(r#"{{"errcode":"{code}","error":"x"}}"#);
        assert_eq!(verdict(200, "{}"), Done);
        for (status, body) in [
            (200, "<html>"),
            (200, ""),
            (200, "[]"),
            (502, "<html>"),
            (302, ""),
            (403, "<html>"),
            (404, "<html>"),
        ] {
            assert!(
                matches!(
                    verdict(status, body),
                    Unwell {
                        maybe_done: false,
                        ..
                    }
                ),
                "{status} {body}"
            );
        }
        for status in [500, 502, 503, 504, 599] {
            assert!(
                matches!(
                    verdict(status, "{}"),
                    Unwell {
                        maybe_done: true,
                        ..
                    }
                ),
                "{status}"
            );
        }
        for status in [408, 425] {
            assert!(matches!(verdict(status, "{}"), Unwell { .. }), "{status}");
        }
        for (status, body) in [
            (401, error("M_UNKNOWN_TOKEN")),
            (401, "<html>".into()),
            (404, error("M_UNRECOGNIZED")),
        ] {
            assert!(
                matches!(verdict(status, &body), Misconfigured { .. }),
                "{status} {body}"
            );
        }
        for (status, code) in [
            (400, "M_MISSING_PARAM"),
            (403, "M_FORBIDDEN"),
            (404, "M_NOT_FOUND"),
            (413, "M_TOO_LARGE"),
        ] {
            assert_eq!(
                verdict(status, &error(code)),
                Refused {
                    reason: format!("HTTP {status} {code}: x")
                }
            );
        }
        assert_eq!(
            verdict(429, r#"{"retry_after_ms":1500}"#),
            Limited {
                after: Duration::from_millis(1500)
            }
        );
        assert_eq!(
            verdict(429, "<html>"),
            Limited {
                after: Duration::from_secs(7)
            }
        );
        assert_eq!(
            verdict(429, r#"{"retry_after_ms":99999999999}"#),
            Limited {
                after: MAX_RETRY_AFTER
            }
        );
    }

    #[test]
    fn a_user_who_does_not_exist_has_no_pusher_to_delete() {
        let answer = |error: &str| {
            let body = format!(r#"{{"errcode":"M_FORBIDDEN","error":"{error}"}}"#);
            Answer::Http(read(403, None, body.as_bytes()))
        };
        let unknown = answer("Application service has not registered this user (@x:y)");
        let other = answer("Application service cannot masquerade as this user (@x:y).");
        assert_eq!(classify_deletion(&unknown, Duration::ZERO), Verdict::Done);
        for (verdict, what) in [
            (classify(&unknown, Duration::ZERO), "set"),
            (classify_deletion(&other, Duration::ZERO), "not ours"),
        ] {
            assert!(matches!(verdict, Verdict::Refused { .. }), "{what}");
        }
    }

    #[test]
    fn retry_after_header_counts_where_the_body_names_none() {
        assert_eq!(
            read(429, Some("3"), b"{}").retry_after,
            Some(Duration::from_secs(3))
        );
        assert_eq!(
            read(429, Some("3"), br#"{"retry_after_ms":10}"#).retry_after,
            Some(Duration::from_millis(10))
        );
        assert_eq!(read(429, Some("soon"), b"{}").retry_after, None);
    }

    #[test]
    fn no_answer_is_retried_and_remembers_whether_it_was_sent() {
        for sent in [true, false] {
            let answer = Answer::None {
                reason: "refused".into(),
                sent,
            };
            let unwell = Verdict::Unwell {
                reason: "refused".into(),
                maybe_done: sent,
            };
            assert_eq!(classify(&answer, Duration::ZERO), unwell);
        }
    }
}
