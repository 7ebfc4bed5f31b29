//! Tells what an answer of PNM means for the push and its token.
//!
//! A token counts as gone only when PNM itself says so, in a JSON object of its own words. Proxies and mistyped URLs answer
//! 404 too, and a wrong rejection silences a phone for good: it does not register again by itself.

use serde::Deserialize;
use serde_json::value::RawValue;

/// What became of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// PNM took it.
    Sent,
    /// The token is no longer registered.
    TokenGone,
    /// PNM does not understand the message; to repeat it would not help.
    BadMessage,
    /// Nobody knows; to be tried again.
    Trouble(Trouble),
}

/// Why an answer, or its absence, says nothing about the push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// 429: too many requests.
    RateLimited,
    /// 5xx: PNM's own fault.
    ServerError,
    /// 3xx: we follow no redirects, since the token would go with them.
    Redirect,
    /// Some other status or code.
    UnexpectedCode,
    /// HTTP status and JSON say different things.
    Contradiction,
    /// No JSON object of PNM's, or far too long.
    Unreadable,
    /// No answer in time.
    Timeout,
    /// No connection, or it broke.
    Connection,
}

impl Outcome {
    /// Every outcome, the usual one first.
    pub(crate) const ALL: [Self; 11] = [
        Self::Sent,
        Self::TokenGone,
        Self::BadMessage,
        Self::Trouble(Trouble::RateLimited),
        Self::Trouble(Trouble::ServerError),
        Self::Trouble(Trouble::Redirect),
        Self::Trouble(Trouble::UnexpectedCode),
        Self::Trouble(Trouble::Contradiction),
        Self::Trouble(Trouble::Unreadable),
        Self::Trouble(Trouble::Timeout),
        Self::Trouble(Trouble::Connection),
    ];

    /// The word for metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::TokenGone => "token_gone",
            Self::BadMessage => "bad_message",
            Self::Trouble(trouble) => trouble.as_str(),
        }
    }
}

impl Trouble {
    /// The word for logs and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::RateLimited => "rate_limited",
            Self::ServerError => "server_error",
            Self::Redirect => "redirect",
            Self::UnexpectedCode => "unexpected_code",
            Self::Contradiction => "contradiction",
            Self::Unreadable => "unreadable",
            Self::Timeout => "timeout",
            Self::Connection => "connection",
        }
    }
}

/// What PNM writes: an integer `code` (some of its pages say `status`) and a text.
#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    code: Option<&'a RawValue>,
    #[serde(borrow)]
    status: Option<&'a RawValue>,
    #[serde(borrow)]
    response: Option<&'a RawValue>,
}

/// Tells what an answer with this HTTP status and body means.
pub(crate) fn classify(http: u16, body: &[u8]) -> Outcome {
    // Overload, faults of the service and a proxy's own statuses (431, 451, 499) are never the token's, whatever the body
    // says.
    if http >= 429 {
        return meaning(http.into());
    }
    // Its text may be in any encoding.
    let body = String::from_utf8_lossy(body.trim_ascii());
    let outcome = read(&body).map_or_else(|| wordless(http, &body), |answer| weigh(http, &answer));
    if (300..400).contains(&http) && outcome != Outcome::TokenGone {
        return Outcome::Trouble(Trouble::Redirect);
    }
    outcome
}

/// What an answer means that has no JSON object of PNM's.
fn wordless(http: u16, body: &str) -> Outcome {
    match http {
        // To repeat it would ring twice.
        200..=299 if body.is_empty() => Outcome::Sent,
        // A page comes from whatever stands in front of PNM, which may be mended.
        400 if !body.starts_with('<') => Outcome::BadMessage,
        413 => Outcome::BadMessage,
        _ => Outcome::Trouble(Trouble::Unreadable),
    }
}

/// An integer in the JSON outranks the HTTP status, except where the two contradict each other in a way
/// that would lose the push or the pusher.
fn weigh(http: u16, answer: &Answer<'_>) -> Outcome {
    let (code, status) = (said(answer.code), said(answer.status));
    let in_pnms_words = answer.response.is_some_and(is_text);
    match (code, status) {
        (Said::Integer(code), _) => agreed(http, code),
        // A web framework's own page: {"timestamp":…,"status":404,"error":"Not Found"}.
        (_, Said::Integer(status)) if is_gone(status) && !in_pnms_words => {
            Outcome::Trouble(Trouble::Unreadable)
        }
        (_, Said::Integer(status)) => agreed(http, status),
        _ if code.contradicts(http) || status.contradicts(http) => {
            Outcome::Trouble(Trouble::Contradiction)
        }
        _ if is_gone(http.into()) && !in_pnms_words => Outcome::Trouble(Trouble::Unreadable),
        _ => meaning(http.into()),
    }
}

/// What PNM's integer means under this HTTP status.
fn agreed(http: u16, code: i64) -> Outcome {
    let outcome = meaning(code);
    let contradiction = match outcome {
        Outcome::Sent => !is_success(http.into()),
        Outcome::BadMessage => is_gone(http.into()),
        Outcome::TokenGone | Outcome::Trouble(_) => false,
    };
    if contradiction {
        return Outcome::Trouble(Trouble::Contradiction);
    }
    outcome
}

/// What a number means, be it PNM's or HTTP's.
fn meaning(code: i64) -> Outcome {
    match code {
        200..=299 => Outcome::Sent,
        404 | 410 => Outcome::TokenGone,
        400 | 413 => Outcome::BadMessage,
        429 => Outcome::Trouble(Trouble::RateLimited),
        500..=599 => Outcome::Trouble(Trouble::ServerError),
        _ => Outcome::Trouble(Trouble::UnexpectedCode),
    }
}

fn is_gone(code: i64) -> bool {
    meaning(code) == Outcome::TokenGone
}

/// What a field says that should be an integer.
#[derive(Clone, Copy)]
enum Said {
    Integer(i64),
    /// A number, but not as an integer: `"404"`, `404.0`. Not PNM's way to speak, so never a rejection; yet
    /// no success either when it names a failure.
    NumberOf(f64),
    Nothing,
}

impl Said {
    /// Whether it names a failure of which the HTTP status knows nothing.
    fn contradicts(self, http: u16) -> bool {
        matches!(self, Self::NumberOf(code) if !is_success(code) && code.total_cmp(&f64::from(http)).is_ne())
    }
}

fn said(field: Option<&RawValue>) -> Said {
    let Some(written) = field.map(RawValue::get) else {
        return Said::Nothing;
    };
    if let Ok(code) = written.parse() {
        return Said::Integer(code);
    }
    match written.trim_matches('"').trim().parse() {
        Ok(code) => Said::NumberOf(code),
        Err(_) => Said::Nothing,
    }
}

fn is_text(value: &RawValue) -> bool {
    value.get().starts_with('"')
}

fn is_success(code: f64) -> bool {
    (200.0..300.0).contains(&code)
}

/// The body as an object of PNM's: one that has at least one of its fields.
fn read(body: &str) -> Option<Answer<'_>> {
    // serde would take a list for the struct as well: `[404]` must not pass for a code.
    if !body.starts_with('{') {
        return None;
    }
    let answer: Answer<'_> = serde_json::from_str(body).ok()?;
    let ours = answer.code.is_some() || answer.status.is_some() || answer.response.is_some();
    ours.then_some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: Outcome = Outcome::Sent;
    const GONE: Outcome = Outcome::TokenGone;
    const BAD: Outcome = Outcome::BadMessage;
    const LIMITED: Outcome = Outcome::Trouble(Trouble::RateLimited);
    const SERVER: Outcome = Outcome::Trouble(Trouble::ServerError);
    const REDIRECT: Outcome = Outcome::Trouble(Trouble::Redirect);
    const CODE: Outcome = Outcome::Trouble(Trouble::UnexpectedCode);
    const UNREADABLE: Outcome = Outcome::Trouble(Trouble::Unreadable);
    const CONTRADICTION: Outcome = Outcome::Trouble(Trouble::Contradiction);

    fn check(cases: &[(u16, &str, Outcome)]) {
        for (http, body, expected) in cases {
            assert_eq!(classify(*http, body.as_bytes()), *expected, "{http} {body}");
        }
    }

    #[test]
    fn the_documented_answers() {
        check(&[
            (200, r#"{"code":200,"response":"OK"}"#, SENT),
            (200, r#"{"code":404,"response":"Not registered"}"#, GONE),
            (200, r#"{"code":400,"response":"Bad request"}"#, BAD),
            (200, r#"{"code":500,"response":"Internal"}"#, SERVER),
            (200, r#"{"status":200,"response":"OK"}"#, SENT),
            (200, r#"{"status":404,"response":"Not registered"}"#, GONE),
            (200, r#"{"code":410,"response":"Gone"}"#, GONE),
            (200, r#"{"status":410,"response":"Gone"}"#, GONE),
            (200, r#"{"status":400}"#, BAD),
            (200, r#"{"code":413,"response":"Too large"}"#, BAD),
            (202, r#"{"code":202}"#, SENT),
            (200, r#" { "response" : "OK" } "#, SENT),
            (404, r#"{"code":404,"response":"Not registered"}"#, GONE),
            (404, r#"{"code":404}"#, GONE),
            (404, r#"{"response":"Not registered"}"#, GONE),
            (404, r#"{"status":404,"response":"Not registered"}"#, GONE),
            (404, r#"{"code":"404","response":"Not registered"}"#, GONE),
            (410, r#"{"code":410,"response":"Gone"}"#, GONE),
            (410, r#"{"response":"Gone"}"#, GONE),
            (404, r#"{"code":410}"#, GONE),
            (400, r#"{"code":400}"#, BAD),
            (400, r#"{"response":"missing Selector"}"#, BAD),
        ]);
    }

    #[test]
    fn the_code_outranks_the_status_field_and_both_outrank_http() {
        check(&[
            (200, r#"{"code":200,"status":404}"#, SENT),
            (200, r#"{"status":200,"code":404}"#, GONE),
            (200, r#"{"code":null,"status":404,"response":""}"#, GONE),
            (200, r#"{"code":"x","status":404,"response":""}"#, GONE),
            (301, r#"{"code":404}"#, GONE),
            (400, r#"{"code":404}"#, GONE),
            (403, r#"{"code":404}"#, GONE),
            (413, r#"{"code":410}"#, GONE),
            (428, r#"{"status":404,"response":"x"}"#, GONE),
            (200, r#"{"code":429}"#, LIMITED),
            (200, r#"{"code":0}"#, CODE),
            (200, r#"{"code":-404}"#, CODE),
            (200, r#"{"code":4040}"#, CODE),
            (200, r#"{"code":302}"#, CODE),
        ]);
    }

    #[test]
    fn a_fault_of_the_service_is_never_a_rejection() {
        check(&[
            (429, r#"{"code":404}"#, LIMITED),
            (429, "", LIMITED),
            (430, r#"{"code":404}"#, CODE),
            (451, r#"{"code":410,"response":"Gone"}"#, CODE),
            (499, r#"{"status":404,"response":"x"}"#, CODE),
            (499, r#"{"code":200}"#, CODE),
            (500, r#"{"code":404}"#, SERVER),
            (500, r#"{"code":200}"#, SERVER),
            (502, "<html>404</html>", SERVER),
            (503, r#"{"code":400}"#, SERVER),
            (599, "", SERVER),
            (600, "", CODE),
            (999, r#"{"code":404}"#, CODE),
            (301, r#"{"status":404}"#, REDIRECT),
            (302, r#"{"code":200}"#, REDIRECT),
            (302, r#"{"code":400}"#, REDIRECT),
            (302, "<html>", REDIRECT),
            (307, "", REDIRECT),
            (401, r#"{"response":"who are you"}"#, CODE),
            (401, "", UNREADABLE),
            (403, r#"{"error":"forbidden"}"#, UNREADABLE),
        ]);
    }

    #[test]
    fn a_404_that_is_not_pnms_own_is_trouble() {
        check(&[
            (404, "<html><title>404 Not Found</title></html>", UNREADABLE),
            (404, "404", UNREADABLE),
            (404, r#""404""#, UNREADABLE),
            (404, "[404]", UNREADABLE),
            (404, r#"[{"code":404}]"#, UNREADABLE),
            (404, "{}", UNREADABLE),
            (404, "null", UNREADABLE),
            (404, "", UNREADABLE),
            (404, r#"{"errcode":"M_UNRECOGNIZED"}"#, UNREADABLE),
            (404, r#"{"error":{"code":404}}"#, UNREADABLE),
            (404, r#"{"code":null}"#, UNREADABLE),
            (404, r#"{"code":404"#, UNREADABLE),
            (404, r#"{"code":404}x"#, UNREADABLE),
            (404, r#"{"code":200}"#, CONTRADICTION),
            (404, r#"{"code":400}"#, CONTRADICTION),
            (404, r#"{"code":500}"#, SERVER),
            (404, r#"{"code":7}"#, CODE),
            (410, "<html>Gone</html>", UNREADABLE),
            (410, r#"{"code":400}"#, CONTRADICTION),
        ]);
    }

    /// The first version rejected 15 of 15 phones for such a page (review, M4).
    #[test]
    fn a_web_frameworks_own_page_is_trouble() {
        let pages = [
            r#"{"timestamp":"2026-01-01T00:00:00Z","status":404,"error":"Not Found"}"#,
            r#"{"timestamp":1767225600000,"status":404,"error":"Not Found","path":"/pnm2/send"}"#,
            r#"{"type":"about:blank","title":"Not Found","status":404}"#,
            r#"{"statusCode":404,"error":"Not Found","message":"Cannot POST /pnm2/send"}"#,
            r#"{"status":404}"#,
            r#"{"status":410,"response":null}"#,
            r#"{"status":404,"response":{"message":"Not Found"}}"#,
            r#"{"status":"error"}"#,
            r#"{"message":"no Route matched with those values"}"#,
        ];
        for http in [200, 400, 403, 404, 410] {
            for page in pages {
                assert_ne!(classify(http, page.as_bytes()), GONE, "{http} {page}");
            }
        }
        for http in [404, 410] {
            for page in pages {
                assert_eq!(classify(http, page.as_bytes()), UNREADABLE, "{http} {page}");
            }
        }
    }

    /// Field case 22.
    #[test]
    fn a_bad_message_is_dropped_whatever_the_words() {
        check(&[
            (400, "Bad Request: missing Selector", BAD),
            (400, "", BAD),
            (400, "{}", BAD),
            (400, r#""no""#, BAD),
            (400, r#"{"error":"Bad Request"}"#, BAD),
            (400, r#"{"status":400,"error":"Bad Request"}"#, BAD),
            (400, r#"{"code":"400"}"#, BAD),
            (413, "", BAD),
            (413, "<html>Payload Too Large</html>", BAD),
            (413, r#"{"response":"too large"}"#, BAD),
            (
                400,
                " <html>400 The plain HTTP request was sent to HTTPS port",
                UNREADABLE,
            ),
            (400, r#"{"code":500}"#, SERVER),
            (400, r#"{"code":429}"#, LIMITED),
        ]);
    }

    #[test]
    fn a_success_without_a_body_is_taken_as_sent() {
        check(&[
            (200, "", SENT),
            (200, " \r\n", SENT),
            (202, "", SENT),
            (204, "", SENT),
            (302, "", REDIRECT),
            (404, "", UNREADABLE),
            (403, "", UNREADABLE),
            (503, "", SERVER),
        ]);
    }

    #[test]
    fn a_text_with_404_in_it_is_never_a_rejection() {
        check(&[
            (200, "upstream said 404 at 12:40:04", UNREADABLE),
            (200, r#"{"code":"404"}"#, CONTRADICTION),
            (200, r#"{"code":" 404 "}"#, CONTRADICTION),
            (404, r#"{"code":"404"}"#, UNREADABLE),
            (404, r#"{"code":"500"}"#, CONTRADICTION),
            (200, r#"{"status":"404","response":"OK"}"#, CONTRADICTION),
            (200, r#"{"code":404.0}"#, CONTRADICTION),
            (200, r#"{"code":99999999999999999999}"#, CONTRADICTION),
            (200, r#"{"code":"200"}"#, SENT),
            (200, r#"{"status":"OK"}"#, SENT),
            (200, r#"{"response":"sent 404 messages"}"#, SENT),
            (200, r#"{"code":200,"response":"404"}"#, SENT),
            (200, r#"{"code":500,"response":"404"}"#, SERVER),
            (200, r#"{"code":true,"response":"x"}"#, SENT),
        ]);
    }

    #[test]
    fn what_is_no_object_of_pnms_is_unreadable() {
        check(&[
            (200, "OK", UNREADABLE),
            (200, "<html>200 OK</html>", UNREADABLE),
            (200, "200", UNREADABLE),
            (200, "{}", UNREADABLE),
            (200, "[]", UNREADABLE),
            (200, "[200]", UNREADABLE),
            (200, r#"{"ok":true}"#, UNREADABLE),
            (200, r#"{"Code":200}"#, UNREADABLE),
            (200, "\u{feff}{}", UNREADABLE),
        ]);
        assert_eq!(classify(200, b"{\"code\":200,\"response\":\"\xff\"}"), SENT);
        assert_eq!(classify(404, b"{\"response\":\"\xff\"}"), GONE);
        assert_eq!(classify(200, b"\xff\xfe"), UNREADABLE);
    }

    #[test]
    fn success_under_a_failing_http_status_is_not_believed() {
        check(&[
            (400, r#"{"code":200}"#, CONTRADICTION),
            (403, r#"{"status":200,"response":"OK"}"#, CONTRADICTION),
        ]);
    }

    #[test]
    fn only_an_object_can_reject_whatever_the_bytes() {
        let pieces = [
            "404", "\"404\"", "{", "}", "[", "]", "code", ":", ",", "<", "null", " ",
        ];
        for a in pieces {
            for b in pieces {
                for c in pieces {
                    for http in [200, 400, 404, 410, 500] {
                        let body = format!("{a}{b}{c}");
                        assert_ne!(classify(http, body.as_bytes()), GONE, "{http} {body}");
                    }
                }
            }
        }
    }
}
