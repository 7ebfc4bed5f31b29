//! A login at the homeserver (Matrix client-server API, `POST /login`), and the logout that goes with it.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, Instant},
};

use matrix2acrobits_shared::{ids::UserId, process::net::Outgoing, secret::Secret};
use serde::Deserialize;
use serde_json::json;
use tokio::time::{sleep, timeout_at};
use tokio_util::task::TaskTracker;
use url::Url;

use super::{
    AuthError,
    upstream::{Answer, Upstream},
};
use crate::http::seldom::Seldom;

const LOGIN: &str = "/_matrix/client/v3/login";
/// The only login type that we use.
const PASSWORD: &str = "m.login.password";
const LOGOUT: &str = "/_matrix/client/v3/logout";
const MAX_ANSWER_BYTES: usize = 256 * 1024;
/// The name that users see among their devices between login and logout.
const DEVICE_NAME: &str = "matrix2acrobits";
/// How long we keep waiting for a login after we gave up on it, because a login that succeeds late leaves a device.
const LINGER: Duration = Duration::from_secs(10);
/// The pause between two attempts to log out.
const LOGOUT_PAUSE: Duration = Duration::from_millis(500);

/// The homeserver as a login service.
#[derive(Debug)]
pub(super) struct Matrix {
    upstream: Arc<Upstream>,
    tasks: TaskTracker,
    /// The part of a login's time that must be left when we stop waiting for its logout.
    spare: Duration,
    said: Seldom,
}

/// The response to a login. It has no Debug, to protect the token.
#[derive(Deserialize)]
struct LoggedIn {
    user_id: Option<String>,
    access_token: Option<String>,
}

/// The ways to log in.
#[derive(Debug, Deserialize)]
struct Flows {
    flows: Vec<Flow>,
}

#[derive(Debug, Deserialize)]
struct Flow {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Deserialize)]
struct MatrixError {
    /// Empty if it is missing, as in a proxy's response.
    #[serde(default)]
    errcode: String,
    retry_after_ms: Option<f64>,
}

impl Matrix {
    pub(super) fn new(
        homeserver: &Url,
        timeout: Duration,
        tasks: TaskTracker,
        outgoing: &Outgoing,
    ) -> Result<Self, reqwest::Error> {
        let upstream = Upstream::new(homeserver, timeout + LINGER, outgoing)?.into();
        Ok(Self {
            upstream,
            tasks,
            spare: timeout / 4,
            said: Seldom::default(),
        })
    }

    /// Logs in with a name such as `bob`, `@bob:server` or `bob@server`, and returns the user. No device stays.
    pub(super) async fn login(
        &self,
        name: &str,
        password: &Secret,
        deadline: Instant,
    ) -> Result<UserId, AuthError> {
        let body = json!({
            "type": PASSWORD,
            "identifier": {"type": "m.id.user", "user": identifier(name)},
            "password": password.expose(),
            "initial_device_display_name": DEVICE_NAME,
        });
        let request = self.upstream.post(LOGIN).json(&body);
        let answer = Answer::to(request, MAX_ANSWER_BYTES).await?;
        if !(200..300).contains(&answer.status) {
            if may_take_no_passwords(&answer) && self.takes_no_passwords().await {
                if let Some(times) = self.said.due(Instant::now()) {
                    tracing::error!(
                        times,
                        "the homeserver takes no password logins at MATRIX_HOMESERVER_URL: its GET {LOGIN} offers no \
                     m.login.password. With a Matrix Authentication Service in front only the public URL may have \
                     it; else choose another REPORT_AUTH"
                    );
                }
                return Err(AuthError::NoPasswordLogin);
            }
            return Err(refusal(&answer));
        }
        let Some(LoggedIn {
            user_id,
            access_token,
        }) = answer.json()
        else {
            return Err(unreadable("it is not the JSON that it should be"));
        };
        if let Some(token) = access_token {
            let logout = log_out(self.upstream.clone(), Secret::new(token));
            let logout = self.tasks.spawn(logout);
            // Wait for the logout, but a homeserver that hangs now must not cost the phone its response.
            let until = deadline.checked_sub(self.spare).unwrap_or(deadline);
            let _ = timeout_at(until.into(), logout).await;
        }
        user_id
            .and_then(|user_id| UserId::parse(&user_id).ok())
            .ok_or_else(|| unreadable("it has no user ID"))
    }

    /// Whether the homeserver says that it accepts no passwords at this URL.
    async fn takes_no_passwords(&self) -> bool {
        match Answer::to(self.upstream.get(LOGIN), MAX_ANSWER_BYTES).await {
            Ok(answer) if answer.status == 200 => {
                let flows: Option<Flows> = answer.json();
                flows.is_some_and(|Flows { flows }| flows.iter().all(|flow| flow.kind != PASSWORD))
            }
            Ok(answer) => is_unrecognized(&answer),
            Err(_) => false,
        }
    }
}

/// The name in a form that the homeserver accepts. It does not know `bob@server`.
fn identifier(name: &str) -> Cow<'_, str> {
    match name.rsplit_once('@') {
        Some((localpart, server)) if !localpart.is_empty() && !server.is_empty() => {
            format!("@{}:{server}", localpart.trim_start_matches('@')).into()
        }
        _ => name.into(),
    }
}

/// Whether the response to a login may come from a homeserver without passwords.
fn may_take_no_passwords(answer: &Answer) -> bool {
    let error: Option<MatrixError> = answer.json();
    let is_no_refusal = |error: MatrixError| error.errcode == "M_UNKNOWN";
    is_unrecognized(answer) || answer.status == 400 && error.is_some_and(is_no_refusal)
}

/// Whether the homeserver does not know the path, like Synapse behind a Matrix Authentication Service.
fn is_unrecognized(answer: &Answer) -> bool {
    let error: Option<MatrixError> = answer.json();
    matches!(answer.status, 404 | 405)
        && error.is_some_and(|error| error.errcode == "M_UNRECOGNIZED")
}

/// What a response without success means.
fn refusal(answer: &Answer) -> AuthError {
    let error: Option<MatrixError> = answer.json();
    let errcode = error.as_ref().map_or("", |error| error.errcode.as_str());
    match (answer.status, errcode) {
        // Without an errcode the response comes from a proxy, which knows no passwords.
        (401 | 403, errcode) if errcode.starts_with("M_") => AuthError::Refused,
        // Synapse responds so to impossible names such as "@bob".
        (400, "M_INVALID_PARAM" | "M_INVALID_USERNAME") => AuthError::Refused,
        _ => {
            let wait = error
                .and_then(|error| error.retry_after_ms)
                .and_then(|ms| Duration::try_from_secs_f64(ms / 1000.0).ok());
            answer.trouble("the homeserver's /login", wait)
        }
    }
}

/// Ends the session, so that no device stays behind.
async fn log_out(upstream: Arc<Upstream>, token: Secret) {
    for pause in [Some(LOGOUT_PAUSE), None] {
        let request = upstream.post(LOGOUT).bearer_auth(token.expose());
        let answer = Answer::to(request.json(&json!({})), MAX_ANSWER_BYTES).await;
        // 401 means that the session is already gone.
        match answer.map(|answer| answer.status) {
            Ok(200..300 | 401) => return,
            Ok(status) => tracing::warn!(status, "the homeserver did not log us out"),
            Err(_) => tracing::warn!("the homeserver did not log us out"),
        }
        if let Some(pause) = pause {
            sleep(pause).await;
        }
    }
    tracing::warn!("a user keeps a device named {DEVICE_NAME}");
}

fn unreadable(reason: &'static str) -> AuthError {
    tracing::warn!(reason, "the homeserver's answer to a login cannot be used");
    AuthError::Unreadable
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Field case 20.
    #[test]
    fn every_spelling_of_a_user_is_one_that_homeservers_know() {
        for (name, expected) in [
            ("bob", "bob"),
            ("bob@localhost", "@bob:localhost"),
            ("bob@example.org:8448", "@bob:example.org:8448"),
            ("@bob@example.org", "@bob:example.org"),
            ("@bob:example.org", "@bob:example.org"),
            ("@bob", "@bob"),
            ("bob@", "bob@"),
            ("@", "@"),
            ("", ""),
        ] {
            assert_eq!(identifier(name), expected, "{name}");
        }
    }
}
