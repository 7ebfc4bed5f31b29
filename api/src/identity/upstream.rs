//! The client for both login services, with limits on time and size.

use std::time::Duration;

use matrix2acrobits_shared::{
    clock::Clock,
    matrix::client::wait,
    process::net::{self, BodyError, Outgoing},
};
use reqwest::{RequestBuilder, header::RETRY_AFTER};
use serde::de::DeserializeOwned;
use url::Url;

use super::AuthError;

/// Logins are rare, so a few idle connections are enough.
const MAX_IDLE_CONNECTIONS: usize = 8;
/// The wait after a 429 that does not name one.
const USUAL_RETRY_AFTER: Duration = Duration::from_secs(5);
/// The longest wait that a service can impose.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);

/// A login service at a base URL.
#[derive(Debug)]
pub(super) struct Upstream {
    client: reqwest::Client,
    base: String,
}

/// A response of the service. It may contain a token, so it has no Debug.
pub(super) struct Answer {
    pub(super) status: u16,
    /// From the header.
    retry_after: Option<Duration>,
    body: Vec<u8>,
}

impl Upstream {
    /// `timeout` limits the wait for a response, including the body.
    pub(super) fn new(
        base: &Url,
        timeout: Duration,
        outgoing: &Outgoing,
    ) -> Result<Self, reqwest::Error> {
        Ok(Self {
            client: outgoing.pooled(base, timeout, MAX_IDLE_CONNECTIONS)?,
            base: base.as_str().trim_end_matches('/').to_owned(),
        })
    }

    pub(super) fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.base))
    }

    pub(super) fn post(&self, path: &str) -> RequestBuilder {
        self.client.post(format!("{}{path}", self.base))
    }
}

impl Answer {
    /// Sends a request and reads the response, whose body may have at most `limit` bytes.
    pub(super) async fn to(request: RequestBuilder, limit: usize) -> Result<Self, AuthError> {
        let response = request.send().await.map_err(|error| down(&error))?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER);
        let retry_after =
            retry_after.and_then(|value| wait(value.to_str().ok()?, Clock::system().unix()));
        let body = match net::read_body(response, limit).await {
            Ok(body) => body,
            Err(BodyError::Transport(error)) => return Err(down(&error)),
            Err(error @ BodyError::TooLong(_)) => {
                tracing::warn!(status, %error, "the login service gave no answer that can be used");
                return Err(AuthError::Unreadable);
            }
        };
        Ok(Self {
            status,
            retry_after,
            body,
        })
    }

    /// The body as JSON of this shape.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&self.body).ok()
    }

    /// Whether the login service refuses. A page in HTML comes from a proxy or a firewall, and says nothing about the
    /// user.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self.status, 401 | 403) && !self.body.trim_ascii_start().starts_with(b"<")
    }

    /// What a response means that is neither a success nor a refusal. `what` names the call in the log, and
    /// `retry_after` comes from the body. Where body and header name different waits, the longer one counts.
    pub(super) fn trouble(&self, what: &'static str, retry_after: Option<Duration>) -> AuthError {
        let status = self.status;
        tracing::warn!(status, "{what}: the login service has trouble");
        match status {
            429 => {
                let wait = retry_after.max(self.retry_after);
                let retry_after = wait.unwrap_or(USUAL_RETRY_AFTER).min(MAX_RETRY_AFTER);
                AuthError::Busy { retry_after }
            }
            408 | 425 | 500.. => AuthError::Down,
            _ => AuthError::Unreadable,
        }
    }
}

fn down(error: &reqwest::Error) -> AuthError {
    let reason = if error.is_timeout() {
        "timeout"
    } else if error.is_connect() {
        "no connection"
    } else {
        "the connection broke, or it speaks no HTTP"
    };
    tracing::warn!(reason, "the login service does not answer");
    tracing::debug!(
        error = error as &dyn std::error::Error,
        "the login service does not answer"
    );
    AuthError::Down
}
