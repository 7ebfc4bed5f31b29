//! Sends messages to PNM over pooled connections.

use std::{
    error::Error,
    io,
    sync::{Arc, Once},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, Uri,
    header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT},
};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use matrix2acrobits_shared::{
    clock::Clock,
    process::{
        logs::Chain,
        net::{self, Connector, Outgoing},
    },
};
use serde::Serialize;
use tokio::time::{Instant, timeout};
use tower::timeout::error::Elapsed;
use url::Url;

use super::{
    answers::Answers,
    outcome::{Outcome, Trouble, classify},
};
use crate::metrics;

/// PNM's answers are about 40 bytes; who sends more than this is not PNM.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// A connection per push would cost a TLS handshake each, so bursts keep theirs for the next one.
const MAX_IDLE_CONNECTIONS: usize = 512;
/// Most messages are shorter; longer ones make the buffer grow.
const USUAL_MESSAGE_BYTES: usize = 768;

/// The client; made once, since it holds the connections.
#[derive(Debug)]
pub(crate) struct PnmClient {
    http: Client<Connector, Full<Bytes>>,
    uri: Uri,
    headers: HeaderMap,
    timeout: Duration,
    metrics: metrics::Pnm,
    answers: Arc<Answers>,
    empty_answer: Once,
}

impl PnmClient {
    /// A client for the PNM at `url` that waits at most `timeout` for an answer, including the body. The process must have
    /// its metrics recorder by now.
    pub(crate) fn new(
        url: &Url,
        timeout: Duration,
        outgoing: &Outgoing,
    ) -> Result<Self, http::Error> {
        let (http, uri) = outgoing.bare(url, timeout, MAX_IDLE_CONNECTIONS)?;
        // The port of an `Url` is none if it is the scheme's own.
        let port = url.port().map(|port| format!(":{port}"));
        let host = url.host_str().unwrap_or_default().to_owned() + &port.unwrap_or_default();
        let headers = [
            (HOST, HeaderValue::try_from(host)?),
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (ACCEPT, HeaderValue::from_static("*/*")),
            (USER_AGENT, HeaderValue::from_static(net::USER_AGENT)),
        ];
        Ok(Self {
            http,
            uri,
            headers: HeaderMap::from_iter(headers),
            timeout,
            metrics: metrics::Pnm::new(),
            answers: Arc::new(Answers::new(Clock::system())),
            empty_answer: Once::new(),
        })
    }

    /// What it was answered, for the status page.
    pub(crate) fn answers(&self) -> Arc<Answers> {
        self.answers.clone()
    }

    /// Sends a message and tells what became of it.
    pub(crate) async fn send(&self, message: &impl Serialize) -> Outcome {
        let mut body = Vec::with_capacity(USUAL_MESSAGE_BYTES);
        if serde_json::to_writer(&mut body, message).is_err() {
            // Cannot happen: texts and numbers always serialize, and a Vec takes every write.
            return Outcome::BadMessage;
        }
        let body = Bytes::from(body);
        match self.attempt(body.clone()).await {
            // At once, and once: PNM may have closed an idle connection just as we took it.
            Err(FailedBeforeAnswer) => self.attempt(body).await,
            done => done,
        }
        .unwrap_or(Outcome::Trouble(Trouble::Connection))
    }

    async fn attempt(&self, body: Bytes) -> Result<Outcome, FailedBeforeAnswer> {
        let start = Instant::now();
        let under_way = self.metrics.begin();
        let result = self.exchange(body).await;
        drop(under_way);
        let outcome = result.unwrap_or(Outcome::Trouble(Trouble::Connection));
        self.metrics.count(outcome, start.elapsed());
        self.answers.note(outcome);
        result
    }

    async fn exchange(&self, body: Bytes) -> Result<Outcome, FailedBeforeAnswer> {
        timeout(self.timeout, self.post(body))
            .await
            .unwrap_or(Ok(Outcome::Trouble(Trouble::Timeout)))
    }

    async fn post(&self, body: Bytes) -> Result<Outcome, FailedBeforeAnswer> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        match self.http.request(request).await {
            Ok(response) => Ok(self.read(response).await),
            Err(error) => match why(&error) {
                Why::FailedBeforeAnswer => {
                    tracing::debug!(error = %Chain(&error), "no connection to PNM");
                    Err(FailedBeforeAnswer)
                }
                Why::Trouble(trouble) => {
                    tracing::debug!(error = %Chain(&error), "no answer of PNM");
                    Ok(Outcome::Trouble(trouble))
                }
            },
        }
    }

    async fn read(&self, response: Response<Incoming>) -> Outcome {
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
        // The usual answer is one chunk and is not copied.
        let answer = match body.collect().await {
            Ok(answer) => answer.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return Outcome::Trouble(Trouble::Unreadable);
            }
            Err(_) => return Outcome::Trouble(Trouble::Connection),
        };
        let outcome = classify(status, &answer);
        if outcome == Outcome::Sent && answer.trim_ascii().is_empty() {
            self.empty_answer.call_once(|| {
                tracing::warn!(
                    status,
                    "PNM answers without a body: such pushes count as sent (logged once)"
                );
            });
        }
        outcome
    }
}

/// The connection could not be made, or ended before the head of an answer.
#[derive(Debug, Clone, Copy)]
struct FailedBeforeAnswer;

/// Why there was no head of an answer.
enum Why {
    FailedBeforeAnswer,
    Trouble(Trouble),
}

fn why(error: &hyper_util::client::legacy::Error) -> Why {
    let mut failed_before = error.is_connect();
    let mut source = error.source();
    while let Some(cause) = source {
        let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        if cause.is::<Elapsed>() || io == Some(io::ErrorKind::TimedOut) {
            return Why::Trouble(Trouble::Timeout);
        }
        failed_before |= io.is_some_and(is_lost_connection)
            || cause.downcast_ref::<hyper::Error>().is_some_and(|http| {
                http.is_incomplete_message() || http.is_closed() || http.is_canceled()
            });
        source = cause.source();
    }
    if failed_before {
        Why::FailedBeforeAnswer
    } else {
        Why::Trouble(Trouble::Connection)
    }
}

fn is_lost_connection(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected
            | io::ErrorKind::UnexpectedEof
    )
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use matrix2acrobits_shared::{
        flow::PushTarget,
        ids::{AppId, Pushkey, Selector},
    };
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::notify::{notification::Notification, pnm::translate::translate};

    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{\"code\":200}";
    const HALF: &str = "HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{\"code\"";

    /// What the stand-in does with the requests of one connection.
    #[derive(Clone, Copy)]
    enum Step {
        Answer(&'static str),
        AnswerOnceAndClose(&'static str),
        AnswerAndHang(&'static str),
        Close,
        Reset,
        Hang,
        Flood,
    }

    /// Takes one step per connection, the last one over and over; counts requests and connections.
    struct StandIn {
        url: Url,
        requests: Arc<AtomicUsize>,
        connections: Arc<AtomicUsize>,
    }

    impl StandIn {
        async fn start(steps: &'static [Step]) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}/send", listener.local_addr().unwrap());
            let it = Self {
                url: Url::parse(&url).unwrap(),
                requests: Arc::default(),
                connections: Arc::default(),
            };
            let (requests, connections) = (it.requests.clone(), it.connections.clone());
            tokio::spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let at = connections.fetch_add(1, Ordering::SeqCst);
                    let step = steps[at.min(steps.len() - 1)];
                    tokio::spawn(serve(stream, step, requests.clone()));
                }
            });
            it
        }

        fn seen(&self) -> (usize, usize) {
            let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
            (count(&self.requests), count(&self.connections))
        }
    }

    async fn serve(mut stream: TcpStream, step: Step, requests: Arc<AtomicUsize>) {
        let mut request = vec![0; 16 * 1024];
        loop {
            let mut length = 0;
            // The message ends with the only "}" of the request.
            while length == 0 || request[length - 1] != b'}' {
                match stream.read(&mut request[length..]).await {
                    Ok(0) | Err(_) => return,
                    Ok(read) => length += read,
                }
            }
            requests.fetch_add(1, Ordering::SeqCst);
            match step {
                Step::Answer(answer) => stream.write_all(answer.as_bytes()).await.unwrap(),
                Step::AnswerOnceAndClose(answer) => {
                    return stream.write_all(answer.as_bytes()).await.unwrap();
                }
                Step::AnswerAndHang(answer) => {
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    std::future::pending::<()>().await;
                }
                Step::Close => return,
                Step::Reset => return stream.set_zero_linger().unwrap(),
                Step::Hang => std::future::pending().await,
                Step::Flood => {
                    let head = "HTTP/1.1 200 OK\r\n\r\n{\"code\":200,\"response\":\"";
                    let _ = stream.write_all(head.as_bytes()).await;
                    while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
                    return;
                }
            }
        }
    }

    fn client(url: &Url) -> PnmClient {
        net::install_tls();
        let outgoing = Outgoing::new(None).unwrap();
        PnmClient::new(url, Duration::from_millis(400), &outgoing).unwrap()
    }

    async fn send(client: &PnmClient) -> Outcome {
        let target = PushTarget {
            row_id: 1,
            report: 1,
            selector: Selector::parse("s").unwrap(),
            app_id: AppId::parse("a").unwrap(),
            pushkey: Pushkey::parse("k").unwrap(),
            dead: false,
            owned: true,
        };
        let body =
            br#"{"notification":{"event_id":"$e","devices":[{"app_id":"a","pushkey":"k"}]}}"#;
        let it = Notification::parse(body).unwrap();
        client
            .send(&translate(
                &target,
                &it,
                &it.devices[0],
                &crate::notify::texts::Texts::english(),
                None,
            ))
            .await
    }

    #[tokio::test]
    async fn one_connection_serves_many_pushes() {
        let pnm = StandIn::start(&[Step::Answer(OK)]).await;
        let client = client(&pnm.url);
        for _ in 0..20 {
            assert_eq!(send(&client).await, Outcome::Sent);
        }
        assert_eq!(pnm.seen(), (20, 1));
    }

    #[tokio::test]
    async fn each_fault() {
        let cases: &[(&str, &[Step], Outcome, usize)] = &[
            (
                "closed once",
                &[Step::Close, Step::Answer(OK)],
                Outcome::Sent,
                2,
            ),
            (
                "reset once",
                &[Step::Reset, Step::Answer(OK)],
                Outcome::Sent,
                2,
            ),
            (
                "closed",
                &[Step::Close],
                Outcome::Trouble(Trouble::Connection),
                2,
            ),
            (
                "reset",
                &[Step::Reset],
                Outcome::Trouble(Trouble::Connection),
                2,
            ),
            (
                "hangs",
                &[Step::Hang],
                Outcome::Trouble(Trouble::Timeout),
                1,
            ),
            (
                "closed, then hangs",
                &[Step::Close, Step::Hang],
                Outcome::Trouble(Trouble::Timeout),
                2,
            ),
            (
                "hangs within the body",
                &[Step::AnswerAndHang(HALF)],
                Outcome::Trouble(Trouble::Timeout),
                1,
            ),
            (
                "breaks off within the body",
                &[Step::AnswerOnceAndClose(HALF)],
                Outcome::Trouble(Trouble::Connection),
                1,
            ),
            (
                "no HTTP",
                &[Step::AnswerOnceAndClose("220 smtp.example.org ready\r\n")],
                Outcome::Trouble(Trouble::Connection),
                1,
            ),
            (
                "never ends",
                &[Step::Flood],
                Outcome::Trouble(Trouble::Unreadable),
                1,
            ),
            (
                "redirects",
                &[Step::Answer(
                    "HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n",
                )],
                Outcome::Trouble(Trouble::Redirect),
                1,
            ),
            (
                "no body",
                &[Step::Answer("HTTP/1.1 204 No Content\r\n\r\n")],
                Outcome::Sent,
                1,
            ),
            (
                "gone",
                &[Step::Answer(
                    "HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{\"code\":404}",
                )],
                Outcome::TokenGone,
                1,
            ),
            (
                "in two chunks",
                &[Step::Answer(
                    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\n{\"code\r\n6\r\n\":200}\r\n0\r\n\r\n",
                )],
                Outcome::Sent,
                1,
            ),
        ];
        for (name, steps, expected, requests) in cases {
            let pnm = StandIn::start(steps).await;
            assert_eq!(send(&client(&pnm.url)).await, *expected, "{name}");
            assert_eq!(pnm.seen().0, *requests, "{name}");
        }
    }

    #[tokio::test]
    async fn a_pooled_connection_that_pnm_closed_costs_nothing() {
        let steps = &[Step::AnswerOnceAndClose(OK)];
        let pnm = StandIn::start(steps).await;
        let client = client(&pnm.url);
        for _ in 0..10 {
            assert_eq!(send(&client).await, Outcome::Sent);
        }
        assert_eq!(pnm.seen(), (10, 10));
    }

    #[tokio::test]
    async fn a_tls_handshake_that_hangs_is_a_timeout() {
        let pnm = StandIn::start(&[Step::Hang]).await;
        let mut url = pnm.url.clone();
        url.set_scheme("https").unwrap();
        let outcome = send(&client(&url)).await;
        assert_eq!(outcome, Outcome::Trouble(Trouble::Timeout));
        assert_eq!(pnm.seen(), (0, 1), "no second try");
    }

    #[tokio::test]
    async fn nobody_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        drop(listener);
        let outcome = send(&client(&Url::parse(&url).unwrap())).await;
        assert_eq!(outcome, Outcome::Trouble(Trouble::Connection));
    }
}
