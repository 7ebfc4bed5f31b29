//! The client for the homeserver's pusher endpoints, acting for users as an application service.

use std::time::Duration;

use matrix2acrobits_shared::{
    ids::UserId,
    matrix::pushers::{DeletePusher, HeldPushers, SetPusher},
    process::net::{self, Outgoing},
    secret::Secret,
};
use url::Url;

use crate::{
    classification::{self, Answer, Response},
    metrics,
};

/// Longest answer that we read: a user with a thousand pushers stays below.
const MAX_ANSWER: usize = 1024 * 1024;
/// How long a probe waits; a homeserver that takes longer is not back yet.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// A homeserver and our token for it.
#[derive(Debug, Clone)]
pub(crate) struct Homeserver {
    client: reqwest::Client,
    base: Url,
    token: Secret,
}

impl Homeserver {
    /// `timeout` is per request, from connecting to the end of the answer.
    pub(crate) fn new(
        base: Url,
        token: Secret,
        timeout: Duration,
        outgoing: &Outgoing,
    ) -> Result<Self, reqwest::Error> {
        let client = outgoing
            .client(timeout.min(Duration::from_secs(10)))
            .timeout(timeout)
            .pool_max_idle_per_host(64)
            .build()?;
        Ok(Self {
            client,
            base,
            token,
        })
    }

    /// `POST /pushers/set` with a pusher.
    pub(crate) async fn set(&self, user: &UserId, pusher: &SetPusher<'_>) -> Answer {
        let request = self
            .client
            .post(self.url("v3/pushers/set", Some(user)))
            .bearer_auth(self.token.expose())
            .json(pusher);
        self.answer("set", request).await.0
    }

    /// `POST /pushers/set` with `kind: null`, which answers 200 also when there is no such pusher.
    pub(crate) async fn delete(&self, user: &UserId, pusher: &DeletePusher<'_>) -> Answer {
        let request = self
            .client
            .post(self.url("v3/pushers/set", Some(user)))
            .bearer_auth(self.token.expose())
            .json(pusher);
        self.answer("delete", request).await.0
    }

    /// `GET /pushers`: what the homeserver holds for this user, beside the answer it came with.
    pub(crate) async fn pushers(&self, user: &UserId) -> (Answer, Option<HeldPushers>) {
        let request = self
            .client
            .get(self.url("v3/pushers", Some(user)))
            .bearer_auth(self.token.expose());
        let (answer, body) = self.answer("list", request).await;
        let held = serde_json::from_slice(&body).ok();
        (answer, held)
    }

    /// Whether the homeserver answers at all. Without our token: Synapse answers `GET /versions` 401 to one
    /// that it does not know, and then no job would ever run to find that out.
    pub(crate) async fn probe(&self) -> bool {
        let request = self
            .client
            .get(self.url("versions", None))
            .timeout(PROBE_TIMEOUT);
        let (answer, _) = self.answer("probe", request).await;
        matches!(
            answer,
            Answer::Http(Response {
                status: 200..=299,
                json: true,
                ..
            })
        )
    }

    fn url(&self, endpoint: &str, user: Option<&UserId>) -> Url {
        let mut url = self.base.clone();
        let path = format!(
            "{}/_matrix/client/{endpoint}",
            url.path().trim_end_matches('/')
        );
        url.set_path(&path);
        if let Some(user) = user {
            url.query_pairs_mut().append_pair("user_id", user.as_str());
        }
        url
    }

    async fn answer(
        &self,
        what: &'static str,
        request: reqwest::RequestBuilder,
    ) -> (Answer, Vec<u8>) {
        let started = std::time::Instant::now();
        let (answer, body) = send(request).await;
        metrics::request(what, &answer, started.elapsed());
        (answer, body)
    }
}

async fn send(request: reqwest::RequestBuilder) -> (Answer, Vec<u8>) {
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) => return (no_answer(&error), Vec::new()),
    };
    let status = response.status().as_u16();
    let retry_after = response
        .headers()
        .get("retry-after")
        .and_then(|value| value.to_str().ok().map(str::to_owned));
    let Ok(body) = net::read_body(response, MAX_ANSWER).await else {
        let reason = format!("HTTP {status}, but the answer could not be read");
        return (Answer::None { reason, sent: true }, Vec::new());
    };
    let response = classification::read(status, retry_after.as_deref(), &body);
    (Answer::Http(response), body)
}

/// Our words for a request that got no answer; reqwest's would repeat the URL with the user.
fn no_answer(error: &reqwest::Error) -> Answer {
    let (reason, sent) = if error.is_connect() && error.is_timeout() {
        ("no connection in time", false)
    } else if error.is_connect() {
        ("connection refused or failed", false)
    } else if error.is_timeout() {
        ("no answer in time", true)
    } else {
        ("connection lost before the answer", true)
    };
    Answer::None {
        reason: reason.into(),
        sent,
    }
}
