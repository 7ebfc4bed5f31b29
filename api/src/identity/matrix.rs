//! A login at the homeserver (Matrix client-server API, `POST /login`), and the logout that goes with it.

use std::{
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

const LOGIN: &str = "/_matrix/client/v3/login";
const LOGOUT: &str = "/_matrix/client/v3/logout";
const MAX_ANSWER_BYTES: usize = 256 * 1024;
/// What the user sees among his devices in the moment between.
const DEVICE_NAME: &str = "matrix2acrobits";
/// For how long after we gave up a login is still listened to: one that succeeds late leaves a device.
const LINGER: Duration = Duration::from_secs(10);
/// Between two tries to log out.
const LOGOUT_PAUSE: Duration = Duration::from_millis(500);

/// The homeserver as a login service.
#[derive(Debug)]
pub(super) struct Matrix {
    upstream: Arc<Upstream>,
    tasks: TaskTracker,
    /// What is left of a login's time when we stop waiting for its logout.
    spare: Duration,
}

/// The answer to a login, as far as it is one; it has no Debug, for the token's sake.
#[derive(Deserialize)]
struct LoggedIn {
    user_id: Option<String>,
    access_token: Option<String>,
}

#[derive(Debug, Deserialize)]
struct MatrixError {
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
        })
    }

    /// The user who logs in under this name, a localpart or a full user ID. No device stays.
    pub(super) async fn login(
        &self,
        name: &str,
        password: &Secret,
        deadline: Instant,
    ) -> Result<UserId, AuthError> {
        let body = json!({
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": name},
            "password": password.expose(),
            "initial_device_display_name": DEVICE_NAME,
        });
        let request = self.upstream.post(LOGIN).json(&body);
        let answer = Answer::to(request, MAX_ANSWER_BYTES).await?;
        if !(200..300).contains(&answer.status) {
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
            // In turn; but a homeserver that hangs now must not cost the phone its answer.
            let until = deadline.checked_sub(self.spare).unwrap_or(deadline);
            let _ = timeout_at(until.into(), logout).await;
        }
        user_id
            .and_then(|user_id| UserId::parse(&user_id).ok())
            .ok_or_else(|| unreadable("it has no user ID"))
    }
}

/// What an answer without success means.
fn refusal(answer: &Answer) -> AuthError {
    let error: Option<MatrixError> = answer.json();
    let errcode = error.as_ref().map_or("", |error| error.errcode.as_str());
    match (answer.status, errcode) {
        // Without an errcode it is a proxy that speaks, who knows no passwords.
        (401 | 403, errcode) if errcode.starts_with("M_") => AuthError::Refused,
        // Synapse of names that cannot be, such as "@bob".
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
        // 401: the session is gone already.
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
