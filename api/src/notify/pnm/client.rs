//! Sends messages to PNM over pooled connections.

use std::{
    error::Error as _,
    io,
    sync::{Arc, Once},
    time::Duration,
};

use bytes::Bytes;
use matrix2acrobits_shared::{
    clock::Clock,
    process::{logs::Chain, net::Outgoing},
};
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use serde::Serialize;
use tokio::time::Instant;
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
    http: reqwest::Client,
    url: Url,
    metrics: metrics::Pnm,
    answers: Arc<Answers>,
    empty_answer: Once,
}

impl PnmClient {
    /// A client for the PNM at `url` that waits at most `timeout` for an answer. The process must have a TLS
    /// provider by now, and its metrics recorder.
    pub(crate) fn new(
        url: Url,
        timeout: Duration,
        outgoing: &Outgoing,
    ) -> Result<Self, reqwest::Error> {
        Ok(Self {
            http: outgoing.pooled(&url, timeout, MAX_IDLE_CONNECTIONS)?,
            url,
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
        let request = self
            .http
            .post(self.url.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(body);
        let mut response = match request.send().await {
            Ok(response) => response,
            Err(error) if error.is_timeout() => return Ok(Outcome::Trouble(Trouble::Timeout)),
            Err(error) if failed_before_answer(&error) => {
                tracing::debug!(error = %Chain(&error.without_url()), "no connection to PNM");
                return Err(FailedBeforeAnswer);
            }
            Err(error) => {
                tracing::debug!(error = %Chain(&error.without_url()), "PNM's answer is no HTTP");
                return Ok(Outcome::Trouble(Trouble::Connection));
            }
        };
        let status = response.status().as_u16();
        Ok(match read(&mut response).await {
            Ok(Some(answer)) => {
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
            Ok(None) => Outcome::Trouble(Trouble::Unreadable),
            Err(error) if error.is_timeout() => Outcome::Trouble(Trouble::Timeout),
            Err(_) => Outcome::Trouble(Trouble::Connection),
        })
    }
}

/// The connection could not be made, or ended before the head of an answer.
#[derive(Debug, Clone, Copy)]
struct FailedBeforeAnswer;

/// The whole body, or `None` if it is too long. The usual answer is one chunk and is not copied.
async fn read(response: &mut reqwest::Response) -> Result<Option<Bytes>, reqwest::Error> {
    let Some(first) = response.chunk().await? else {
        return Ok(Some(Bytes::new()));
    };
    let mut rest = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if first.len() + rest.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Ok(None);
        }
        rest.extend_from_slice(&chunk);
    }
    if rest.is_empty() {
        return Ok((first.len() <= MAX_ANSWER_BYTES).then_some(first));
    }
    Ok(Some([&first[..], &rest].concat().into()))
}

/// Whether the connection failed before the head of an answer was there. Asked only of errors of `send`
/// that are no timeout.
fn failed_before_answer(error: &reqwest::Error) -> bool {
    if error.is_connect() {
        return true;
    }
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(http) = cause.downcast_ref::<hyper::Error>()
            && (http.is_incomplete_message() || http.is_closed() || http.is_canceled())
        {
            return true;
        }
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            return matches!(
                io.kind(),
                io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::NotConnected
                    | io::ErrorKind::UnexpectedEof
            );
        }
        source = cause.source();
    }
    false
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
        matrix2acrobits_shared::process::net::install_tls();
        PnmClient::new(
            url.clone(),
            Duration::from_millis(400),
            &Outgoing::default(),
        )
        .unwrap()
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
    async fn nobody_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        drop(listener);
        let outcome = send(&client(&Url::parse(&url).unwrap())).await;
        assert_eq!(outcome, Outcome::Trouble(Trouble::Connection));
    }
}
