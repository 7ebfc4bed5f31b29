//! Decides what the homeserver's response means for a job: one table, keyed by the status, the errcode, whether the
//! body is JSON, and what the request was for.

use std::time::Duration;

use super::jobs;

/// The longest that a job waits at the homeserver's request.
const LONGEST_ASKED: Duration = Duration::from_secs(jobs::LONGEST_ASKED.unsigned_abs());

const TOKEN: &str = "MATRIX_AS_TOKEN is not accepted";
const URL: &str = "MATRIX_HOMESERVER_URL does not lead to the client-server API";
const PROXY: &str = "a proxy in front of the homeserver wants a login";

/// What a request was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Set a pusher.
    Set,
    /// Delete a pusher.
    Delete,
    /// Look at the pushers, which changes nothing.
    Look,
}

/// The parts of an HTTP response that decide something.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Whether the body is a JSON object.
    pub json: bool,
    /// The Matrix error code.
    pub errcode: Option<String>,
    /// The homeserver's error text.
    pub error: Option<String>,
    /// Where a redirect leads.
    pub location: Option<String>,
    /// How long the homeserver asks to wait.
    pub retry_after: Option<Duration>,
}

/// The result of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// An HTTP response.
    Response(Response),
    /// No usable response: refused, reset, timed out, TLS. `sent` is false if the homeserver cannot have seen the
    /// request.
    Nothing {
        /// Why, for people.
        reason: String,
        /// Whether the homeserver may have acted on the request.
        sent: bool,
    },
}

/// What follows for the job, and what the reply says about the homeserver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// The homeserver did what was asked.
    Done,
    /// The homeserver does not work. Retry without end.
    Outage {
        /// Why, for people.
        reason: String,
        /// The homeserver may have done it, so the next attempt looks first.
        maybe_done: bool,
        /// The homeserver asks to wait this long.
        asked: Option<Duration>,
    },
    /// The homeserver asks all clients to wait.
    Limited {
        /// For how long, if it says so.
        asked: Option<Duration>,
    },
    /// Our configuration is wrong, so that no job can succeed.
    Misconfigured {
        /// Why, for people.
        reason: String,
        /// The homeserver asks to wait this long.
        asked: Option<Duration>,
    },
    /// The refusal concerns this user alone, and the homeserver says when to retry.
    Later {
        /// Why, for people.
        reason: String,
        /// How long to wait.
        asked: Duration,
    },
    /// The refusal concerns this user or pusher alone, and a retry would end the same way.
    Refused {
        /// Why, for people.
        reason: String,
    },
}

/// The table of docs/architecture.md.
pub fn meaning(reply: &Reply, request: Request) -> Meaning {
    let changes = matches!(request, Request::Set | Request::Delete);
    let response = match reply {
        Reply::Response(response) => response,
        Reply::Nothing { reason, sent } => {
            return Meaning::Outage {
                reason: reason.clone(),
                maybe_done: *sent && changes,
                asked: None,
            };
        }
    };
    let reason = describe(response);
    let asked = response.retry_after.map(|wait| wait.min(LONGEST_ASKED));
    let outage = |maybe_done| Meaning::Outage {
        reason: reason.clone(),
        maybe_done: maybe_done && changes,
        asked,
    };
    let misconfigured = |what: &str| Meaning::Misconfigured {
        reason: format!("{what}: {reason}"),
        asked,
    };
    match (response.status, response.errcode.as_deref()) {
        (200..=299, _) if response.json => Meaning::Done,
        // The error may have come after the work was done.
        (200..=299 | 500.., _) => outage(true),
        (429, _) => Meaning::Limited { asked },
        (401, None | Some("M_UNKNOWN_TOKEN" | "M_MISSING_TOKEN")) => misconfigured(TOKEN),
        (400 | 404 | 405, Some("M_UNRECOGNIZED")) => misconfigured(URL),
        (407, _) => misconfigured(PROXY),
        // Without an errcode, the response comes from a gateway, whether it is HTML or JSON.
        (408 | 425, _) | (400..=499, None) => outage(false),
        (404, Some(_)) if request == Request::Delete => Meaning::Done,
        // A homeserver that does not know the user holds no pusher of that user.
        (403, Some(_)) if request == Request::Delete && is_unknown_user(response) => Meaning::Done,
        (400..=499, Some(_)) => match asked {
            Some(asked) => Meaning::Later { reason, asked },
            None => Meaning::Refused { reason },
        },
        _ => outage(false),
    }
}

/// Compares with Synapse's text, because other refusals have the same errcode.
fn is_unknown_user(response: &Response) -> bool {
    let error = response.error.as_deref().unwrap_or_default();
    error.starts_with("Application service has not registered this user")
}

/// The response in one line for logs and dead letters: status, errcode and error.
fn describe(response: &Response) -> String {
    let status = response.status;
    match (&response.errcode, &response.error, &response.location) {
        (Some(errcode), Some(error), _) => format!("HTTP {status} {errcode}: {error}"),
        (Some(errcode), None, _) => format!("HTTP {status} {errcode}"),
        (None, _, Some(target)) => format!("HTTP {status}, a redirect to {target}"),
        _ if response.json => format!("HTTP {status} without an errcode"),
        _ => format!("HTTP {status} without JSON"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A response with this body: "html", "json", or an errcode.
    fn response(status: u16, body: &str) -> Response {
        Response {
            status,
            json: body != "html",
            errcode: body.starts_with("M_").then(|| body.to_owned()),
            error: body.starts_with("M_").then(|| "words".to_owned()),
            ..Response::default()
        }
    }

    /// The meaning in a word.
    fn word(meaning: &Meaning) -> &'static str {
        match meaning {
            Meaning::Done => "done",
            Meaning::Outage {
                maybe_done: false, ..
            } => "outage",
            Meaning::Outage {
                maybe_done: true, ..
            } => "outage, ask first",
            Meaning::Limited { .. } => "limited",
            Meaning::Misconfigured { .. } => "configuration",
            Meaning::Later { .. } => "later",
            Meaning::Refused { .. } => "dead",
        }
    }

    #[test]
    fn the_table() {
        use Request::{Delete, Look, Set};
        for (status, body, request, expected) in [
            (200, "json", Set, "done"),
            (200, "json", Delete, "done"),
            (200, "html", Set, "outage, ask first"),
            (204, "html", Delete, "outage, ask first"),
            (200, "html", Look, "outage"),
            (301, "html", Set, "outage"),
            (302, "json", Set, "outage"),
            (400, "html", Set, "outage"),
            (400, "json", Set, "outage"),
            (400, "M_UNRECOGNIZED", Set, "configuration"),
            (400, "M_MISSING_PARAM", Set, "dead"),
            (401, "html", Set, "configuration"),
            (401, "json", Look, "configuration"),
            (401, "M_UNKNOWN_TOKEN", Set, "configuration"),
            (401, "M_MISSING_TOKEN", Set, "configuration"),
            (401, "M_USER_LOCKED", Set, "dead"),
            (401, "M_USER_LOCKED", Delete, "dead"),
            (403, "html", Set, "outage"),
            (403, "json", Set, "outage"),
            (403, "M_FORBIDDEN", Set, "dead"),
            (404, "html", Set, "outage"),
            (404, "json", Set, "outage"),
            (404, "json", Delete, "outage"),
            (404, "M_UNRECOGNIZED", Set, "configuration"),
            (404, "M_UNRECOGNIZED", Delete, "configuration"),
            (404, "M_NOT_FOUND", Set, "dead"),
            (404, "M_NOT_FOUND", Delete, "done"),
            (405, "html", Set, "outage"),
            (405, "M_UNRECOGNIZED", Set, "configuration"),
            (407, "html", Set, "configuration"),
            (407, "M_UNKNOWN", Set, "configuration"),
            (408, "M_UNKNOWN", Set, "outage"),
            (409, "M_UNKNOWN", Set, "dead"),
            (413, "html", Set, "outage"),
            (413, "M_TOO_LARGE", Set, "dead"),
            (425, "html", Set, "outage"),
            (429, "html", Set, "limited"),
            (429, "M_LIMIT_EXCEEDED", Look, "limited"),
            (500, "M_UNKNOWN", Set, "outage, ask first"),
            (502, "html", Delete, "outage, ask first"),
            (503, "html", Look, "outage"),
            (504, "html", Set, "outage, ask first"),
            (599, "json", Set, "outage, ask first"),
            (100, "html", Set, "outage"),
        ] {
            let reply = Reply::Response(response(status, body));
            let got = meaning(&reply, request);
            assert_eq!(word(&got), expected, "{status} {body} {request:?}: {got:?}");
        }
    }

    #[test]
    fn without_a_response_it_matters_whether_the_request_was_sent() {
        for (sent, request, expected) in [
            (false, Request::Set, "outage"),
            (true, Request::Set, "outage, ask first"),
            (true, Request::Delete, "outage, ask first"),
            (true, Request::Look, "outage"),
        ] {
            let reason = "no response in time".to_owned();
            let got = meaning(&Reply::Nothing { reason, sent }, request);
            assert_eq!(word(&got), expected, "{sent} {request:?}");
        }
    }

    #[test]
    fn any_response_may_ask_to_wait_and_an_hour_is_the_most() {
        let day = Duration::from_hours(24);
        for (status, body, expected) in [
            (
                429,
                "html",
                Meaning::Limited {
                    asked: Some(LONGEST_ASKED),
                },
            ),
            (
                503,
                "html",
                Meaning::Outage {
                    reason: "HTTP 503 without JSON".into(),
                    maybe_done: true,
                    asked: Some(LONGEST_ASKED),
                },
            ),
            (
                401,
                "M_UNKNOWN_TOKEN",
                Meaning::Misconfigured {
                    reason: "MATRIX_AS_TOKEN is not accepted: HTTP 401 M_UNKNOWN_TOKEN: words"
                        .into(),
                    asked: Some(LONGEST_ASKED),
                },
            ),
            (
                403,
                "M_FORBIDDEN",
                Meaning::Later {
                    reason: "HTTP 403 M_FORBIDDEN: words".into(),
                    asked: LONGEST_ASKED,
                },
            ),
            (200, "json", Meaning::Done),
        ] {
            let response = Response {
                retry_after: Some(day),
                ..response(status, body)
            };
            assert_eq!(meaning(&Reply::Response(response), Request::Set), expected);
        }
    }

    #[test]
    fn a_redirect_is_named_with_its_target() {
        let response = Response {
            location: Some("https://matrix.example.org/".into()),
            ..response(301, "html")
        };
        let words = "HTTP 301, a redirect to https://matrix.example.org/";
        assert_eq!(describe(&response), words);
    }

    #[test]
    fn a_user_who_does_not_exist_has_no_pusher_to_delete() {
        let unknown = "Application service has not registered this user (@x:y)";
        let foreign = "Application service cannot masquerade as this user (@x:y).";
        for (error, request, expected) in [
            (unknown, Request::Delete, "done"),
            (unknown, Request::Set, "dead"),
            (foreign, Request::Delete, "dead"),
        ] {
            let response = Response {
                error: Some(error.into()),
                ..response(403, "M_FORBIDDEN")
            };
            let got = meaning(&Reply::Response(response), request);
            assert_eq!(word(&got), expected, "{error}");
        }
    }
}
