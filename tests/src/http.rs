//! The HTTP client of the tests: loopback only, no proxy, and answers that are easy to assert on.

use std::time::{Duration, Instant};

use reqwest::header::HeaderMap;
use reqwest::{Client, RequestBuilder};
use serde_json::Value;

/// An answer, body read.
#[derive(Debug, Clone)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body as text.
    pub text: String,
    /// From sending the request to having the whole answer.
    pub took: Duration,
}

impl Reply {
    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    /// The body's `errcode`, or nothing.
    pub fn errcode(&self) -> String {
        self.json()["errcode"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// A header's value, or nothing.
    pub fn header(&self, name: &str) -> String {
        let value = self.headers.get(name).and_then(|v| v.to_str().ok());
        value.unwrap_or_default().to_owned()
    }

    /// Panics, showing the body, if the status is another.
    #[track_caller]
    pub fn expect_status(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text);
        self
    }

    /// Panics if this is not our error shape with this status.
    #[track_caller]
    pub fn expect_error(self, status: u16) -> Self {
        let reply = self.expect_status(status);
        let error = reply.json()["error"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let shaped = reply.errcode().starts_with("M_") && !error.is_empty();
        assert!(shaped, "not our error shape: {}", reply.text);
        reply
    }
}

/// A client that never leaves loopback by way of a proxy, and shows redirects instead of following them.
pub fn client() -> Client {
    // reqwest is built without a TLS provider; the first test to come installs it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(Duration::from_secs(70))
        .build()
        .unwrap()
}

/// Sends, and panics if there is no answer.
pub async fn send(request: RequestBuilder) -> Reply {
    try_send(request).await.expect("an answer")
}

/// Sends; an error if there is no answer.
pub async fn try_send(request: RequestBuilder) -> Result<Reply, reqwest::Error> {
    let started = Instant::now();
    let response = request.send().await?;
    let status = response.status().as_u16();
    let headers = response.headers().clone();
    let text = response.text().await?;
    Ok(Reply {
        status,
        headers,
        text,
        took: started.elapsed(),
    })
}

/// `name=value&…`, encoded; for query strings and forms.
pub fn encoded(fields: &[(&str, &str)]) -> String {
    url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(fields)
        .finish()
}

/// A value as one path segment.
pub fn segment(value: &str) -> String {
    url::form_urlencoded::byte_serialize(value.as_bytes())
        .collect::<String>()
        .replace('+', "%20")
}
