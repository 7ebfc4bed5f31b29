//! Tells what an answer of PNM means for the push and its token.
//!
//! A token counts as gone only when PNM itself says so in a JSON object. Proxies and mistyped URLs answer
//! 404 too, and a wrong rejection silences a phone for good: it does not register again by itself.

use serde::{Deserialize, de::IgnoredAny};
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
    response: Option<IgnoredAny>,
}

/// Tells what an answer with this HTTP status and body means.
pub(crate) fn classify(http: u16, body: &[u8]) -> Outcome {
    // Overload and faults of the service are never the token's, whatever the body says.
    if http == 429 || http >= 500 {
        return meaning(http.into());
    }
    if (300..400).contains(&http) {
        return Outcome::Trouble(Trouble::Redirect);
    }
    let Some(answer) = read(body) else {
        return Outcome::Trouble(Trouble::Unreadable);
    };
    let said = [answer.code, answer.status].map(|value| value.map_or(Said::Nothing, said));
    for value in said {
        if let Said::Integer(code) = value {
            return weigh(http, code);
        }
    }
    if said
        .iter()
        .any(|value| matches!(value, Said::NumberOf(code) if !is_success(*code)))
    {
        return Outcome::Trouble(Trouble::Contradiction);
    }
    meaning(http.into())
}

/// An integer in the JSON outranks the HTTP status, except where the two contradict each other in a way
/// that would lose the push or the pusher.
fn weigh(http: u16, code: i64) -> Outcome {
    let outcome = meaning(code);
    let http_failed = !(200..300).contains(&http);
    let contradiction = match outcome {
        Outcome::Sent => http_failed,
        Outcome::BadMessage => http == 404,
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
        404 => Outcome::TokenGone,
        400 => Outcome::BadMessage,
        429 => Outcome::Trouble(Trouble::RateLimited),
        500..=599 => Outcome::Trouble(Trouble::ServerError),
        _ => Outcome::Trouble(Trouble::UnexpectedCode),
    }
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

fn said(raw: &RawValue) -> Said {
    let written = raw.get();
    if let Ok(code) = written.parse() {
        return Said::Integer(code);
    }
    match written.trim_matches('"').trim().parse() {
        Ok(code) => Said::NumberOf(code),
        Err(_) => Said::Nothing,
    }
}

fn is_success(code: f64) -> bool {
    (200.0..300.0).contains(&code)
}

/// The body as an object of PNM's: one that has at least one of its fields.
fn read(body: &[u8]) -> Option<Answer<'_>> {
    // serde would take a list for the struct as well: `[404]` must not pass for a code.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    let answer: Answer<'_> = serde_json::from_slice(body).ok()?;
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
            (200, r#"{"status":404}"#, GONE),
            (200, r#"{"status":400}"#, BAD),
            (202, r#"{"code":202}"#, SENT),
            (200, r#" { "response" : "OK" } "#, SENT),
            (404, r#"{"code":404,"response":"Not registered"}"#, GONE),
            (404, r#"{"response":"Not registered"}"#, GONE),
            (404, r#"{"status":"error"}"#, GONE),
            (404, r#"{"status":404}"#, GONE),
            (400, r#"{"code":400}"#, BAD),
            (400, r#"{"response":"missing Selector"}"#, BAD),
        ]);
    }

    #[test]
    fn the_code_outranks_the_status_field_and_both_outrank_http() {
        check(&[
            (200, r#"{"code":200,"status":404}"#, SENT),
            (200, r#"{"status":200,"code":404}"#, GONE),
            (200, r#"{"code":null,"status":404}"#, GONE),
            (200, r#"{"code":"x","status":404}"#, GONE),
            (400, r#"{"code":404}"#, GONE),
            (403, r#"{"code":404}"#, GONE),
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
            (500, r#"{"code":404}"#, SERVER),
            (500, r#"{"code":200}"#, SERVER),
            (502, "<html>404</html>", SERVER),
            (503, r#"{"code":400}"#, SERVER),
            (599, "", SERVER),
            (600, "", CODE),
            (999, r#"{"code":404}"#, CODE),
            (301, r#"{"code":404}"#, REDIRECT),
            (302, r#"{"code":200}"#, REDIRECT),
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
        ]);
    }

    #[test]
    fn a_text_with_404_in_it_is_never_a_rejection() {
        check(&[
            (200, "upstream said 404 at 12:40:04", UNREADABLE),
            (200, r#"{"code":"404"}"#, CONTRADICTION),
            (200, r#"{"code":" 404 "}"#, CONTRADICTION),
            (404, r#"{"code":"404"}"#, CONTRADICTION),
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
            (200, "", UNREADABLE),
            (200, "OK", UNREADABLE),
            (200, "200", UNREADABLE),
            (200, "{}", UNREADABLE),
            (200, "[]", UNREADABLE),
            (200, "[200]", UNREADABLE),
            (200, r#"{"ok":true}"#, UNREADABLE),
            (200, r#"{"Code":200}"#, UNREADABLE),
            (200, "\u{feff}{}", UNREADABLE),
            (400, "<html>", UNREADABLE),
            (400, "{}", UNREADABLE),
        ]);
        assert_eq!(classify(200, b"{\"code\":200,\"response\":\"\xff\"}"), SENT);
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
                    for http in [200, 400, 404, 500] {
                        let body = format!("{a}{b}{c}");
                        assert_ne!(classify(http, body.as_bytes()), GONE, "{http} {body}");
                    }
                }
            }
        }
    }
}
