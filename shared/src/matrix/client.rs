//! The client for a homeserver's client-server API, acting for users as an application service.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, UNIX_EPOCH},
};

use reqwest::{Method, RequestBuilder};
use serde::Serialize;
use serde_json::{Map, Value, json};
use url::Url;

use super::{
    device::{self, DEVICE_ID, DEVICE_NAME},
    pushers::{DeletePusher, HeldPusher, HeldPushers, SetPusher},
};
use crate::{
    clock::Clock,
    ids::UserId,
    process::net::{self, Outgoing},
    rules::outcome::{Reply, Response},
    secret::Secret,
};

/// Longest body that we read: a user with a thousand pushers stays below.
const MAX_BODY: usize = 1024 * 1024;
/// How long a probe waits. A homeserver that takes longer is not back yet.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// The most connections to keep for later requests.
const IDLE: usize = 64;
/// The homeserver's error texts are cut to this many characters.
const MAX_WORDS: usize = 300;

/// Receives the kind, reply and duration of each request.
pub type Observer = fn(&'static str, &Reply, Duration);

/// A homeserver and our token for it.
#[derive(Debug, Clone)]
pub struct Homeserver {
    client: reqwest::Client,
    base: Url,
    token: Secret,
    clock: Clock,
    observer: Observer,
    /// The homeserver has refused a request that named no device, so all further requests name one.
    wants_device: Arc<AtomicBool>,
}

/// The reply to a request, with the body of the response.
#[derive(Debug, Clone)]
pub struct Received {
    /// The part of the response that decides what happens next.
    pub reply: Reply,
    /// The body. Null if there is none or it is not JSON.
    pub body: Value,
    /// The homeserver's clock, in seconds since 1970.
    pub date: Option<i64>,
}

impl Homeserver {
    /// `timeout` is per request, from connecting to the end of the response.
    pub fn new(
        base: Url,
        token: Secret,
        timeout: Duration,
        outgoing: &Outgoing,
        observer: Observer,
    ) -> Result<Self, reqwest::Error> {
        let client = outgoing.pooled(&base, timeout, IDLE)?;
        Ok(Self {
            client,
            base,
            token,
            clock: Clock::system(),
            observer,
            wants_device: Arc::default(),
        })
    }

    /// Whether the homeserver has asked us to act as a device. Homeservers that do so keep one pusher for a user and
    /// pushkey, whatever the app id.
    pub fn wants_device(&self) -> bool {
        self.wants_device.load(Ordering::Relaxed)
    }

    /// `POST /pushers/set` with a pusher.
    pub async fn set(&self, user: &UserId, pusher: &SetPusher<'_>) -> Reply {
        self.change("set", user, pusher).await
    }

    /// `POST /pushers/set` with `kind: null`. The response is 200 even if there is no such pusher.
    pub async fn delete(&self, user: &UserId, pusher: &DeletePusher<'_>) -> Reply {
        self.change("delete", user, pusher).await
    }

    /// `PUT /devices/{id}`: makes the device that we act as, for a user who does not have it yet.
    pub async fn make_device(&self, user: &UserId) -> Reply {
        let url = self.url(&format!("v3/devices/{DEVICE_ID}"), Some(user));
        let name = json!({ "display_name": DEVICE_NAME });
        let request = self.authorized(Method::PUT, url).json(&name);
        self.send("device", request).await.reply
    }

    /// Whether this reply to a set or delete says that the user's device has to be made first.
    pub fn lacks_device(&self, reply: &Reply) -> bool {
        self.wants_device() && device::is_unknown(reply)
    }

    /// Sends a change, as our device where the homeserver wants one, and notes whether the reply asks for one. Each call
    /// is a single request, because the caller counts requests.
    async fn change(&self, kind: &'static str, user: &UserId, body: &impl Serialize) -> Reply {
        let reply = self.post(kind, user, body).await;
        if device::is_wanted(&reply) {
            self.wants_device.store(true, Ordering::Relaxed);
        }
        reply
    }

    async fn post(&self, kind: &'static str, user: &UserId, body: &impl Serialize) -> Reply {
        let mut url = self.url("v3/pushers/set", Some(user));
        if self.wants_device() {
            // Only the stable name, because Continuwuity refuses a request with both.
            url.query_pairs_mut().append_pair("device_id", DEVICE_ID);
        }
        let request = self.authorized(Method::POST, url).json(body);
        self.send(kind, request).await.reply
    }

    fn authorized(&self, method: Method, url: Url) -> RequestBuilder {
        let request = self.client.request(method, url);
        request.bearer_auth(self.token.expose())
    }

    /// `GET /pushers`: the reply, and this user's pushers if the body can be read.
    pub async fn pushers(&self, user: &UserId) -> (Reply, Option<Vec<HeldPusher>>) {
        let received = self.get("list", "v3/pushers", Some(user)).await;
        (received.reply, held(received.body))
    }

    /// `GET /_matrix/client/{endpoint}` with our token, for a user or for ourselves.
    pub async fn get(&self, kind: &'static str, endpoint: &str, user: Option<&UserId>) -> Received {
        let request = self.authorized(Method::GET, self.url(endpoint, user));
        self.send(kind, request).await
    }

    /// `GET /versions`, without our token. Synapse responds 401 to an unknown token, and then no job would ever run to
    /// find that out.
    pub async fn versions(&self) -> Received {
        let request = self.client.get(self.url("versions", None));
        self.send("probe", request.timeout(PROBE_TIMEOUT)).await
    }

    /// Whether the homeserver answers at all.
    pub async fn probe(&self) -> bool {
        match self.versions().await.reply {
            Reply::Response(response) => (200..300).contains(&response.status) && response.json,
            Reply::Nothing { .. } => false,
        }
    }

    fn url(&self, endpoint: &str, user: Option<&UserId>) -> Url {
        let mut url = self.base.clone();
        let base = url.path().trim_end_matches('/');
        let path = format!("{base}/_matrix/client/{endpoint}");
        url.set_path(&path);
        if let Some(user) = user {
            url.query_pairs_mut().append_pair("user_id", user.as_str());
        }
        url
    }

    async fn send(&self, kind: &'static str, request: RequestBuilder) -> Received {
        let started = Instant::now();
        let received = receive(request, self.clock.unix()).await;
        (self.observer)(kind, &received.reply, started.elapsed());
        received
    }
}

/// The pushers in the body of a response to `GET /pushers`.
pub fn held(body: Value) -> Option<Vec<HeldPusher>> {
    let list: HeldPushers = serde_json::from_value(body).ok()?;
    Some(list.pushers)
}

async fn receive(request: RequestBuilder, now: i64) -> Received {
    let nothing = |reason: String, sent| Received {
        reply: Reply::Nothing { reason, sent },
        body: Value::Null,
        date: None,
    };
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) => {
            let (reason, sent) = no_response(&error);
            return nothing(reason.into(), sent);
        }
    };
    let status = response.status().as_u16();
    let header = |name: &str| {
        let value = response.headers().get(name)?.to_str().ok()?;
        Some(value.to_owned())
    };
    let (retry_after, location) = (header("retry-after"), header("location"));
    let date = header("date").and_then(|date| seconds(&date));
    let body: Value = match net::read_body(response, MAX_BODY).await {
        Ok(body) => serde_json::from_slice(&body).unwrap_or_default(),
        Err(_) if (200..300).contains(&status) => {
            return nothing(format!("HTTP {status}, but its body cannot be read"), true);
        }
        // The status and the headers say enough.
        Err(_) => Value::Null,
    };
    let from_header = retry_after.and_then(|text| wait(&text, now));
    let response = Response {
        location: location.map(|target| cut(&target)),
        ..read(status, from_header, body.as_object())
    };
    Received {
        reply: Reply::Response(response),
        body,
        date,
    }
}

/// Our text for a request without a response, and whether the homeserver may have seen the request. reqwest's own text
/// would repeat the URL, which contains the user.
fn no_response(error: &reqwest::Error) -> (&'static str, bool) {
    if error.is_connect() && error.is_timeout() {
        ("no connection in time", false)
    } else if error.is_connect() {
        ("connection refused or failed", false)
    } else if error.is_timeout() {
        ("no response in time", true)
    } else {
        ("connection lost before the response", true)
    }
}

/// Reads the part of a response that decides. Where header and body name different waits, the longer one counts.
fn read(status: u16, from_header: Option<Duration>, body: Option<&Map<String, Value>>) -> Response {
    let text = |key: &str| Some(cut(body?.get(key)?.as_str()?));
    let from_body = body
        .and_then(|body| body.get("retry_after_ms")?.as_f64())
        .and_then(|ms| Duration::try_from_secs_f64(ms / 1000.0).ok());
    Response {
        status,
        json: body.is_some(),
        errcode: text("errcode").filter(|code| is_errcode(code)),
        error: text("error"),
        location: None,
        retry_after: from_body.max(from_header),
    }
}

/// Whether a homeserver may have written it: `M_…`, or a name of its own like a Java package
/// (<https://spec.matrix.org/v1.16/client-server-api/#standard-error-response>).
fn is_errcode(code: &str) -> bool {
    code.starts_with("M_") || code.contains('.')
}

/// Shortens a text from a response, and replaces control characters. PostgreSQL cannot store a NUL in a text.
fn cut(text: &str) -> String {
    let readable = |char: char| if char.is_control() { ' ' } else { char };
    text.chars().map(readable).take(MAX_WORDS).collect()
}

/// A Retry-After in either of its forms (RFC 9110, 10.2.3): seconds, or a date. `now` is in seconds since 1970.
pub fn wait(text: &str, now: i64) -> Option<Duration> {
    let text = text.trim();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = if is_number {
        // A number that does not fit is a long wait all the same.
        text.parse().unwrap_or(u64::MAX)
    } else {
        u64::try_from(seconds(text)? - now).unwrap_or(0)
    };
    Some(Duration::from_secs(seconds))
}

/// An HTTP date in seconds since 1970.
fn seconds(date: &str) -> Option<i64> {
    let since = httpdate::parse_http_date(date)
        .ok()?
        .duration_since(UNIX_EPOCH);
    i64::try_from(since.ok()?.as_secs()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::io::{Read as _, Write as _};

    #[test]
    fn retry_after_in_both_forms() {
        // Sun, 06 Nov 1994 08:49:37 GMT
        let now = 784_111_777;
        for (text, expected) in [
            ("3", Some(3)),
            (" 0 ", Some(0)),
            ("99999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:49:45 GMT", Some(8)),
            ("Sunday, 06-Nov-94 08:49:45 GMT", Some(8)),
            ("Sun, 06 Nov 1994 08:49:30 GMT", Some(0)),
            ("soon", None),
            ("-3", None),
            ("", None),
        ] {
            let expected = expected.map(Duration::from_secs);
            assert_eq!(wait(text, now), expected, "{text:?}");
        }
    }

    /// What follows from these bytes, after which the connection ends.
    async fn received(answer: Vec<u8>) -> Reply {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let _ = client.read(&mut [0; 1024]).unwrap();
            // The client may hang up before the end.
            let _ = client.write_all(&answer);
        });
        net::install_tls();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let received = receive(client.get(url), 0).await;
        server.join().unwrap();
        received.reply
    }

    #[tokio::test]
    async fn a_refusal_whose_body_is_cut_or_too_long_is_still_one() {
        let cut = |status: &str| {
            format!("HTTP/1.1 {status} X\r\nretry-after: 7\r\ncontent-length: 99\r\n\r\n{{")
                .into_bytes()
        };
        let long = |status: &str| {
            let length = MAX_BODY + 1;
            let head = format!(
                "HTTP/1.1 {status} X\r\nretry-after: 7\r\ncontent-length: {length}\r\n\r\n"
            );
            [head.into_bytes(), vec![b' '; length]].concat()
        };
        for (status, answer) in [(429, cut("429")), (503, cut("503")), (429, long("429"))] {
            let expected = Response {
                status,
                retry_after: Some(Duration::from_secs(7)),
                ..Response::default()
            };
            assert_eq!(
                received(answer).await,
                Reply::Response(expected),
                "{status}"
            );
        }
        // It may be done, or not.
        for answer in [cut("200"), long("200")] {
            let reply = received(answer).await;
            assert!(
                matches!(reply, Reply::Nothing { sent: true, .. }),
                "{reply:?}"
            );
        }
    }

    #[test]
    fn the_longer_wait_of_header_and_body_counts() {
        let header = Some(Duration::from_secs(3));
        for (body, expected) in [
            (json!({}), header),
            (
                json!({"retry_after_ms": 3001}),
                Some(Duration::from_millis(3001)),
            ),
            (
                json!({"retry_after_ms": 4000.5}),
                Some(Duration::from_micros(4_000_500)),
            ),
            (json!({"retry_after_ms": 10}), header),
            (json!({"retry_after_ms": -1}), header),
            (json!({"retry_after_ms": "1"}), header),
        ] {
            let response = read(429, header, body.as_object());
            assert_eq!(response.retry_after, expected, "{body}");
        }
    }

    #[test]
    fn only_a_matrix_errcode_counts() {
        for (code, counts) in [
            ("M_FORBIDDEN", true),
            ("ORG.EXAMPLE.TEAPOT", true),
            ("", false),
            ("NOPE", false),
        ] {
            let response = read(403, None, json!({"errcode": code}).as_object());
            assert_eq!(response.errcode.is_some(), counts, "{code}");
        }
    }

    #[test]
    fn only_an_object_counts_as_json() {
        for (body, json) in [(json!({}), true), (json!([]), false), (Value::Null, false)] {
            assert_eq!(read(200, None, body.as_object()).json, json, "{body}");
        }
        let long = json!({"errcode": "M_X", "error": "x".repeat(1000)});
        let response = read(400, None, long.as_object());
        assert_eq!(response.errcode.as_deref(), Some("M_X"));
        assert_eq!(response.error.map(|words| words.len()), Some(MAX_WORDS));
    }
}
