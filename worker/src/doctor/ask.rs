//! The doctor's requests. Each returns a response, or a reason for people.

use std::{error::Error, time::Duration};

use matrix2acrobits_shared::{
    ids::UserId,
    matrix::client::{Homeserver, Received},
    process::{
        health::DOCTOR,
        net::{self, Outgoing},
    },
    rules::outcome,
};
use serde_json::Value;
use url::Url;

use crate::settings::Settings;

/// The longest wait, because somebody waits at a terminal.
const LONGEST: Duration = Duration::from_secs(10);
const MAX_ANSWER: usize = 1024 * 1024;

/// A response with its body.
#[derive(Debug, Clone, Default)]
pub(super) struct Reply {
    pub(super) status: u16,
    /// Null if the body is not JSON.
    pub(super) body: Value,
    /// The other side's clock, in seconds since 1970.
    pub(super) date: Option<i64>,
    /// Location header.
    pub(super) location: Option<String>,
}

impl Reply {
    fn of(received: Received) -> Result<Self, String> {
        match received.reply {
            outcome::Reply::Nothing { reason, .. } => Err(reason),
            outcome::Reply::Response(response) => Ok(Self {
                status: response.status,
                location: response.location,
                body: received.body,
                date: received.date,
            }),
        }
    }

    /// A text in the body.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.body.get(key)?.as_str()
    }

    /// The status and, if present, errcode and error.
    pub(super) fn describe(&self) -> String {
        let status = self.status;
        match (self.text("errcode"), self.text("error"), &self.location) {
            (Some(errcode), Some(error), _) => format!("HTTP {status} {errcode}: {error}"),
            (Some(errcode), None, _) => format!("HTTP {status} {errcode}"),
            (None, _, Some(location)) => format!("HTTP {status}, a redirect to {location}"),
            (None, ..) if self.body.is_null() => format!("HTTP {status} without JSON"),
            (None, ..) => format!("HTTP {status}"),
        }
    }
}

/// Sends requests to the homeserver and the api.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    outgoing: Outgoing,
    timeout: Duration,
    homeserver: Homeserver,
}

impl Asker {
    pub(super) fn new(settings: &Settings) -> Result<Self, reqwest::Error> {
        let timeout = settings.homeserver_timeout.min(LONGEST);
        Ok(Self {
            outgoing: settings.outgoing.clone(),
            timeout,
            homeserver: Homeserver::new(
                settings.homeserver_url.clone(),
                settings.as_token.clone(),
                timeout,
                &settings.outgoing,
                |_, _, _| (),
            )?,
        })
    }

    /// `GET /_matrix/client/versions`.
    pub(super) async fn versions(&self) -> Result<Reply, String> {
        Reply::of(self.homeserver.versions().await)
    }

    /// `GET /_matrix/client/v3/{endpoint}`, with our token, for a user or for ourselves.
    pub(super) async fn homeserver(
        &self,
        endpoint: &str,
        user: Option<&UserId>,
    ) -> Result<Reply, String> {
        let endpoint = format!("v3/{endpoint}");
        Reply::of(self.homeserver.get("doctor", &endpoint, user).await)
    }

    /// A POST without a body, by which the api recognises us.
    pub(super) async fn post_nothing(&self, url: Url) -> Result<Reply, String> {
        let request = self.client(&url)?.post(url).header("user-agent", DOCTOR);
        send(request.header("content-type", "application/json")).await
    }

    /// A GET.
    pub(super) async fn get(&self, url: Url) -> Result<Reply, String> {
        send(self.client(&url)?.get(url)).await
    }

    /// A client for the server at `url`, which may be one that no proxy reaches.
    fn client(&self, url: &Url) -> Result<reqwest::Client, String> {
        let builder = self.outgoing.client(url, self.timeout);
        let client = builder.timeout(self.timeout).build();
        client.map_err(|error| root(&error))
    }
}

async fn send(request: reqwest::RequestBuilder) -> Result<Reply, String> {
    let response = request.send().await.map_err(|error| root(&error))?;
    let header = |name: &str| {
        let value = response.headers().get(name)?.to_str().ok()?;
        Some(value.to_owned())
    };
    let reply = Reply {
        status: response.status().as_u16(),
        date: None,
        location: header("location"),
        body: Value::Null,
    };
    let body = net::read_body(response, MAX_ANSWER).await;
    let body = body.map_err(|_| "the answer breaks off or is too long".to_owned())?;
    Ok(Reply {
        body: serde_json::from_slice(&body).unwrap_or_default(),
        ..reply
    })
}

/// The innermost cause, such as "Connection refused". The outer errors would repeat the URL.
fn root(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut cause: &dyn Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answers_in_words() {
        let reply = |body: Value| Reply {
            status: 403,
            body,
            ..Reply::default()
        };
        for (reply, words) in [
            (
                reply(json!({"errcode": "M_FORBIDDEN", "error": "no"})),
                "HTTP 403 M_FORBIDDEN: no",
            ),
            (
                reply(json!({"errcode": "M_FORBIDDEN"})),
                "HTTP 403 M_FORBIDDEN",
            ),
            (reply(json!({})), "HTTP 403"),
            (reply(Value::Null), "HTTP 403 without JSON"),
        ] {
            assert_eq!(reply.describe(), words);
        }
    }
}
